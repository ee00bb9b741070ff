"""A TFLite file's graphs as plain objects.

In the file operators name tensors, tensors name buffers and signatures name subgraphs, all by
index. Here an operator holds its tensors, so that an edit is a list operation.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Tensor as Described
from edgekit.export.packing import pack_bits

Bytes = npt.NDArray[np.uint8]

_AXES = {0: "batch", 1: "length"}


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


def schema() -> Any:
    """The classes that the TFLite schema was compiled to."""
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def constant(name: str, values: npt.NDArray[Any], fields: Any = None) -> Tensor:
    """A constant of the array's type (float32, float16 or intN) and shape."""
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    number = getattr(schema().TensorType, values.dtype.name.upper())
    return Tensor(name, number, values.shape, data, fields)


def packed_constant(
    name: str, integers: npt.NDArray[np.int8], bits: int, fields: Any = None
) -> Tensor:
    """A constant of 4-bit or 2-bit integers, several to a byte."""
    data = pack_bits(integers.view(np.uint8) & np.uint8(2**bits - 1), bits)
    number = getattr(schema().TensorType, f"INT{bits}")
    return Tensor(name, number, integers.shape, data, fields)


def operator(
    name: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    *,
    version: int = 1,
    options: Any = None,
) -> Operator:
    """A built-in operator by its name in the schema; ``options``: the schema's object for it."""
    fields = schema().OperatorT()
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        fields.builtinOptionsType = getattr(schema().BuiltinOptions, kind)
        fields.builtinOptions = options
    kernel = Kernel(getattr(schema().BuiltinOperator, name), version)
    return Operator(kernel, list(inputs), list(outputs), fields)


def type_name(tensor_type: int) -> str:
    """``float32``, ``int8``, ``int4`` …: a ``schema.TensorType`` in lower case."""
    return _names("TensorType").get(tensor_type, f"type {tensor_type}").lower()


@functools.cache
def _names(enum: str) -> dict[int, str]:
    members = vars(getattr(schema(), enum)).items()
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
