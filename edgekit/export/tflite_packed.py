"""A TFLite file whose sparse weights are packed, for an app's loader to expand at first start.

TFLite has an encoding for sparse weights, which LiteRT 1.0, 1.4 and 2.3 refuse for int8 where
XNNPACK runs the product ("failed to delegate FULLY_CONNECTED"); tflite-runtime 2.14 alone runs
it. So the file is packed as a whole. Rules, all integers uint32 in little-endian order:

1. The mark ``EKPACK01``, then blocks to the end: three integers (plain, span, kept), ``plain``
   bytes as they are, ``kept`` distances of one byte, ``kept`` values of one byte.
2. A block stands for its plain bytes and ``span`` bytes behind them that are zero, but for the
   values: each lies its distance behind the one before, the first behind the span's beginning.
3. An int8 constant of 4,096 numbers or more is such a span where that takes a tenth off.
4. What is expanded is the dense file, byte for byte.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

from edgekit.errors import BundleError
from edgekit.export.onnx_sparse import pack
from edgekit.export.tflite_file import read_program
from edgekit.export.tflite_graph import type_name

SUFFIX = ".packed"
_MARK = b"EKPACK01"
_HEAD = struct.Struct("<III")
_SMALLEST, _LEAST = 4096, 0.9


def pack_tflite(path: Path, folder: Path) -> Path | None:
    """Write ``model.tflite.packed`` into ``folder``; nothing when no weight is worth it."""
    content = path.read_bytes()
    whole = np.frombuffer(content, np.uint8)
    spans = {}
    for graph in read_program(content, str(path)).graphs:
        for tensor in graph.tensors():
            if tensor.data is None or type_name(tensor.type) != "int8":
                continue
            start = tensor.data.ctypes.data - whole.ctypes.data
            if tensor.data.size >= _SMALLEST and start not in spans:
                kept, distances = pack(tensor.data)
                if 2 * kept.size + _HEAD.size < _LEAST * tensor.data.size:
                    spans[start] = (tensor.data.size, kept, distances)
    if not spans:
        return None
    parts, end = [_MARK], 0
    for start, (size, kept, distances) in sorted(spans.items()):
        parts += [_HEAD.pack(start - end, size, kept.size), content[end:start]]
        parts += [distances.tobytes(), kept.tobytes()]
        end = start + size
    parts += [_HEAD.pack(len(content) - end, 0, 0), content[end:]]
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / (path.name + SUFFIX)
    written.write_bytes(b"".join(parts))
    return written


def expand_tflite(path: Path, out: Path) -> None:
    """Write the dense file as ``out``, by one rename. Raises BundleError for a damaged one."""
    content = path.read_bytes()
    parts = []
    at = len(_MARK)
    try:
        if content[:at] != _MARK:
            raise ValueError("mark")
        while at < len(content):
            plain, size, kept = _HEAD.unpack_from(content, at)
            at += _HEAD.size + plain + 2 * kept
            if at > len(content):
                raise ValueError("length")
            span = np.zeros(size, np.uint8)
            distances = np.frombuffer(content, np.uint8, kept, at - 2 * kept)
            span[np.cumsum(distances, dtype=np.int64)] = np.frombuffer(
                content, np.uint8, kept, at - kept
            )
            parts += [content[at - 2 * kept - plain : at - 2 * kept], span.tobytes()]
    except (ValueError, IndexError, struct.error):
        raise BundleError(f"{path} is damaged; build the bundle again") from None
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    partial.write_bytes(b"".join(parts))
    partial.replace(out)


def packed_bytes(count: int, kept: int) -> int:
    """Bytes of an int8 constant of ``count`` numbers of which ``kept`` are not zero."""
    least = 2 * kept + _HEAD.size
    return least if count >= _SMALLEST and least < _LEAST * count else count
