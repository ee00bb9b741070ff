"""Attribute an ONNX file: its protobuf fields, one after the other
(protobuf.dev/programming-guides/encoding, onnx.ai/onnx/repo-docs/IR.html).

The walk follows the parsed message beside the bytes, so that each field is known by the schema
that ``onnx`` itself has, and each constant by the operators that read it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.contents.ledger import Kind, Ledger, Place, Span, settle
from edgekit.contents.onnx import dtype_name, packed_matrices, parse_onnx, refusing
from edgekit.contents.onnx_readers import Readers
from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnx

# Where a field's bytes are, in the words of onnx.proto.
_DATA = {
    "raw_data",
    "float_data",
    "int32_data",
    "string_data",
    "int64_data",
    "double_data",
    "uint64_data",
}
_NOTES = {"doc_string", "metadata_props", "producer_name", "producer_version", "model_version"}
_NOTES |= {"domain", "ir_version"}
_SECTIONS: dict[str, Place] = {
    "initializer": ("graph", "constants' names and shapes"),
    "sparse_initializer": ("graph", "constants' names and shapes"),
    "value_info": ("graph", "declared shapes"),
    "functions": ("graph", "functions"),
    "node": ("graph", "operators"),
}
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


def attribute_onnx(path: Path) -> Ledger:
    """Every byte of the file and of the files beside it that hold its weights.

    Raises ModelError when it is damaged.
    """
    model = parse_onnx(path)
    content = memoryview(path.read_bytes())
    with refusing(path):
        walk = _Walk(content, model, Readers(model), packed_matrices(model.graph))
        walk.message(0, len(content), model, ("graph", "model"), "")
        places = sorted({_location(tensor) for tensor, _ in walk.beside})
    for place in places:
        _beside(path, place, walk)
    return walk.ledger


@dataclass
class _Walk:
    content: memoryview
    model: "onnx.ModelProto"
    readers: Readers
    packed: dict[str, tuple[str, tuple[int, int]]]
    ledger: Ledger = field(default_factory=Ledger)
    # Constants whose numbers are in other files, with their names.
    beside: list[tuple[Any, str]] = field(default_factory=list)

    def message(self, start: int, end: int, parsed: Any, place: Place, owner: str) -> None:
        """The fields of one message. owner: the value that a Constant operator makes."""
        import onnx

        if isinstance(parsed, onnx.TensorProto):
            self._tensor(start, end, parsed, parsed.name or owner)
            return
        if isinstance(parsed, onnx.NodeProto):
            owner = parsed.output[0] if parsed.output else ""
        counted: dict[str, int] = {}
        for field_ in self._fields(start, end, parsed.DESCRIPTOR):
            name, inner = field_.name, field_.inner
            number = counted.get(name, 0)
            counted[name] = number + 1
            section = _SECTIONS.get(name, place)
            if name in ("input", "output") and isinstance(parsed, onnx.GraphProto):
                section = ("graph", "inputs and outputs")
            child = _child(parsed, name, number) if field_.is_message else None
            if name in _NOTES and not owner:
                self.ledger.add(("metadata", _words(name)), "metadata", None, field_.size)
            elif child is None:
                self.ledger.add(section, "graph", None, field_.size)
            else:
                self.ledger.add(section, "graph", None, inner - field_.start)
                self.message(inner, field_.end, child, section, owner)

    def _tensor(self, start: int, end: int, tensor: "onnx.TensorProto", name: str) -> None:
        """A constant: its numbers, and around them its name and shape."""
        data: list[tuple[int, int]] = []
        around = 0
        for field_ in self._fields(start, end, tensor.DESCRIPTOR):
            if field_.name in _DATA:
                data.append((field_.inner, field_.end))
                around += field_.inner - field_.start
            else:
                around += field_.size
        self.ledger.add(_SECTIONS["initializer"], "graph", None, around)
        if tensor.external_data:
            self.beside.append((tensor, name))
        size = sum(stop - begin for begin, stop in data)
        if size:
            place, kind, dtype = self.of(tensor, name)
            if self.ledger.repeats(self.content[begin:stop] for begin, stop in data):
                kind = "duplicate"
            self.ledger.add(place, kind, dtype, size)

    def of(self, tensor: "onnx.TensorProto", name: str) -> tuple[Place, Kind, str]:
        """What a constant's numbers are."""
        dtype = self.packed[name][0] if name in self.packed else dtype_name(tensor.data_type)
        kind = self.readers.kind(name, dtype, math.prod(tensor.dims))
        if kind == "graph":
            return ("graph", "constants"), kind, dtype
        return self.readers.place(name), kind, dtype

    def _fields(self, start: int, end: int, descriptor: Any) -> "Iterator[_Field]":
        place = start
        while place < end:
            key, inner = self._varint(place, end)
            wire = key & 7
            if wire == _VARINT:
                _, stop = self._varint(inner, end)
            elif wire == _LENGTH:
                size, inner = self._varint(inner, end)
                stop = inner + size
            elif wire in _FIXED:
                stop = inner + _FIXED[wire]
            else:
                raise ValueError("a group, which ONNX does not have")
            if stop > end:
                raise ValueError("a field that ends behind its message")
            known = descriptor.fields_by_number.get(key >> 3)
            is_message = known is not None and known.message_type is not None and wire == _LENGTH
            yield _Field(known.name if known else "", place, inner, stop, is_message)
            place = stop

    def _varint(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if place >= end:
                break
            byte = self.content[place]
            place += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, place
        raise ValueError("a number that does not end")


@dataclass(frozen=True)
class _Field:
    """start: of its tag; inner: of what it holds; end: behind it."""

    name: str
    start: int
    inner: int
    end: int
    is_message: bool

    @property
    def size(self) -> int:
        return self.end - self.start


def _child(parsed: Any, name: str, number: int) -> Any:
    """The parsed message of a field's n-th occurrence; none where it is not there.

    Of a single field that is written twice the parser keeps a blend.
    """
    value = getattr(parsed, name)
    if not hasattr(value, "__len__"):
        return value
    return value[number] if number < len(value) else None


def _words(name: str) -> str:
    return {"doc_string": "notes", "metadata_props": "properties"}.get(name, name.replace("_", " "))


def _beside(model: Path, name: str, walk: _Walk) -> None:
    """A file of weights: the ranges that constants name, and padding between them."""
    path = model.parent / name
    if not path.resolve().is_relative_to(model.parent.resolve()) or not path.is_file():
        raise ModelError(f"{model} keeps weights in {name}, which is not in its folder; copy it")
    content = memoryview(path.read_bytes())
    spans = []
    for tensor, owner in walk.beside:
        if _location(tensor) != name:
            continue
        start, end = _range(tensor, len(content))
        place, kind, dtype = walk.of(tensor, owner)
        if walk.ledger.repeats([content[start:end]]):
            kind = "duplicate"
        spans.append(Span(start, end, place, kind, dtype))
    settle(spans, len(content), walk.ledger, lambda start, end: (("padding",), "padding"))


def _location(tensor: "onnx.TensorProto") -> str:
    """The file that a constant's numbers are in."""
    return next((e.value for e in tensor.external_data if e.key == "location"), "")


def _range(tensor: "onnx.TensorProto", size: int) -> tuple[int, int]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        start = int(entries.get("offset", 0))
        return start, start + int(entries.get("length", size - start))
    except ValueError:
        return 0, 0
