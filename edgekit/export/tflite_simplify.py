"""Fewer operators for the same numbers: what a converter leaves behind, taken out again.

Each operator costs a microsecond or so, which a short text notices. Rules:

1. Matrices are multiplied in four dimensions. torch multiplies in three, so that a BATCH_MATMUL
   comes wrapped in RESHAPEs that take a leading 1 away and bring it back.
2. A MEAN keeps its dimension, instead of dropping it for a RESHAPE to put back an operator later.
3. A constant to add or multiply by has no leading 1s: they are understood.
4. A FULLY_CONNECTED keeps the dimensions of its input, where nobody minds. GPU delegates take
   the rows of a matrix for a batch, and further on may give wrong answers without a word.
5. A matrix is padded by a CONCATENATION: GPU delegates pad three dimensions or four.
6. A RESHAPE to the shape that is there already goes, and so does one that nobody reads.
7. What is transposed or multiplied of constants alone (a filter, by its batch norm) is a constant.
   The converter does it to small ones; a filter above a megabyte would be worked out in each run,
   and would stay in float.

Besides, no shape then holds the length twice, so that a -1 can stand for it, and graphs for
different lengths differ in nothing else.
"""

from __future__ import annotations

import copy
import itertools
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

# Operators that work element by element, or within the last axis.
_POINTWISE = {
    "ADD",
    "SUB",
    "MUL",
    "SOFTMAX",
    "GELU",
    "LOGISTIC",
    "RELU",
    "TANH",
    "MAXIMUM",
    "MINIMUM",
}


def simplify(graph: Graph) -> None:
    """Rewrite ``graph`` in place by the rules above."""
    _fold_constants(graph)
    links = _Links(graph)
    for op in graph.operators:
        if op.kernel.name == "BATCH_MATMUL":
            _multiply_in_four(op, links)
        elif op.kernel.name == "MEAN":
            _keep_dimension(op, links)
        elif op.kernel.name == "FULLY_CONNECTED":
            _keep_rank(op, links)
        elif op.kernel.name in _POINTWISE:
            op.inputs = [_without_ones(tensor, op) for tensor in op.inputs]
    graph.operators = [_padded_matrix(op) for op in graph.operators]
    _drop_reshapes(graph)


class _Links:
    """Who makes a tensor, and who reads it."""

    def __init__(self, graph: Graph) -> None:
        self.makers = {id(tensor): op for op in graph.operators for tensor in op.outputs}
        self.readers: dict[int, list[Operator]] = {}
        for op in graph.operators:
            for tensor in op.inputs:
                self.readers.setdefault(id(tensor), []).append(op)

    def made_by_reshape(self, tensor: Tensor | None) -> Tensor | None:
        """What the tensor was before the RESHAPE that made it."""
        maker = self.makers.get(id(tensor))
        return maker.inputs[0] if maker and maker.kernel.name == "RESHAPE" else None

    def until_reshape(self, tensor: Tensor) -> list[Tensor] | None:
        """``tensor`` and all of its shape that pointwise operators make of it, if after those
        only operators follow that take any shape, or widen to (1, shape). None if others do.
        """
        found = [tensor]
        for reader in self.readers.get(id(tensor), []):
            result = reader.outputs[0]
            if reader.kernel.name == "RESHAPE" or _makes_matrix(reader):
                continue
            if reader.kernel.name not in _POINTWISE or result in found:
                return None
            if result.shape == tensor.shape:
                further = self.until_reshape(result)
                if further is None:
                    return None
                found += further
            elif result.shape != (1, *tensor.shape):
                return None
        # A tensor that nobody reads leaves the graph, and has to keep its shape.
        return found if id(tensor) in self.readers else None


def _fold_constants(graph: Graph) -> None:
    """Rule 7."""
    stored: dict[int, Tensor] = {}
    operators = []
    for op in graph.operators:
        op.inputs = [stored.get(id(tensor), tensor) for tensor in op.inputs]
        values = None if op.outputs[0] in graph.outputs else _folded(op)
        if values is None:
            operators.append(op)
            continue
        result = op.outputs[0]
        stored[id(result)] = constant(result.name, values, result.fields)
    graph.operators = operators


def _folded(op: Operator) -> npt.NDArray[Any] | None:
    """What an operator on constants alone gives, if it is one of rule 7."""
    name = op.kernel.name
    if name not in ("TRANSPOSE", "MUL") or len(op.inputs) != 2:
        return None
    given = [
        tensor.values() for tensor in op.inputs if tensor is not None and tensor.data is not None
    ]
    if len(given) != 2:
        return None
    first, second = given
    if name == "TRANSPOSE":
        return first.transpose(second)
    if op.fields.builtinOptions.fusedActivationFunction:
        return None
    product: npt.NDArray[Any] = first * second
    return product


def _multiply_in_four(op: Operator, links: _Links) -> None:
    wide = [links.made_by_reshape(tensor) for tensor in op.inputs]
    results = links.until_reshape(op.outputs[0])
    if results is None:
        return
    for before, after in zip(wide, op.inputs, strict=True):
        if before is None or after is None or before.shape != (1, *after.shape):
            return
    op.inputs = wide
    for tensor in results:
        tensor.shape = (1, *tensor.shape)


def _keep_dimension(op: Operator, links: _Links) -> None:
    state, axes = op.inputs
    results = links.until_reshape(op.outputs[0])
    if op.fields.builtinOptions.keepDims or results is None or state is None or axes is None:
        return
    kept = tuple(
        1 if axis in axes.values().reshape(-1) % len(state.shape) else size
        for axis, size in enumerate(state.shape)
    )
    reshapes = [reader for tensor in results for reader in links.readers[id(tensor)]]
    if not all(r.outputs[0].shape == kept for r in reshapes if r.kernel.name == "RESHAPE"):
        return
    op.fields = copy.copy(op.fields)
    op.fields.builtinOptions = copy.copy(op.fields.builtinOptions)
    op.fields.builtinOptions.keepDims = True
    for tensor in results:
        tensor.shape = kept


def _makes_matrix(op: Operator) -> bool:
    """Whether it is a product that takes its input for a matrix, however many dimensions."""
    return op.kernel.name == "FULLY_CONNECTED" and not op.fields.builtinOptions.keepNumDims


def _keep_rank(op: Operator, links: _Links) -> None:
    state, product = op.inputs[0], op.outputs[0]
    results = links.until_reshape(product)
    if results is None or state is None or not _makes_matrix(op):
        return
    if state.shape[:-1] != (1, *product.shape[:-1]):
        return
    op.fields = copy.copy(op.fields)
    op.fields.builtinOptions = copy.copy(op.fields.builtinOptions)
    op.fields.builtinOptions.keepNumDims = True
    for tensor in results:
        tensor.shape = (1, *tensor.shape)


def _padded_matrix(op: Operator) -> Operator:
    state, result = op.inputs[0], op.outputs[0]
    if op.kernel.name != "PAD" or state is None or len(state.shape) != 2:
        return op
    paddings = op.inputs[1]
    assert paddings is not None
    padded = [axis for axis, sides in enumerate(paddings.values()) if sides.any()]
    if len(padded) != 1:
        return op
    sides = [_zeros(state, result, padded[0], width) for width in paddings.values()[padded[0]]]
    options = schema().ConcatenationOptionsT()
    options.axis = padded[0]
    parts = [part for part in (sides[0], state, sides[1]) if part is not None]
    return operator("CONCATENATION", parts, [result], options=options)


def _zeros(state: Tensor, result: Tensor, axis: int, width: int) -> Tensor | None:
    """That many rows or columns of nothing; None for none."""
    if not width:
        return None
    shape = list(state.shape)
    shape[axis] = int(width)
    return constant(f"{result.name}.zeros", np.zeros(shape, type_name(state.type)))


def _without_ones(tensor: Tensor | None, op: Operator) -> Tensor | None:
    if tensor is None or tensor.data is None or tensor.shape[:1] != (1,):
        return tensor
    others = [len(other.shape) for other in op.inputs if other not in (None, tensor)]
    if len(tensor.shape) > max(others, default=0):
        return tensor
    shape = tuple(itertools.dropwhile(lambda size: size == 1, tensor.shape))
    return Tensor(tensor.name, tensor.type, shape, tensor.data, tensor.fields)


def _drop_reshapes(graph: Graph) -> None:
    read = {id(tensor) for op in graph.operators for tensor in op.inputs}
    kept = {id(tensor) for tensor in graph.outputs}
    same: dict[int, Tensor] = {}
    operators = []
    for op in graph.operators:
        op.inputs = [same.get(id(tensor), tensor) for tensor in op.inputs]
        if op.kernel.name == "RESHAPE" and id(op.outputs[0]) not in kept:
            source, result = op.inputs[0], op.outputs[0]
            if id(result) not in read:
                continue
            if source is not None and source.shape == result.shape:
                same[id(result)] = source
                continue
        operators.append(op)
    graph.operators = operators
