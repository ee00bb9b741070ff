"""Every sequence length from two: how a graph depends on its length.

A converter makes a graph for one length, in seconds. Two such graphs, for lengths a < b, show
what depends on the length, and the graph for any other length follows in milliseconds. Rules:

1. Both graphs have the same operators, wired the same, with the same options.
2. A dimension is the same in both, or ``k * length + c`` with a whole k and a c of -2 to 2 (the
   bounds keep out length², which two points cannot tell from a line).
3. So is an integer of a constant that has the same shape in both: a shape to RESHAPE to, say.
4. Any other constant is the same in both, or the short one is a block of the long one that starts
   at ``k * (longest - length)`` along each axis that varies. Position embeddings are the leading
   block (k = 0); a table by relative position, from far behind to far ahead, is the middle (k = 1).
5. What breaks a rule (a mean's 1 / length, say) cannot be learned, and each length needs a
   conversion of its own.

6. One graph is enough where its length cannot be mistaken (``read_lengths``): a prime, which
   nothing else in the graph is within 2 of a multiple of. A table by position is recognized by
   the weights that it shows, and completed from them.

A block is sliced from the one constant that all lengths share; where a SLICE is unwelcome, each
length stores its own. Constants that do not depend on the length are the same arrays in all
graphs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.export.tflite_graph import (
    Graph,
    Operator,
    Tensor,
    constant,
    operator,
    schema,
    type_name,
)

_LARGEST_OFFSET = 2


class CannotLearnError(ValueError):
    """The graphs break a rule; the message says where."""


@dataclass(frozen=True)
class Line:
    """A whole number that depends on the length: ``slope * length + offset``."""

    slope: int
    offset: int

    def at(self, length: int) -> int:
        return self.slope * length + self.offset


@dataclass(frozen=True)
class Pattern:
    """How ``graph``, whose constants serve lengths up to ``longest``, depends on the length.

    All by a tensor's id: sizes, its dimensions. integers, the values of a constant that follow
    rule 3. starts, where the block of a constant that follows rule 4 starts along each axis.
    """

    graph: Graph
    longest: int
    sizes: dict[int, tuple[Line, ...]]
    integers: dict[int, tuple[Line, ...]]
    starts: dict[int, tuple[Line, ...]]

    def block(self, tensor: Tensor, length: int) -> tuple[slice, ...]:
        """Which part of the constant that follows rule 4 serves a length."""
        starts = (line.at(length) for line in self.starts[id(tensor)])
        return tuple(map(_span, starts, self.shape(tensor, length)))

    def shape(self, tensor: Tensor, length: int) -> tuple[int, ...]:
        return tuple(line.at(length) for line in self.sizes[id(tensor)])

    def varying_axes(self, tensor: Tensor) -> list[int]:
        return [axis for axis, line in enumerate(self.sizes[id(tensor)]) if line.slope]


def learn_lengths(short: Graph, long: Graph, a: int, b: int) -> Pattern:
    """The pattern of two graphs for lengths ``a < b``; nothing of ``short`` is kept.

    Raises CannotLearnError when the graphs break rules 1 to 4.
    """
    sizes: dict[int, tuple[Line, ...]] = {}
    integers: dict[int, tuple[Line, ...]] = {}
    starts: dict[int, tuple[Line, ...]] = {}
    for one, other in _pairs(short, long):
        if one.type != other.type or (one.data is None) != (other.data is None):
            raise CannotLearnError(f"{other.name} differs between the graphs")
        sizes[id(other)] = _lines(one.shape, other.shape, a, b)
        if other.data is None:
            continue
        if one.shape != other.shape:
            starts[id(other)] = _find_block(one, other, sizes[id(other)], a, b)
        elif not np.array_equal(one.values(), other.values()):
            if type_name(other.type) != "int32":
                raise CannotLearnError(f"{other.name} holds other values at another length")
            integers[id(other)] = _lines(one.values().flat, other.values().flat, a, b)
    return Pattern(long, b, sizes, integers, starts)


def unmistakable(longest: int) -> int:
    """The largest prime up to ``longest``, which no width and no part of a width is (rule 6)."""
    primes = (n for n in range(longest, 1, -1) if all(n % d for d in range(2, n)))
    return next(primes, longest)


def read_lengths(
    graph: Graph, length: int, longest: int, weights: Iterable[npt.NDArray[Any]]
) -> Pattern:
    """The pattern up to ``longest`` of one graph, made for a ``length`` of a model's ``weights``.

    Only for graphs that hold no value worked out from the length: one graph cannot show that.
    Raises CannotLearnError where the length may be mistaken for something else.
    """
    tables = [table for table in weights if table.ndim == 2]
    sizes: dict[int, tuple[Line, ...]] = {}
    integers: dict[int, tuple[Line, ...]] = {}
    starts: dict[int, tuple[Line, ...]] = {}
    for tensor in graph.tensors():
        lines = _read(tensor, tensor.shape, length)
        sizes[id(tensor)] = lines
        if tensor.data is None:
            continue
        if any(line.slope for line in lines):
            _complete(tensor, length, longest, tables)
            starts[id(tensor)] = tuple(Line(0, 0) for _ in lines)
        elif type_name(tensor.type) == "int32":
            values = _read(tensor, tensor.values().flat, length)
            if any(line.slope for line in values):
                integers[id(tensor)] = values
    return Pattern(graph, longest, sizes, integers, starts)


def shorten(pattern: Pattern, longest: int) -> Pattern:
    """The same for lengths up to ``longest`` only, with blocks no larger than that needs."""
    a, b = longest // 2, longest
    short = graph_for_length(pattern, a, slices=False)
    return learn_lengths(short, graph_for_length(pattern, b, slices=False), a, b)


def graph_for_length(pattern: Pattern, length: int, *, slices: bool = True) -> Graph:
    """The graph for one length, up to the pattern's longest.

    slices: take blocks from one constant by a SLICE; else store the block itself.
    """

    def make(tensor: Tensor) -> tuple[Tensor, list[Operator]]:
        if id(tensor) in pattern.integers:
            values = [line.at(length) for line in pattern.integers[id(tensor)]]
            return constant(tensor.name, np.array(values, np.int32).reshape(tensor.shape)), []
        shape = pattern.shape(tensor, length)
        if tensor.data is None:
            return Tensor(tensor.name, tensor.type, shape, fields=tensor.fields), []
        if shape == tensor.shape:
            return tensor, []
        block = pattern.block(tensor, length)
        if slices:
            part = Tensor(f"{tensor.name}.block", tensor.type, shape)
            return part, [_slice(tensor, part, [span.start for span in block])]
        return constant(tensor.name, tensor.values()[block]), []

    return remake(pattern.graph, make)


def remake(graph: Graph, make: Callable[[Tensor], tuple[Tensor, list[Operator]]]) -> Graph:
    """A copy with other tensors. ``make`` also says which operators must run before."""
    made: dict[int, Tensor] = {}
    operators: list[Operator] = []

    def place(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            made[id(tensor)], first = make(tensor)
            operators.extend(first)
        return made[id(tensor)]

    inputs = list(map(place, graph.inputs))
    for op in graph.operators:
        taken = [None if tensor is None else place(tensor) for tensor in op.inputs]
        given = list(map(place, op.outputs))
        operators.append(Operator(op.kernel, taken, given, op.fields))
    return Graph(inputs, list(map(place, graph.outputs)), operators)


def _lines(at_a: Any, at_b: Any, a: int, b: int) -> tuple[Line, ...]:
    """Rules 2 and 3, number by number."""
    lines = []
    for low, high in zip(map(int, at_a), map(int, at_b), strict=True):
        slope, rest = divmod(high - low, b - a)
        offset = low - slope * a
        if low != high and (rest or slope < 0 or abs(offset) > _LARGEST_OFFSET):
            raise CannotLearnError(f"{low} at length {a} becomes {high} at {b}")
        lines.append(Line(slope, offset))
    return tuple(lines)


def _read(tensor: Tensor, numbers: Any, length: int) -> tuple[Line, ...]:
    """Rule 6, number by number."""
    lines = []
    for number in map(int, numbers):
        multiple = round(number / length)
        if multiple and number != length and abs(number - multiple * length) <= _LARGEST_OFFSET:
            raise CannotLearnError(f"{tensor.name} holds {number}, which may be {length}")
        lines.append(Line(1, 0) if number == length else Line(0, number))
    return tuple(lines)


def _complete(
    tensor: Tensor, length: int, longest: int, tables: Sequence[npt.NDArray[Any]]
) -> None:
    """Give the first rows of a table by position the rows up to ``longest`` (rule 6)."""
    *ones, rows, width = (0, *tensor.shape)
    found = tensor.values().reshape(-1, width)
    if rows == len(found) == length:
        # Some families keep a row or two for padding before the first position.
        for table, first in itertools.product(tables, range(_LARGEST_OFFSET + 1)):
            whole = np.ascontiguousarray(table[first : first + longest])
            if len(whole) == longest and np.array_equal(found, whole[:length]):
                tensor.shape = (*ones[1:], longest, width)
                tensor.data = whole.reshape(-1).view(np.uint8)
                return
    raise CannotLearnError(f"{tensor.name} has a size of {length} and is no table by position")


def _find_block(
    short: Tensor, long: Tensor, sizes: tuple[Line, ...], a: int, b: int
) -> tuple[Line, ...]:
    """Where the block that a length needs starts in ``long``, along each axis (rule 4)."""
    part, whole = short.values(), long.values()
    for steps in itertools.product(*(range(line.slope + 1) for line in sizes)):
        starts = tuple(Line(-step, step * b) for step in steps)
        block = tuple(map(_span, (line.at(a) for line in starts), part.shape))
        if np.array_equal(part, whole[block]):
            return starts
    raise CannotLearnError(f"{long.name} holds other values at another length")


def _pairs(short: Graph, long: Graph) -> list[tuple[Tensor, Tensor]]:
    """The tensors of both graphs side by side (rule 1)."""
    pairs: dict[int, tuple[Tensor | None, Tensor | None]] = {}

    def match(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> None:
        for one, other in zip(left, right, strict=True):
            if pairs.setdefault(id(other), (one, other))[0] is not one:
                raise CannotLearnError("the graphs are wired differently")

    try:
        match(short.inputs, long.inputs)
        for one, other in zip(short.operators, long.operators, strict=True):
            if one.kernel != other.kernel or _options(one) != _options(other):
                raise CannotLearnError(f"{one.kernel.name} differs between the graphs")
            match(one.inputs, other.inputs)
            match(one.outputs, other.outputs)
        match(short.outputs, long.outputs)
    except CannotLearnError:
        raise
    except ValueError as error:
        raise CannotLearnError("the graphs have different operators") from error
    found = []
    for left, right in pairs.values():
        if left is not None and right is not None:
            if len(left.shape) != len(right.shape):
                raise CannotLearnError(f"{right.name} differs between the graphs")
            found.append((left, right))
    return found


def _options(op: Operator) -> dict[str, Any]:
    """An operator's options as plain values, to compare."""
    options = op.fields.builtinOptions
    if options is None or (op.kernel.name == "RESHAPE" and len(op.inputs) > 1):
        return {}  # a RESHAPE's shape is an input; then the one in its options is not read
    return {name: np.asarray(value).tolist() for name, value in vars(options).items()}


def _slice(whole: Tensor, part: Tensor, start: list[int]) -> Operator:
    begin = constant(f"{part.name}.begin", np.array(start, np.int32))
    size = constant(f"{part.name}.size", np.array(part.shape, np.int32))
    return operator("SLICE", [whole, begin, size], [part], options=schema().SliceOptionsT())


def _span(start: int, size: int) -> slice:
    return slice(start, start + size)
