"""One graph for every length.

Rules, for what depends on the length (``tflite_lengths``):

1. The length is -1 in shapes to RESHAPE to, once each. Other integers may not depend on it.
2. A leading block of rows is looked up, row by row, by position: how many tokens the attention
   mask has before. (Padding gets the position of the next token; it is masked.) Other blocks of
   constants cannot be had.
3. No STRIDED_SLICE along the length. It could count from the end, where a SLICE cannot; but
   XNNPACK, as of LiteRT 2.3, keeps the first run's length then, and answers wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.export.tflite_graph import Graph, Operator, Tensor, constant, operator, schema
from edgekit.export.tflite_lengths import CannotLearnError, Pattern, remake

_ANY = -1


def graph_for_any_length(pattern: Pattern, mask: Tensor) -> Graph:
    """One graph for every length up to the pattern's longest.

    mask: that input of the pattern's graph which is the attention mask, int32 [1, length]: ones,
    then zeros. Raises CannotLearnError when the graph breaks a rule above.
    """
    shapes: set[int] = set()
    for op in pattern.graph.operators:
        if op.kernel.name == "RESHAPE":
            shapes.update(map(id, op.inputs[1:]))
        if op.kernel.name == "STRIDED_SLICE" and pattern.varying_axes(op.outputs[0]):
            raise CannotLearnError("a STRIDED_SLICE along the length")
    positions = _Positions(_free(mask, pattern.shape(mask, 1), [1]))

    def make(tensor: Tensor) -> tuple[Tensor, list[Operator]]:
        if tensor is mask:
            return positions.mask, []
        if id(tensor) in pattern.integers:
            lines = pattern.integers[id(tensor)]
            if id(tensor) not in shapes or sum(line.slope > 0 for line in lines) != 1:
                raise CannotLearnError(f"{tensor.name} holds the length where no -1 can stand")
            values = [_ANY if line.slope else line.offset for line in lines]
            return constant(tensor.name, np.array(values, np.int32)), []
        axes = pattern.varying_axes(tensor)
        if not axes:
            return tensor, []
        if tensor.data is None:
            return _free(tensor, pattern.shape(tensor, 1), axes), []
        *ones, rows, width = tensor.shape
        leading = not any(line.slope for line in pattern.starts[id(tensor)])
        if not leading or axes != [len(ones)] or rows != pattern.longest or set(ones) > {1}:
            raise CannotLearnError(f"{tensor.name} is no table with a row for each position")
        return positions.look_up(tensor, tensor.values().reshape(rows, width))

    return remake(pattern.graph, make)


class _Positions:
    """The position of each token, worked out from the mask for the first table that asks."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask
        self.counts: Tensor | None = None

    def look_up(self, table: Tensor, rows: Any) -> tuple[Tensor, list[Operator]]:
        """The table's rows for the positions, and the operators that fetch them."""
        first: list[Operator] = []
        if self.counts is None:
            options = schema().CumsumOptionsT()
            options.exclusive = True
            flat = constant("positions.shape", np.array([_ANY], np.int32))
            before = _free(self.mask, self.mask.shape, [1], "positions.row")
            self.counts = _free(self.mask, (1,), [0], "positions")
            along = constant("positions.axis", np.array(1, np.int32))
            first = [
                operator("CUMSUM", [self.mask, along], [before], options=options),
                operator("RESHAPE", [before, flat], [self.counts]),
            ]
        found = _free(table, (1, rows.shape[1]), [0], f"{table.name}.rows")
        first.append(
            operator("EMBEDDING_LOOKUP", [self.counts, constant(table.name, rows)], [found])
        )
        return found, first


def _free(like: Tensor, shape: tuple[int, ...], axes: list[int], name: str = "") -> Tensor:
    """A value whose ``axes`` vary from run to run; ``shape`` has a 1 there, by custom."""
    fields = schema().TensorT()
    fields.shapeSignature = [_ANY if axis in axes else size for axis, size in enumerate(shape)]
    return Tensor(name or like.name, like.type, shape, fields=fields)
