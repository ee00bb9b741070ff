"""What every byte of a model file is there for.

Rules:

1. Each byte of the file (for ONNX, of the files beside it too) belongs to one part, so that the
   parts' bytes sum to the file's size exactly. The containers are walked byte by byte: protobuf
   fields, flatbuffer tables, zip entries; nothing in them is run.
2. *weights*: numbers of constants, also those that describe a packed matrix. *quantization*:
   scales and zero points. *graph*: operators, names, shapes, and constants that are shapes, axes
   or indices. *metadata*: who wrote the file, notes, and the container's own bookkeeping.
   *duplicate*: a constant with the very bytes of an earlier one, from 64 bytes on. *padding*:
   bytes that nothing refers to.
3. A constant's path is the place in the model that its name says; where it says none, that of the
   operator which reads it; where that says none, the operator's kind.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Format
from edgekit.contents import identify_format
from edgekit.contents.ledger import Part


@dataclass(frozen=True)
class Attribution:
    """All parts of a file, the largest first. bytes: their sum, which is the file's size."""

    format: Format
    bytes: int
    parts: tuple[Part, ...]

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind, the largest first."""
        return _sums((part.kind, part.bytes) for part in self.parts)

    def by_dtype(self) -> dict[str, int]:
        """Bytes of numbers of each dtype, the largest first."""
        return _sums((part.dtype, part.bytes) for part in self.parts if part.dtype)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "bytes": self.bytes,
            "by_kind": self.by_kind(),
            "by_dtype": self.by_dtype(),
            "parts": [part.to_json() for part in self.parts],
        }


def attribute(path: Path) -> Attribution:
    """Attribute every byte of an ONNX, TFLite or TorchScript file.

    Raises ModelError when the file is missing, damaged, or of no format that we know. Time and
    memory are bounded by the file's size.
    """
    format = identify_format(path)
    if format == "onnx":
        from edgekit.contents.attribution_onnx import attribute_onnx

        ledger = attribute_onnx(path)
    elif format == "tflite":
        from edgekit.contents.attribution_tflite import attribute_tflite

        ledger = attribute_tflite(path)
    else:
        from edgekit.contents.attribution_torchscript import attribute_torchscript

        ledger = attribute_torchscript(path)
    return Attribution(format, ledger.bytes, ledger.parts())


def _sums(entries: Iterable[tuple[str, int]]) -> dict[str, int]:
    count: Counter[str] = Counter()
    for name, size in entries:
        count[name] += size
    return dict(count.most_common())
