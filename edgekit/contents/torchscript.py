"""Read a TorchScript archive without torch, and without running anything in it.

The archive is a zip (torch/csrc/jit/docs/serialization.md): ``code/`` is the program as text,
``constants/`` and ``data/`` hold one buffer a file, and two pickles, ``constants.pkl`` and
``data.pkl``, say which tensor lies in which buffer. A pickle can call any function; here it is
only read (``pickles``), so that it can do no more than describe itself.
"""

import contextlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.artifact import Tensor
from edgekit.contents import Contents, StoredTensor
from edgekit.contents.pickles import Made, Named, Pairs, describe
from edgekit.errors import ModelError

# Where an exporter of ours describes the inputs and outputs, which TorchScript itself does not.
SIGNATURE = "extra/edgekit.json"

# torch's name of a buffer's type, as the pickles have it.
_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
_CALL = re.compile(r"\b(torch|ops\.\w+)\.(\w+)\(")
_PARAMETER = re.compile(r"(\w+): ")
_PACKED = ("weight", "bias")  # of packed parameters
_LARGEST = 2**28  # bytes of code, or of a pickle, at most


def read_torchscript(path: Path) -> Contents:
    """Contents of a TorchScript archive. Raises ModelError when it is damaged or no archive."""
    with opened(path) as archive:
        return _read(archive, path)


@contextlib.contextmanager
def opened(path: Path) -> "Iterator[Archive]":
    """An archive whose checksums are right; what fails while it is open is a ModelError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ModelError(f"{path} is damaged: {damaged} has changed; copy it again")
            yield Archive(archive, archive.namelist()[0].split("/")[0])
    except ModelError:
        raise
    except Exception as error:  # a garbled archive can fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ModelError(f"{path} is damaged or no TorchScript ({reason}); save it again") from None


@dataclass(frozen=True)
class Archive:
    """An open archive. root: the folder inside it that all records lie in."""

    zip: zipfile.ZipFile
    root: str

    def read(self, record: str) -> bytes:
        if self.size(record) > _LARGEST:
            raise ValueError(f"{record} is larger than any program")
        return self.zip.read(f"{self.root}/{record}")

    def has(self, record: str) -> bool:
        return f"{self.root}/{record}" in self.zip.namelist()

    def size(self, record: str) -> int:
        return self.zip.getinfo(f"{self.root}/{record}").file_size

    def code(self) -> Iterator[str]:
        start = f"{self.root}/"
        for name in self.zip.namelist():
            if name.startswith(f"{start}code/") and name.endswith(".py"):
                yield self.read(name.removeprefix(start)).decode()

    def tensors(self) -> Iterator[tuple[str, StoredTensor]]:
        """Every tensor that a pickle speaks of, with the record that its numbers are in. What is
        quantized is followed by its scales and zero points, ``.scale`` and ``.zero``."""
        for pickle, stem in (("data", ""), ("constants", "CONSTANTS.c")):
            yield from _Tensors(pickle).of(describe(self.read(f"{pickle}.pkl")), stem)


def _read(archive: Archive, path: Path) -> Contents:
    once = dict(reversed(list(archive.tensors())))
    inputs, outputs = _ends(archive)
    return Contents(
        format="torchscript",
        bytes=path.stat().st_size,
        inputs=inputs,
        outputs=outputs,
        signatures=(),
        ops=dict(Counter(_calls(archive)).most_common()),
        tensors=tuple(
            replace(tensor, bytes=archive.size(buffer)) for buffer, tensor in reversed(once.items())
        ),
    )


def _calls(archive: Archive) -> Iterator[str]:
    """Operations as often as the code names them."""
    for text in archive.code():
        for space, name in _CALL.findall(text):
            yield f"{'aten' if space == 'torch' else space.removeprefix('ops.')}::{name}"


def _ends(archive: Archive) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs: from our record, or the names alone from the code of ``forward``."""
    if archive.has(SIGNATURE):
        record = json.loads(archive.read(SIGNATURE))
        ends = (
            tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in record[side])
            for side in ("inputs", "outputs")
        )
        return next(ends), next(ends)
    module = describe(archive.read("data.pkl"))
    name = module.by.rpartition(".")[2] if isinstance(module, Made) else ""
    code = next(text for text in archive.code() if f"class {name}(" in text)
    forward = code[code.index(f"class {name}(") :].partition("def forward(self")[2]
    names = _PARAMETER.findall(forward.partition("->")[0])
    return tuple(Tensor(name, "unknown", ()) for name in names), ()


@dataclass
class _Tensors:
    """The tensors in a described value. Each part of it is visited once, however often it is
    spoken of, or a small pickle could keep us busy for ever."""

    pickle: str
    seen: dict[int, Any] = field(default_factory=dict)  # by id, and kept alive

    def of(self, value: Any, name: str) -> Iterator[tuple[str, StoredTensor]]:
        if id(value) in self.seen:
            return
        self.seen[id(value)] = value
        if isinstance(value, Made) and "._rebuild" in value.by:
            yield from self._tensor(value, name)
        elif isinstance(value, Made):
            words = _PACKED if value.by.endswith("PackedParamsBase") else ()
            if words and isinstance(value.state, tuple):
                for word, part in zip(words, value.state):
                    yield from self.of(part, f"{name}.{word}")
            else:
                yield from self.of(value.arguments, name)
                yield from self.of(value.state, name)
        elif isinstance(value, Pairs):
            for key, part in value.items:
                if isinstance(key, str | int):
                    yield from self.of(part, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list | tuple):
            for number, part in enumerate(value):
                joint = "" if name.endswith(".c") else "."
                yield from self.of(part, f"{name}{joint}{number}")

    def _tensor(self, made: Made, name: str) -> Iterator[tuple[str, StoredTensor]]:
        """``_rebuild_tensor_v2(storage, offset, shape, …)`` or ``_rebuild_qtensor``."""
        storage, _, shape, *rest = made.arguments
        kind, key = storage.key[1:3]
        dtype = _DTYPES.get(kind.name.rpartition(".")[2], "unknown")
        yield f"{self.pickle}/{key}", StoredTensor(name, dtype, tuple(map(int, shape)), 0)
        for quantizer in rest:
            if isinstance(quantizer, tuple) and quantizer and isinstance(quantizer[0], Named):
                for word, part in zip(("scale", "zero"), quantizer[1:]):
                    yield from self.of(part, f"{name}.{word}")
