"""What runs in one inference: operators in their order, and the tensors between them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# What a weight is stored as. Integers of 32 and 64 bits are shapes, ids and axes, except where a
# reader knows better.
_WEIGHT_TYPES = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8e4m3fn": 8,
    "float8e5m2": 8,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
    "uint2": 2,
}
_OTHER_TYPES = {"int64": 64, "uint64": 64, "int32": 32, "uint32": 32, "int16": 16, "uint16": 16}
_BITS = _WEIGHT_TYPES | _OTHER_TYPES | {"bool": 8}


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in a graph. shape: none where it cannot be known without running the file.

    constant: whether the file holds it. shared: what constants that are stored once have in
    common. weight: whether it is one, and not a shape or an axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    constant: bool = False
    shared: int = 0
    weight: bool = False

    @property
    def count(self) -> int | None:
        """How many numbers it holds."""
        return None if self.shape is None else math.prod(self.shape)

    @property
    def bytes(self) -> int | None:
        """Its size in memory."""
        if self.count is None or self.dtype not in _BITS:
            return None
        return -(-self.count * _BITS[self.dtype] // 8)


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator.

    name: the node's in ONNX, its first output's in TFLite. table: which input it takes rows
    from, if it does nothing else. view: whether its output is its first input in another shape.
    macs: multiply-accumulates; none where they cannot be known.
    """

    kind: str
    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    macs: int | None = 0
    table: int | None = None
    view: bool = False


@dataclass(frozen=True)
class Graph:
    """What runs in one inference."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    operators: tuple[Operator, ...]


def origins(graph: Graph) -> dict[int, Value]:
    """The stored weight that a value is, or is worked out from without any input, by its id."""
    found: dict[int, Value] = {}
    fixed: set[int] = set()
    for op in graph.operators:
        for value in op.inputs:
            if value.constant:
                fixed.add(id(value))
            if value.weight:
                found[id(value)] = value
        if op.inputs and all(id(value) in fixed for value in op.inputs):
            made = set(map(id, op.outputs))
            fixed |= made
            first = next((found[id(v)] for v in op.inputs if id(v) in found), None)
            if first is not None:
                found |= dict.fromkeys(made, first)
    return found


def multiplied(graph: Graph) -> dict[str, Value]:
    """The stored matrices that products take, by name: no tables, and no filters."""
    stored = origins(graph)
    taken = (value for op in graph.operators if op.macs != 0 for value in op.inputs)
    found = (stored[id(value)] for value in taken if id(value) in stored)
    return {each.name: each for each in found if each.shape is not None and len(each.shape) == 2}


def is_weight_type(dtype: str) -> bool:
    """Whether numbers of this type are weights wherever they are stored."""
    return dtype in _WEIGHT_TYPES


def product(*factors: int | None) -> int | None:
    """The product, or none when a factor is not known."""
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def extent(value: Value, *axes: int) -> int | None:
    """The product of a value's sizes along axes, or none when they are not known."""
    if value.shape is None or any(
        not -len(value.shape) <= axis < len(value.shape) for axis in axes
    ):
        return None
    return math.prod(value.shape[axis] for axis in axes)


def trailing(value: Value, first: int = 1) -> int | None:
    """The product of a value's sizes from axis ``first`` on."""
    return None if value.shape is None else math.prod(value.shape[first:])


def input_shape(dims: Sequence[int | None], length: int | None) -> tuple[int, ...] | None:
    """An input's shape for one row of ``length`` tokens; a dimension that varies is none.

    The first that varies is the batch, another one behind it the length; more cannot be known.
    """
    first = tuple(1 if axis == 0 and size is None else size for axis, size in enumerate(dims))
    rest = tuple(length if size is None and axis == 1 else size for axis, size in enumerate(first))
    known = tuple(size for size in rest if size is not None)
    return known if len(known) == len(rest) else None
