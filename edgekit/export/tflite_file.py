"""Read and write TFLite: a FlatBuffer (schema version 3, mark ``TFL3``).

Rules of the writer:

1. A constant is stored once, however many tensors and graphs hold it (compared by content).
2. Buffers start at multiples of 16 bytes, as kernels and memory-mapping want.
3. The same graphs give the same bytes: no time, no path and no address takes part.
"""

from __future__ import annotations

import copy
import hashlib
import math
import struct
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import ExportError, ModelError
from edgekit.export.tflite_graph import (
    Bytes,
    Graph,
    Kernel,
    Operator,
    Program,
    Signature,
    Tensor,
    schema,
    type_name,
)

_MARK = b"TFL3"
_VERSION = 3
_ALIGNMENT = 16
_LARGEST = 2**31 - 1
_TABLES = 2**26  # more than the tables of any graph take beside the weights
_WHOLE_BYTES = ["bool", "int8", "uint8", "int16", "float16", "int32", "float32", "int64", "float64"]
_ABSENT = -1  # how an operator says that an optional input is left out

# The least that an honest file spends on a table (its offset, its first field) and a number.
_TABLE, _NUMBER = 8, 4


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
        self.schema = schema()
        self.source = source
        self.allowance = len(content)
        self.root = schema().Model.GetRootAs(content, 0)
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
            kind = type_name(fields.type)
            if kind in _WHOLE_BYTES and data.size != np.dtype(kind).itemsize * math.prod(shape):
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


def write_program(program: Program, path: Path) -> None:
    """Write ``program`` as a TFLite file.

    Raises ExportError when it would pass the 2 GB that a FlatBuffer can hold.
    """
    import flatbuffers

    buffers = _Buffers()
    kernels: dict[Kernel, int] = {}
    numbers = {
        id(graph): {id(tensor): number for number, tensor in enumerate(graph.tensors())}
        for graph in program.graphs
    }
    model = schema().ModelT()
    model.version, model.description = _VERSION, program.description
    model.subgraphs = [
        _packed_graph(graph, numbers[id(graph)], buffers, kernels) for graph in program.graphs
    ]
    model.operatorCodes = list(map(_packed_kernel, kernels))
    model.signatureDefs = [
        _packed_signature(signature, program.graphs.index(signature.graph), numbers)
        for signature in program.signatures
    ]
    model.metadata = [
        _packed_metadata(name, buffers.number(np.frombuffer(blob, np.uint8)))
        for name, blob in program.metadata.items()
    ]
    model.buffers = buffers.stored
    size = sum(buffer.data.size for buffer in buffers.stored if buffer.data is not None)
    if size > _LARGEST - _TABLES:
        raise ExportError(
            f"a TFLite file holds 2 GB at most and this model needs {size / 1e9:.1f} GB; "
            "choose a smaller scheme, or --format onnx"
        )
    builder = flatbuffers.Builder(size + 2**20)  # large enough from the start: growing copies
    builder.Finish(model.Pack(builder), _MARK)
    with path.open("wb") as stream:
        stream.write(memoryview(builder.Bytes)[builder.Head() :])


def _packed_graph(
    graph: Graph, numbers: dict[int, int], buffers: _Buffers, kernels: dict[Kernel, int]
) -> Any:
    packed = schema().SubGraphT()
    packed.name = graph.name
    packed.inputs = [numbers[id(tensor)] for tensor in graph.inputs]
    packed.outputs = [numbers[id(tensor)] for tensor in graph.outputs]
    packed.tensors = [
        _packed_tensor(tensor, buffers.number(tensor.data)) for tensor in graph.tensors()
    ]
    packed.operators = []
    for op in graph.operators:
        fields = copy.copy(op.fields) or schema().OperatorT()
        fields.opcodeIndex = kernels.setdefault(op.kernel, len(kernels))
        fields.inputs = [_ABSENT if t is None else numbers[id(t)] for t in op.inputs]
        fields.outputs = [numbers[id(tensor)] for tensor in op.outputs]
        fields.debugMetadataIndex = -1
        packed.operators.append(fields)
    return packed


def _packed_tensor(tensor: Tensor, buffer: int) -> Any:
    fields = copy.copy(tensor.fields) or schema().TensorT()
    fields.name, fields.type, fields.buffer = tensor.name, tensor.type, buffer
    fields.shape, fields.hasRank = list(tensor.shape), True
    if fields.quantization is not None and fields.quantization.scale is None:
        fields.quantization = None  # the converter gives every tensor an empty one
    return fields


def _packed_kernel(kernel: Kernel) -> Any:
    code = schema().OperatorCodeT()
    code.builtinCode, code.version, code.customCode = kernel.builtin, kernel.version, kernel.custom
    code.deprecatedBuiltinCode = min(
        kernel.builtin, schema().BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES
    )
    return code


def _packed_signature(signature: Signature, graph: int, numbers: dict[int, dict[int, int]]) -> Any:
    def maps(named: dict[str, Tensor]) -> list[Any]:
        made = []
        for name, tensor in named.items():
            entry = schema().TensorMapT()
            entry.name, entry.tensorIndex = name, numbers[id(signature.graph)][id(tensor)]
            made.append(entry)
        return made

    packed = schema().SignatureDefT()
    packed.signatureKey, packed.subgraphIndex = signature.key, graph
    packed.inputs, packed.outputs = maps(signature.inputs), maps(signature.outputs)
    return packed


def _packed_metadata(name: str, buffer: int) -> Any:
    packed = schema().MetadataT()
    packed.name, packed.buffer = name, buffer
    return packed


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
        vector = None
        if self.data is not None:
            builder.Prep(_ALIGNMENT, self.data.size)
            vector = builder.CreateByteVector(self.data.tobytes())
        schema().BufferStart(builder)
        if vector is not None:
            schema().BufferAddData(builder, vector)
        end: int = schema().BufferEnd(builder)
        return end
