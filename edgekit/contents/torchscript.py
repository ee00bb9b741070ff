"""Read a TorchScript archive without torch, and without running anything in it.

The archive is a zip (torch/csrc/jit/docs/serialization.md): ``code/`` is the program as text,
``constants/`` and ``data/`` hold one buffer a file, and two pickles, ``constants.pkl`` and
``data.pkl``, say which tensor lies in which buffer. A pickle can call any function; the reader
below gives it inert stand-ins only, so that it can do no more than describe itself.
"""

import io
import json
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.artifact import Tensor
from edgekit.contents import Contents, StoredTensor
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


def read_torchscript(path: Path) -> Contents:
    """Contents of a TorchScript archive. Raises ModelError when it is damaged or no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ModelError(f"{path} is damaged: {damaged} has changed; copy it again")
            return _read(_Archive(archive, archive.namelist()[0].split("/")[0]), path)
    except ModelError:
        raise
    except Exception as error:  # a garbled pickle can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise ModelError(f"{path} is damaged or no TorchScript ({reason}); save it again") from None


@dataclass(frozen=True)
class _Archive:
    zip: zipfile.ZipFile
    root: str

    def read(self, record: str) -> bytes:
        return self.zip.read(f"{self.root}/{record}")

    def has(self, record: str) -> bool:
        return f"{self.root}/{record}" in self.zip.namelist()

    def size(self, record: str) -> int:
        return self.zip.getinfo(f"{self.root}/{record}").file_size

    def unpickle(self, name: str) -> Any:
        return _InertUnpickler(io.BytesIO(self.read(f"{name}.pkl"))).load()

    def code(self) -> Iterator[str]:
        for name in self.zip.namelist():
            if name.startswith(f"{self.root}/code/") and name.endswith(".py"):
                yield self.zip.read(name).decode()


def _read(archive: _Archive, path: Path) -> Contents:
    module = archive.unpickle("data")
    constants = archive.unpickle("constants")
    found = (*_tensors(module, "data", ""), *_tensors(constants, "constants", "CONSTANTS.c"))
    once = dict(reversed(found))
    inputs, outputs = _ends(archive, module)
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


def _calls(archive: _Archive) -> Iterator[str]:
    """Operations as often as the code names them."""
    for text in archive.code():
        for space, name in _CALL.findall(text):
            yield f"{'aten' if space == 'torch' else space.removeprefix('ops.')}::{name}"


def _ends(archive: _Archive, module: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs: from our record, or the names alone from the code of ``forward``."""
    if archive.has(SIGNATURE):
        record = json.loads(archive.read(SIGNATURE))
        ends = (
            tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in record[side])
            for side in ("inputs", "outputs")
        )
        return next(ends), next(ends)
    name = type(module).__name__
    code = next(text for text in archive.code() if f"class {name}(" in text)
    forward = code[code.index(f"class {name}(") :].partition("def forward(self")[2]
    names = _PARAMETER.findall(forward.partition("->")[0])
    return tuple(Tensor(name, "unknown", ()) for name in names), ()


def _tensors(value: Any, pickle: str, name: str) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors in an unpickled value, each with the record of its buffer."""
    if isinstance(value, _View):
        record = f"{pickle}/{value.storage.key}"
        yield record, StoredTensor(name, value.storage.dtype, tuple(value.shape), 0)
        yield from _tensors(value.rest, pickle, name)
    elif isinstance(value, _Instance):
        yield from _tensors(value.state, pickle, name)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _tensors(part, pickle, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            joint = "" if name.endswith(".c") else "."
            yield from _tensors(part, pickle, f"{name}{joint}{number}")


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _View:
    """A tensor: a buffer and a shape. rest: strides, and the scales of a quantized tensor."""

    storage: _Storage
    shape: tuple[int, ...]
    rest: tuple[Any, ...]


class _Instance:
    """Stands in for an object of any class."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Follows the format and calls nothing but the stand-ins here."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _DTYPES:
            return _DTYPES[name]
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if name.startswith("_rebuild"):
            return _rebuild
        if module == "torch.jit._pickle":
            return _unwrap
        return type(name, (_Instance,), {})

    def persistent_load(self, reference: Any) -> _Storage:
        _, dtype, key, *_ = reference
        return _Storage(dtype if isinstance(dtype, str) else "unknown", key)


def _rebuild(storage: Any, offset: int, shape: tuple[int, ...], *rest: Any) -> _View:
    """For ``torch._utils._rebuild_tensor_v2`` and ``_rebuild_qtensor``."""
    return _View(storage, shape, rest)


def _unwrap(value: Any, *types: Any) -> Any:
    """For ``build_intlist``, ``restore_type_tag`` and their like."""
    return value
