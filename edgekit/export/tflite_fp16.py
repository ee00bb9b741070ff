"""Half precision in TFLite: float16 constants, widened where they are read.

Rules:

1. A float32 constant of more than one element becomes a float16 constant and a DEQUANTIZE to
   float32. GPU delegates, and XNNPACK where the CPU has half-precision arithmetic, take the pair
   as a float16 weight; any other runtime widens it once, at load.
2. A constant with a number beyond float16's range (65504) stays float32; so do single numbers,
   such as a norm's epsilon, which float16 would round to zero.
3. A table of rows (EMBEDDING_LOOKUP) takes two bytes a number as well, as integers of 16 bits on
   one scale, stored in two int8 tables: the high bytes and the low. GPU delegates take a float16
   table in no operator that tflite-runtime 2.14 knows, nor 16-bit integers; int8 rows they do.
   The largest error is 1/65278 of the table's largest number.
4. Inputs, outputs and all other operators stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.export.tflite_graph import (
    Graph,
    Operator,
    Program,
    Tensor,
    constant,
    operator,
    schema,
    type_name,
)

_LARGEST = float(np.finfo(np.float16).max)
# Versions of the operators.
_DEQUANTIZE_FLOAT16 = 3
_DEQUANTIZE_INT8 = 2
_GATHER_INT8 = 2
# The largest integer whose halves are both within ±127: the high one counts 256s.
_LARGEST_PAIR = 127 * 256 + 127


def halve_weights(program: Program) -> None:
    """Rewrite ``program`` in place by the rules above."""
    for graph in program.graphs:
        _halve(graph)


def _halve(graph: Graph) -> None:
    graph.operators = [new for op in graph.operators for new in _split_table(op)]
    widened: dict[int, Tensor] = {}
    first: list[Operator] = []
    for tensor in graph.tensors():
        if not _shrinks(tensor):
            continue
        half = constant(tensor.name, tensor.values().astype(np.float16))
        wide = Tensor(f"{tensor.name}.float32", tensor.type, tensor.shape)
        widened[id(tensor)] = wide
        first.append(operator("DEQUANTIZE", [half], [wide], version=_DEQUANTIZE_FLOAT16))
    for op in graph.operators:
        op.inputs = [widened.get(id(tensor), tensor) for tensor in op.inputs]
    graph.operators = first + graph.operators


def _shrinks(tensor: Tensor | None) -> bool:
    """Whether it is a float32 constant that rule 1 or 3 is for."""
    if tensor is None or tensor.data is None or type_name(tensor.type) != "float32":
        return False
    values = tensor.values()
    return values.size > 1 and bool(np.abs(values).max() <= _LARGEST)


def _split_table(op: Operator) -> list[Operator]:
    """A look-up in two int8 tables by rule 3; any other operator as it is."""
    if op.kernel.name != "EMBEDDING_LOOKUP" or not _shrinks(op.inputs[1]):
        return [op]
    ids, table = op.inputs
    (rows,) = op.outputs
    assert table is not None
    values = table.values()
    # A table of zeros is as good on any scale.
    scale = float(np.abs(values).max()) / _LARGEST_PAIR or 1.0
    integers = np.rint(values / scale).astype(np.int32)
    low = (integers + 128) % 256 - 128
    halves = {"high": ((integers - low) // 256, 256 * scale), "low": (low, scale)}
    made: list[Operator] = []
    parts: list[Tensor] = []
    for name, (half, unit) in halves.items():
        stored = constant(f"{table.name}.{name}", half.astype(np.int8), _on_scale(unit))
        found = Tensor(f"{rows.name}.{name}.int8", stored.type, rows.shape, fields=_on_scale(unit))
        parts.append(Tensor(f"{rows.name}.{name}", rows.type, rows.shape))
        options = schema().GatherOptionsT()
        gather = operator("GATHER", [stored, ids], [found], version=_GATHER_INT8, options=options)
        made += [gather, operator("DEQUANTIZE", [found], parts[-1:], version=_DEQUANTIZE_INT8)]
    return [*made, operator("ADD", parts, [rows], options=schema().AddOptionsT())]


def _on_scale(unit: float) -> Any:
    """Schema fields that say: symmetric integers, each worth ``unit``."""
    fields = schema().TensorT()
    fields.quantization = schema().QuantizationParametersT()
    fields.quantization.scale = np.array([unit], np.float32)
    fields.quantization.zeroPoint = np.zeros(1, np.int64)
    return fields
