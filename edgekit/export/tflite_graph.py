"""A TFLite file as plain objects: read, edit, write.

The file is a FlatBuffer (schema version 3, mark ``TFL3``) full of indices: operators name tensors,
tensors name buffers, signatures name subgraphs. Here an operator holds its tensors, so that an
edit is a list operation; indices exist only in the file. Rules of the writer:

1. A constant is stored once, however many tensors and graphs hold it (compared by content).
2. Buffers start at multiples of 16 bytes, as kernels and memory-mapping want.
3. The same graphs give the same bytes: no time, no path and no address takes part.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Tensor as Described
from edgekit.errors import ExportError, ModelError

Bytes = npt.NDArray[np.uint8]

_MARK = b"TFL3"
_VERSION = 3
_ALIGNMENT = 16
_LARGEST = 2**31 - 1
_AXES = {0: "batch", 1: "length"}
_ELEMENT_BYTES = {
    name: np.dtype(name).itemsize
    for name in (
        "bool",
        "int8",
        "uint8",
        "int16",
        "float16",
        "int32",
        "float32",
        "int64",
        "float64",
    )
}
_TABLE = 8  # bytes: its offset in a vector, and its own first field
_NUMBER = 4
_ABSENT = -1  # how an operator says that an optional input is left out


@dataclass(eq=False)
class Tensor:
    """A value in a graph; a constant when its bytes are there.

    type: a ``schema.TensorType``. data: uint8 [N], little-endian, row-major.
    fields: the schema's TensorT it was read from, which keeps quantization and the like.
    """

    name: str
    type: int
    shape: tuple[int, ...]
    data: Bytes | None = None
    fields: Any = None

    def values(self) -> npt.NDArray[Any]:
        """The constant as an array of its own type and shape (whole-byte types only)."""
        assert self.data is not None
        return self.data.view(type_name(self.type)).reshape(self.shape)


@dataclass(frozen=True)
class Kernel:
    """What runs an operator: a ``schema.BuiltinOperator`` and its version, or a custom name."""

    builtin: int
    version: int = 1
    custom: bytes | None = None

    @property
    def name(self) -> str:
        """``FULLY_CONNECTED`` …"""
        if self.custom is not None:
            return self.custom.decode(errors="replace")
        return _names("BuiltinOperator").get(self.builtin, f"BUILTIN_{self.builtin}")


@dataclass(eq=False)
class Operator:
    """One operator; an optional input that is left out is None.

    fields: the schema's OperatorT it was read from, which keeps its options.
    """

    kernel: Kernel
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    fields: Any = None


@dataclass(eq=False)
class Graph:
    inputs: list[Tensor]
    outputs: list[Tensor]
    operators: list[Operator]
    name: str = ""

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once, in the order of first use."""
        seen: set[int] = set()
        uses: list[Sequence[Tensor | None]] = [self.inputs]
        uses += [use for op in self.operators for use in (op.inputs, op.outputs)]
        for tensor in itertools.chain(*uses, self.outputs):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


@dataclass(eq=False)
class Signature:
    """How an app calls a graph: a key, and a name for each input and output."""

    key: str
    graph: Graph
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass(eq=False)
class Program:
    """A whole file. ``metadata``: the named blobs that it carries."""

    graphs: list[Graph]
    signatures: list[Signature]
    metadata: dict[str, bytes] = field(default_factory=dict)
    description: str = ""


def constant(name: str, values: npt.NDArray[Any], fields: Any = None) -> Tensor:
    """A constant of the array's type (float32, float16, int8 or int32) and shape."""
    from ai_edge_litert import schema_py_generated as schema

    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    number = getattr(schema.TensorType, values.dtype.name.upper())
    return Tensor(name, number, values.shape, data, fields)


def operator(
    name: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    *,
    version: int = 1,
    options: Any = None,
) -> Operator:
    """A built-in operator by its name in the schema; ``options``: the schema's object for it."""
    from ai_edge_litert import schema_py_generated as schema

    fields = schema.OperatorT()
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        fields.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        fields.builtinOptions = options
    kernel = Kernel(getattr(schema.BuiltinOperator, name), version)
    return Operator(kernel, list(inputs), list(outputs), fields)


def type_name(tensor_type: int) -> str:
    """``float32``, ``int8``, ``int4`` …: a ``schema.TensorType`` in lower case."""
    return _names("TensorType").get(tensor_type, f"type {tensor_type}").lower()


def _names(enum: str) -> dict[int, str]:
    from ai_edge_litert import schema_py_generated as schema

    members = vars(getattr(schema, enum)).items()
    return {value: name for name, value in members if isinstance(value, int)}


def describe(program: Program) -> tuple[tuple[Described, ...], tuple[Described, ...]]:
    """What goes in and comes out: by name, dtype and shape.

    Named by the signatures, or by the graph where there are none. A dimension that varies, from
    run to run or from signature to signature, has a name: ``batch`` is the first, ``length`` the
    second.
    """
    ways = [(s.inputs, s.outputs) for s in program.signatures]
    if not ways:
        graph = program.graphs[0]
        ways = [({t.name: t for t in graph.inputs}, {t.name: t for t in graph.outputs})]
    inputs, outputs = (
        tuple(
            _described(name, [way[end][name] for way in ways if name in way[end]])
            for name in ways[0][end]
        )
        for end in (0, 1)
    )
    return inputs, outputs


def _described(name: str, tensors: list[Tensor]) -> Described:
    dims: list[int | str] = []
    for axis, size in enumerate(tensors[0].shape):
        fixed = all(t.shape[axis : axis + 1] == (size,) and not _varies(t, axis) for t in tensors)
        dims.append(size if fixed else _AXES.get(axis, f"axis {axis}"))
    return Described(name, type_name(tensors[0].type), tuple(dims))


def _varies(tensor: Tensor, axis: int) -> bool:
    signature = None if tensor.fields is None else tensor.fields.shapeSignature
    return signature is not None and len(signature) > axis and signature[axis] < 0


# Reading


def read_program(content: bytes | mmap, source: str) -> Program:
    """What a TFLite file holds; constants are views of ``content``.

    Raises ModelError, naming ``source``, for anything but a whole and sound TFLite file. The work
    is bounded by the file's size, whatever its tables say.
    """
    if bytes(content[4:8]) != _MARK:
        raise ModelError(f"{source} is not a TFLite file (no {_MARK.decode()} mark at byte 4)")
    try:
        return _Reader(content, source).program()
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{source} is damaged or cut short as a TFLite file; export or download it again"
        ) from error


class _Reader:
    """Reads one file. Each element visited is paid for out of the file's size, by the bytes that
    an honest file spends on it at least; tables that repeat one another without end run dry.
    """

    def __init__(self, content: bytes | mmap, source: str) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.source = source
        self.allowance = len(content)
        self.root = schema.Model.GetRootAs(content, 0)
        self.buffers: list[Bytes | None] = []
        self.kernels: list[Kernel] = []

    def program(self) -> Program:
        root, each = self.root, self._each
        if root.Version() != _VERSION:
            raise ValueError("schema version")
        self.buffers = [self._buffer(root.Buffers(i)) for i in each(root.BuffersLength())]
        self.kernels = [
            self._kernel(root.OperatorCodes(i)) for i in each(root.OperatorCodesLength())
        ]
        tensors, graphs = [], []
        for i in each(root.SubgraphsLength()):
            subgraph = root.Subgraphs(i)
            tensors.append(
                [self._tensor(subgraph.Tensors(j)) for j in each(subgraph.TensorsLength())]
            )
            graphs.append(self._graph(subgraph, tensors[-1]))
        if not graphs:
            raise ValueError("no graph")
        signatures = []
        for i in each(root.SignatureDefsLength()):
            entry = root.SignatureDefs(i)
            of = _checked(entry.SubgraphIndex())
            signatures.append(self._signature(entry, graphs[of], tensors[of]))
        metadata = {}
        for i in each(root.MetadataLength()):
            blob = self.buffers[root.Metadata(i).Buffer()]
            metadata[_text(root.Metadata(i).Name())] = b"" if blob is None else blob.tobytes()
        return Program(graphs, signatures, metadata, _text(root.Description()))

    def _each(self, count: int, size: int = _TABLE) -> range:
        self.allowance -= count * size
        if self.allowance < 0:
            raise ValueError("more elements than bytes")
        return range(count)

    def _buffer(self, buffer: Any) -> Bytes | None:
        if buffer.Offset() > 1:
            raise ModelError(f"{self.source} is over 2 GB; edgekit reads smaller TFLite files")
        return buffer.DataAsNumpy() if buffer.DataLength() else None

    def _kernel(self, code: Any) -> Kernel:
        # Numbers up to 127 once lived in a byte of their own; newer writers fill both fields.
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        return Kernel(number, code.Version(), code.CustomCode())

    def _tensor(self, source: Any) -> Tensor:
        self._each(source.ShapeLength(), _NUMBER)
        if source.Sparsity() is not None:
            self._each(source.Sparsity().DimMetadataLength())
        fields = self.schema.TensorT.InitFromObj(source)
        shape = tuple(fields.shape.tolist()) if source.ShapeLength() else ()
        data = self.buffers[fields.buffer]
        if data is not None and fields.sparsity is None:
            size = _ELEMENT_BYTES.get(type_name(fields.type))
            if size is not None and data.size != size * math.prod(shape):
                raise ValueError("a constant that does not fill its shape")
        return Tensor(_text(fields.name), fields.type, shape, data, fields)

    def _graph(self, source: Any, tensors: list[Tensor]) -> Graph:
        operators = [
            self._operator(source.Operators(i), tensors)
            for i in self._each(source.OperatorsLength())
        ]
        inputs = [
            tensors[_checked(source.Inputs(i))] for i in self._each(source.InputsLength(), _NUMBER)
        ]
        outputs = [
            tensors[_checked(source.Outputs(i))]
            for i in self._each(source.OutputsLength(), _NUMBER)
        ]
        return Graph(inputs, outputs, operators, _text(source.Name()))

    def _operator(self, source: Any, tensors: list[Tensor]) -> Operator:
        inputs = [source.Inputs(i) for i in self._each(source.InputsLength(), _NUMBER)]
        outputs = [source.Outputs(i) for i in self._each(source.OutputsLength(), _NUMBER)]
        return Operator(
            self.kernels[source.OpcodeIndex()],
            [None if i == _ABSENT else tensors[_checked(i)] for i in inputs],
            [tensors[_checked(i)] for i in outputs],
            self.schema.OperatorT.InitFromObj(source),
        )

    def _signature(self, source: Any, graph: Graph, tensors: list[Tensor]) -> Signature:
        def named(entry: Any) -> tuple[str, Tensor]:
            return _text(entry.Name()), tensors[_checked(entry.TensorIndex())]

        return Signature(
            _text(source.SignatureKey()),
            graph,
            dict(named(source.Inputs(i)) for i in self._each(source.InputsLength())),
            dict(named(source.Outputs(i)) for i in self._each(source.OutputsLength())),
        )


def _checked(index: int) -> int:
    if index < 0:
        raise IndexError(index)
    return index


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode(errors="replace")


# Writing


def write_program(program: Program, path: Path) -> None:
    """Write ``program`` as a TFLite file.

    Raises ExportError when it would pass the 2 GB that a FlatBuffer can hold.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    buffers = _Buffers()
    kernels: dict[Kernel, int] = {}
    model = schema.ModelT()
    model.version = _VERSION
    model.description = program.description
    model.subgraphs = []
    tensors: dict[int, dict[int, int]] = {}  # graph → tensor → its index in the file
    for graph in program.graphs:
        tensors[id(graph)] = numbers = {id(t): n for n, t in enumerate(graph.tensors())}
        subgraph = schema.SubGraphT()
        subgraph.name = graph.name
        subgraph.inputs = [numbers[id(tensor)] for tensor in graph.inputs]
        subgraph.outputs = [numbers[id(tensor)] for tensor in graph.outputs]
        subgraph.tensors = []
        for tensor in graph.tensors():
            packed = copy.copy(tensor.fields) or schema.TensorT()
            packed.name, packed.type = tensor.name, tensor.type
            packed.shape, packed.hasRank = list(tensor.shape), True
            packed.buffer = buffers.number(tensor.data)
            if packed.quantization is not None and packed.quantization.scale is None:
                packed.quantization = None  # the converter gives every tensor an empty one
            subgraph.tensors.append(packed)
        subgraph.operators = []
        for op in graph.operators:
            packed = copy.copy(op.fields) or schema.OperatorT()
            packed.opcodeIndex = kernels.setdefault(op.kernel, len(kernels))
            packed.inputs = [_ABSENT if t is None else numbers[id(t)] for t in op.inputs]
            packed.outputs = [numbers[id(tensor)] for tensor in op.outputs]
            packed.debugMetadataIndex = -1
            subgraph.operators.append(packed)
        model.subgraphs.append(subgraph)
    model.operatorCodes = [_operator_code(kernel) for kernel in kernels]
    model.signatureDefs = []
    for signature in program.signatures:
        numbers = tensors[id(signature.graph)]
        entry = schema.SignatureDefT()
        entry.signatureKey = signature.key
        entry.subgraphIndex = program.graphs.index(signature.graph)
        entry.inputs = [_tensor_map(name, numbers[id(t)]) for name, t in signature.inputs.items()]
        entry.outputs = [_tensor_map(name, numbers[id(t)]) for name, t in signature.outputs.items()]
        model.signatureDefs.append(entry)
    model.metadata = []
    for name, blob in program.metadata.items():
        metadata = schema.MetadataT()
        metadata.name, metadata.buffer = name, buffers.number(np.frombuffer(blob, np.uint8))
        model.metadata.append(metadata)
    model.buffers = buffers.stored
    weights = sum(len(buffer.data) for buffer in buffers.stored if buffer.data is not None)
    if weights > _LARGEST - 2**26:
        raise ExportError(
            f"a TFLite file holds 2 GB at most and this model needs {weights / 1e9:.1f} GB; "
            "choose a smaller scheme, or the onnx format"
        )
    builder = flatbuffers.Builder(weights + 2**20)  # large enough from the start: growing copies
    builder.Finish(model.Pack(builder), _MARK)
    with path.open("wb") as stream:
        stream.write(memoryview(builder.Bytes)[builder.Head() :])


class _Buffers:
    """The file's buffers, each content once. Number 0 is empty, by the schema's rule."""

    def __init__(self) -> None:
        self.stored = [_Buffer(None)]
        self._numbers: dict[object, int] = {}
        # The array is kept as well: while it lives, its id is its own.
        self._seen: dict[int, tuple[Bytes, int]] = {}

    def number(self, data: Bytes | None) -> int:
        if data is None or data.size == 0:
            return 0
        if id(data) not in self._seen:
            key = (data.size, hashlib.sha256(data.data).digest())
            if key not in self._numbers:
                self._numbers[key] = len(self.stored)
                self.stored.append(_Buffer(data))
            self._seen[id(data)] = (data, self._numbers[key])
        return self._seen[id(data)][1]


@dataclass(frozen=True)
class _Buffer:
    """Stands in for the schema's BufferT, whose ``Pack`` aligns to one byte."""

    data: Bytes | None

    def Pack(self, builder: Any) -> int:
        from ai_edge_litert import schema_py_generated as schema

        vector = None
        if self.data is not None:
            builder.Prep(_ALIGNMENT, self.data.size)
            vector = builder.CreateByteVector(self.data.tobytes())
        schema.BufferStart(builder)
        if vector is not None:
            schema.BufferAddData(builder, vector)
        end: int = schema.BufferEnd(builder)
        return end


def _operator_code(kernel: Kernel) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode, code.version, code.customCode = kernel.builtin, kernel.version, kernel.custom
    code.deprecatedBuiltinCode = min(
        kernel.builtin, schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
    )
    return code


def _tensor_map(name: str, number: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, number
    return entry
