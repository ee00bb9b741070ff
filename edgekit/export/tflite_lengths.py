"""One graph for every sequence length, learned from two.

A converter turns a model into a graph for one fixed length, in seconds. Two such graphs, for
lengths a < b, say how the model depends on the length, and any other length follows in
milliseconds. Rules:

1. Both graphs are the same operators, wired the same, with the same options.
2. A dimension is the same in both, or ``k * length + c`` with a whole k and a c of -2 to 2 (the
   bounds keep out length², which two points cannot tell from a line).
3. An integer in a constant of the same shape in both (a shape to RESHAPE to, where to SLICE)
   follows rule 2 as well.
4. Any other constant is the same in both, or the short one is the leading block of the long one,
   as with position embeddings. The long one is stored, and a SLICE takes the block; where a
   SLICE is unwelcome, each length stores its own block.
5. What breaks a rule (a mean's 1 / length, say) cannot be learned, and each length needs a
   conversion of its own.

Constants that do not depend on the length are the same arrays in every graph made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.export.tflite_graph import Graph, Operator, Tensor, builtin, constant, type_name

_LARGEST_OFFSET = 2


class CannotLearnError(ValueError):
    """The two graphs break a rule; the message says which."""


def learn_lengths(
    short: Graph, long: Graph, a: int, b: int, *, slices: bool = True
) -> Callable[[int], Graph]:
    """A function that makes the graph for any length up to ``b``.

    short, long: the graphs for lengths ``a < b``; of ``short`` nothing is kept.
    slices: whether leading blocks are sliced from one constant, or stored for each length.
    Raises CannotLearnError when the graphs break a rule above.
    """
    lines = _Lines(a, b)
    makers = {id(other): _maker(one, other, lines, slices) for one, other in _pairs(short, long)}

    def grow(length: int) -> Graph:
        made: dict[int, Tensor] = {}
        operators: list[Operator] = []

        def place(tensor: Tensor) -> Tensor:
            if id(tensor) not in made:
                made[id(tensor)], first = makers[id(tensor)](length)
                operators.extend(first)
            return made[id(tensor)]

        for op in long.operators:
            inputs = [None if tensor is None else place(tensor) for tensor in op.inputs]
            outputs = [place(tensor) for tensor in op.outputs]
            operators.append(Operator(op.kernel, inputs, outputs, op.fields))
        return Graph(list(map(place, long.inputs)), list(map(place, long.outputs)), operators)

    return grow


class _Lines:
    """Whole numbers at lengths ``a`` and ``b``, drawn on to other lengths (rule 2)."""

    def __init__(self, a: int, b: int) -> None:
        self.a, self.b = a, b

    def through(self, at_a: int, at_b: int) -> tuple[int, int]:
        """Slope and offset: the value at a length is ``slope * length + offset``."""
        if at_a == at_b:
            return 0, at_a
        slope, rest = divmod(at_b - at_a, self.b - self.a)
        offset = at_a - slope * self.a
        if rest or slope < 0 or abs(offset) > _LARGEST_OFFSET:
            raise CannotLearnError(f"{at_a} at length {self.a} becomes {at_b} at {self.b}")
        return slope, offset


def _pairs(short: Graph, long: Graph) -> list[tuple[Tensor, Tensor]]:
    """The tensors of both graphs side by side (rule 1)."""
    if len(short.operators) != len(long.operators):
        raise CannotLearnError("the graphs have different operators")
    pairs: dict[int, tuple[Tensor | None, Tensor | None]] = {}

    def match(left: list[Any], right: list[Any]) -> None:
        if len(left) != len(right):
            raise CannotLearnError("the graphs are wired differently")
        for one, other in zip(left, right, strict=True):
            known = pairs.setdefault(id(other), (one, other))
            if known[0] is not one or (one is None) != (other is None):
                raise CannotLearnError("the graphs are wired differently")

    match(short.inputs, long.inputs)
    for one, other in zip(short.operators, long.operators, strict=True):
        if one.kernel != other.kernel or _options(one) != _options(other):
            raise CannotLearnError(f"{one.kernel.name} differs between the graphs")
        match(list(one.inputs), list(other.inputs))
        match(one.outputs, other.outputs)
    match(short.outputs, long.outputs)
    return [(one, other) for one, other in pairs.values() if one is not None and other is not None]


def _options(op: Operator) -> dict[str, Any]:
    """An operator's options as plain values, to compare."""
    options = op.fields.builtinOptions
    if options is None:
        return {}
    return {name: np.asarray(value).tolist() for name, value in vars(options).items()}


def _maker(
    short: Tensor, long: Tensor, lines: _Lines, slices: bool
) -> Callable[[int], tuple[Tensor, list[Operator]]]:
    """How to make one tensor for a length, and the operators that must run before (rules 2 to 4)."""
    if short.type != long.type or len(short.shape) != len(long.shape):
        raise CannotLearnError(f"{long.name} differs between the graphs")
    if (short.data is None) != (long.data is None):
        raise CannotLearnError(f"{long.name} is a constant in one graph alone")
    sizes = [lines.through(*pair) for pair in zip(short.shape, long.shape, strict=True)]

    def value(length: int) -> Tensor:
        shape = tuple(slope * length + offset for slope, offset in sizes)
        return Tensor(long.name, long.type, shape, fields=long.fields)

    if long.data is None:
        return lambda length: (value(length), [])
    before, after = short.values(), long.values()
    if short.shape == long.shape:
        if np.array_equal(before, after):
            return lambda length: (long, [])
        if type_name(long.type) != "int32":
            raise CannotLearnError(f"{long.name} holds other values at another length")
        numbers = [lines.through(*pair) for pair in zip(before.flat, after.flat, strict=True)]

        def integers(length: int) -> tuple[Tensor, list[Operator]]:
            grown = [slope * length + offset for slope, offset in numbers]
            return constant(long.name, np.array(grown, np.int32).reshape(long.shape)), []

        return integers
    if not np.array_equal(before, after[tuple(map(slice, short.shape))]):
        raise CannotLearnError(f"{long.name} holds other values at another length")

    def block(length: int) -> tuple[Tensor, list[Operator]]:
        part = value(length)
        if part.shape == long.shape:
            return long, []
        if slices:
            return part, [_slice(long, part)]
        return constant(long.name, after[tuple(map(slice, part.shape))]), []

    return block


def _slice(whole: Tensor, part: Tensor) -> Operator:
    from ai_edge_litert import schema_py_generated as schema

    part.fields = None
    begin = constant(f"{whole.name}.begin", np.zeros(len(part.shape), np.int32))
    size = constant(f"{whole.name}.size", np.array(part.shape, np.int32))
    fields = schema.OperatorT()
    fields.builtinOptionsType = schema.BuiltinOptions.SliceOptions
    fields.builtinOptions = schema.SliceOptionsT()
    return Operator(builtin("SLICE"), [whole, begin, size], [part], fields)
