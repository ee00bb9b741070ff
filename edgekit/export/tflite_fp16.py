"""Half precision in TFLite: float16 constants, widened where they are read.

Rules:

1. A float32 constant of more than one element becomes a float16 constant and a DEQUANTIZE to
   float32. GPU delegates, and XNNPACK where the CPU has half-precision arithmetic, take the pair
   as a float16 weight; any other runtime widens it once, at load.
2. A constant with a number beyond float16's range (65504) stays float32; so do single numbers,
   such as a norm's epsilon, which float16 would round to zero.
3. Inputs, outputs and operators stay as they are.
"""

from __future__ import annotations

import numpy as np

from edgekit.export.tflite_graph import (
    Graph,
    Operator,
    Program,
    Tensor,
    constant,
    operator,
    type_name,
)

_LARGEST = float(np.finfo(np.float16).max)
_DEQUANTIZE_FLOAT16 = 3  # the operator's version


def halve_weights(program: Program) -> None:
    """Rewrite ``program`` in place by the rules above."""
    for graph in program.graphs:
        _halve(graph)


def _halve(graph: Graph) -> None:
    widened: dict[int, Tensor] = {}
    first: list[Operator] = []
    for tensor in graph.tensors():
        if tensor.data is None or type_name(tensor.type) != "float32":
            continue
        values = tensor.values()
        if values.size > 1 and np.abs(values).max() <= _LARGEST:
            half = constant(tensor.name, values.astype(np.float16))
            wide = Tensor(f"{tensor.name}.float32", tensor.type, tensor.shape)
            widened[id(tensor)] = wide
            first.append(operator("DEQUANTIZE", [half], [wide], version=_DEQUANTIZE_FLOAT16))
    for op in graph.operators:
        op.inputs = [widened.get(id(tensor), tensor) for tensor in op.inputs]
    graph.operators = first + graph.operators
