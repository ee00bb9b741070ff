"""Attribute a TFLite file: its FlatBuffer, table by table, and what lies behind it.

Field numbers are those of the TFLite schema (version 3). Options of operators are taken whole;
what their vectors hold beyond them is counted as the operators'.
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from edgekit.contents.flatbuffer import Buffer, Note, Table
from edgekit.contents.graph import is_weight_type
from edgekit.contents.ledger import Kind, Ledger, Place, Span, settle
from edgekit.contents.places import is_fused, place_of, stem_of
from edgekit.errors import ModelError
from edgekit.export.tflite_graph import Kernel, type_name

_OPERATORS: Place = ("graph", "operators")
_TENSORS: Place = ("graph", "tensors' types and shapes")
_NAMES: Place = ("graph", "tensors' names")
_SIGNATURES: Place = ("graph", "signatures")
_ACTIVATIONS: Place = ("graph", "activations' scales")
_NOTES: Place = ("metadata", "notes")
# Options with a vector: the number of its union's member, and of its field.
_RESHAPE, _SQUEEZE = 17, 30
_PRODUCTS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D")
_BIAS = 2
_WHOLE = 1  # an offset up to this means that a buffer's bytes are inside the FlatBuffer


def attribute_tflite(path: Path) -> Ledger:
    """Every byte of the file. Raises ModelError when it is damaged."""
    content = memoryview(path.read_bytes())
    try:
        return _Walk(Buffer(content)).ledger()
    except (struct.error, ValueError, IndexError, OverflowError):
        raise ModelError(
            f"{path} is damaged or cut short as a TFLite file; export or download it again"
        ) from None


@dataclass(eq=False)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: int
    quantization: Table | None
    readers: "list[tuple[_Operator, int]]" = field(default_factory=list)

    @property
    def count(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False)
class _Operator:
    """main: the largest constant that it reads. fixed: whether it reads nothing but constants,
    and what is worked out from them."""

    kind: str
    inputs: "list[_Tensor | None]"
    outputs: "list[_Tensor]"
    main: "_Tensor | None" = None
    fixed: bool = False


class _Walk:
    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.spans: list[Span] = []
        self.tensors: list[_Tensor] = []
        root = buffer.root(self._note(_NOTES, "metadata"))
        self.spans.append(Span(0, 8, _NOTES, "metadata"))
        root.text(3)
        kinds = [self._kernel(code) for code in root.tables(1, self._note(_OPERATORS))]
        self.held = [self._held(entry) for entry in root.tables(4, self._note(_TENSORS))]
        for graph in root.tables(2, self._note(_OPERATORS)):
            self._graph(graph, kinds)
        for signature in root.tables(7, self._note(_SIGNATURES)):
            signature.text(2)
            for side in (0, 1):
                for entry in signature.tables(side, self._note(_SIGNATURES)):
                    entry.text(0)
        root.vector(5, 4)
        self.notes = {}
        for entry in root.tables(6, self._note(_NOTES, "metadata")):
            self.notes[entry.number(1, "I")] = entry.text(0)
        self.stems = {tensor.name for tensor in self.tensors}

    def ledger(self) -> Ledger:
        """All bytes; of several tensors in one buffer, the first that says where it is."""
        ledger = Ledger()
        owners: dict[int, _Tensor] = {}
        for tensor in self.tensors:
            owners.setdefault(tensor.buffer, tensor)
        for tensor in self.tensors:
            self._quantization(tensor)
        for number, (start, end) in enumerate(self.held):
            if end <= start:
                continue
            owner = owners.get(number)
            if owner is None:
                note = self.notes.get(number)
                place: Place = ("metadata", note) if note else ("padding", "not referred to")
                self.spans.append(Span(start, end, place, "metadata" if note else "padding"))
                continue
            kind = self._kind(owner)
            place = ("graph", "constants") if kind == "graph" else self._place(owner)
            if ledger.repeats([self.buffer.content[start:end]]):
                kind = "duplicate"
            self.spans.append(Span(start, end, place, kind, owner.dtype))
        settle(self.spans, len(self.buffer.content), ledger, self._gap)
        return ledger

    def _note(self, place: Place, kind: Kind = "graph", dtype: str | None = None) -> Note:
        return lambda start, end: self.spans.append(Span(start, end, place, kind, dtype))

    def _kernel(self, code: Table) -> str:
        number = max(code.number(0, "b"), code.number(3, "i"))
        return Kernel(number, 1, code.text(1).encode() or None).name

    def _held(self, entry: Table) -> tuple[int, int]:
        """Where a buffer's bytes are, inside the FlatBuffer or behind it."""
        offset, size = entry.number(1, "Q"), entry.number(2, "Q")
        if offset > _WHOLE:
            if offset + size > len(self.buffer.content):
                raise ValueError("a buffer that ends behind the file")
            return offset, offset + size
        start, count = entry.vector(0, 1, lambda start, end: None)
        if start:
            self.spans.append(Span(start - 4, start, _TENSORS, "graph"))
        return start, start + count

    def _graph(self, graph: Table, kinds: list[str]) -> None:
        tensors = [self._tensor(entry) for entry in graph.tables(0, self._note(_TENSORS))]
        graph.text(4)
        graph.vector(1, 4)
        graph.vector(2, 4)
        self.tensors += tensors
        made: set[int] = set()  # ids of what is worked out from constants
        for entry in graph.tables(3, self._note(_OPERATORS)):
            inputs = [tensors[n] if n >= 0 else None for n in entry.numbers(1)]
            outputs = [tensors[n] for n in entry.numbers(2) if n >= 0]
            operator = _Operator(kinds[entry.number(0, "I")], inputs, outputs)
            held = [t for t in inputs if t is not None and self._is_constant(t)]
            operator.main = max(held, key=lambda t: t.count, default=None)
            operator.fixed = all(t is None or self._is_constant(t) or id(t) in made for t in inputs)
            made.update(map(id, outputs if operator.fixed else ()))
            for place, tensor in enumerate(inputs):
                if tensor is not None:
                    tensor.readers.append((operator, place))
            self._options(entry)

    def _options(self, entry: Table) -> None:
        options = entry.table(4, self._note(_OPERATORS))
        if options is not None and entry.number(3, "B") in (_RESHAPE, _SQUEEZE):
            options.vector(0, 4)
        entry.table(12, self._note(_OPERATORS))
        entry.vector(5, 1)
        entry.vector(7, 1)
        entry.vector(8, 4)
        start, size = entry.number(9, "Q"), entry.number(10, "Q")
        if start > _WHOLE:
            self.spans.append(Span(start, start + size, _OPERATORS, "graph"))

    def _tensor(self, entry: Table) -> _Tensor:
        shape = entry.numbers(0)
        entry.vector(7, 4)
        for variant in entry.tables(9, self._note(_TENSORS)):
            variant.vector(0, 4)
        sparsity = entry.table(6, self._note(_TENSORS))
        if sparsity is not None:
            sparsity.vector(0, 4)
            sparsity.vector(1, 4)
            for axis in sparsity.tables(2, self._note(_TENSORS)):
                for kind, part in ((2, 3), (4, 5)):
                    indices = axis.table(part, self._note(("graph", "sparsity")))
                    if indices is not None:
                        indices.vector(0, {1: 4, 2: 2, 3: 1}.get(axis.number(kind, "B"), 1))
        number, name = entry.number(2, "I"), entry.text(3, self._note(_NAMES))
        if number >= len(self.held):
            raise ValueError("a tensor in a buffer that is not there")
        spans = len(self.spans)
        quantization = entry.table(4, self._note(_ACTIVATIONS, "quantization"))
        del self.spans[spans:]  # noted once it is known where the tensor belongs
        return _Tensor(name, type_name(entry.number(1, "b")), shape, number, quantization)

    def _quantization(self, tensor: _Tensor) -> None:
        table = tensor.quantization
        if table is None:
            return
        constant = self._is_constant(tensor)
        place = self._place(tensor) if constant else _ACTIVATIONS
        note = self._note(place, "quantization")
        numbers = self._note(place, "quantization", "float32")
        table = Table(self.buffer, table.place, note)
        table.vector(0, 4, numbers)
        table.vector(1, 4, numbers)
        table.vector(2, 4, numbers)
        table.vector(3, 8, self._note(place, "quantization", "int64"))
        details = table.table(5, note)
        if details is not None:
            details.vector(0 if table.number(4, "B") == 1 else 3, 1)

    def _is_constant(self, tensor: _Tensor) -> bool:
        start, end = self.held[tensor.buffer]
        return end > start

    def _kind(self, tensor: _Tensor) -> Kind:
        for suffix in (".scale", ".zero"):
            stem = tensor.name.removesuffix(suffix)
            if stem != tensor.name and {stem, f"{stem}.int8", f"{stem}.int4"} & self.stems:
                return "quantization"
        if tensor.count < 2:
            return "graph"
        is_bias = any(op.kind in _PRODUCTS and n == _BIAS for op, n in tensor.readers[:1])
        return "weights" if is_weight_type(tensor.dtype) or is_bias else "graph"

    def _place(self, tensor: _Tensor) -> Place:
        """By its own name, unless that is a fused one; else by what its operator reads or makes."""
        own = place_of(tensor.name)
        if own and not is_fused(tensor.name):
            return own
        operator, place = self._reader(tensor)
        if operator is None:
            return own or ("operators", "not read", stem_of(tensor.name) or "unnamed")
        main = operator.main
        if main is tensor or main is None or not place_of(main.name):
            made = (place_of(each.name) for each in operator.outputs)
            found = own or next((each for each in made if each), ())
            stack = "embeddings" if operator.kind == "EMBEDDING_LOOKUP" else operator.kind
            return found or (stack, stem_of(tensor.name) or "unnamed")
        around = place_of(main.name)
        leaf = "bias" if operator.kind in _PRODUCTS and place == _BIAS else f"constant {place}"
        return (*around[:-1], leaf) if len(around) > 1 else (*around, leaf)

    def _reader(self, tensor: _Tensor) -> "tuple[_Operator | None, int]":
        """The operator that a constant goes to, behind those that only widen or turn it."""
        for _ in range(4):
            if not tensor.readers:
                return None, 0
            operator, place = tensor.readers[0]
            if not operator.fixed or not operator.outputs or not operator.outputs[0].readers:
                return operator, place
            tensor = operator.outputs[0]
        return operator, place

    def _gap(self, start: int, end: int) -> tuple[Place, Kind]:
        if any(self.buffer.content[start:end]):
            return _OPERATORS, "graph"
        return ("padding",), "padding"
