"""Dynamic int8 in TFLite: int8 weights in the file, activations quantized as they come.

Rules:

1. FULLY_CONNECTED: int8 weight with a scale for each output channel; inputs are quantized to int8
   at run time, asymmetric, with one scale a row.
2. EMBEDDING_LOOKUP: int8 table with a scale for each row.
3. Convolutions: int8 filter with a scale for each output channel, widened by a DEQUANTIZE, which
   runtimes do once, at load: an image model is bound by arithmetic, not by reading its weights.
   (The kernels that take int8 filters as they are: 5 to 16 times slower on tflite-runtime 2.14.)
4. All else (biases, norms, positions) stays float32.

The scales of rules 1 and 2 are no quantization parameters but constants of the graph: the weight
says "scale 1", the bias is divided by the scales, and a MUL follows. Why: the kernel of
tflite-runtime 2.14 takes a single scale for the whole weight. It accepts per-channel parameters,
runs, and returns garbage (version 12 of the operator, which 2.14 does not know, was made to mark
the difference). The MUL is right on every runtime, costs no measurable time, and lets all
signatures share one table of scales, where parameters are repeated for each.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgekit.export.tflite_graph import Bytes, Operator, Program, Tensor, constant, operator, schema
from edgekit.steps.quantize.grid import Float32, Int8, quantize_int8

# The version of each operator that its int8 form asks for (op_version.cc in TensorFlow).
_FULLY_CONNECTED_ASYMMETRIC = 9
_EMBEDDING_LOOKUP_INT8 = 3
_DEQUANTIZE_PER_CHANNEL = 5

# Where the output channels are in each operator's filter.
_FILTER_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "CONV_3D": 4}
_WEIGHT = 1  # which input of all these operators is the weight


def quantize_weights(program: Program) -> None:
    """Rewrite ``program`` in place by the rules above. What graphs shared, they still share."""
    grid = _Grid()
    for graph in program.graphs:
        graph.operators = [new for op in graph.operators for new in _rewrite(op, grid)]


class _Grid:
    """The int8 form of each constant, made once however many graphs hold it."""

    def __init__(self) -> None:
        # The float bytes are kept as well: while they live, their id is theirs alone.
        self._made: dict[tuple[int, int], tuple[Bytes, Int8, Float32]] = {}

    def integers(self, weight: Tensor, axis: int) -> tuple[Tensor, Float32]:
        """``weight`` as a new int8 tensor that says "scale 1", and its channels' true scales."""
        assert weight.data is not None
        key = (id(weight.data), axis)
        if key not in self._made:
            self._made[key] = weight.data, *quantize_int8(weight.values(), axis)
        _, integers, scales = self._made[key]
        return constant(weight.name, integers, _scaled([1.0])), scales


def _rewrite(op: Operator, grid: _Grid) -> list[Operator]:
    if not _has_float_weight(op):
        return [op]
    if op.kernel.name == "FULLY_CONNECTED":
        return _fully_connected(op, grid)
    if op.kernel.name == "EMBEDDING_LOOKUP":
        return _embedding_lookup(op, grid)
    if op.kernel.name in _FILTER_AXIS:
        return _convolution(op, grid)
    return [op]


def _has_float_weight(op: Operator) -> bool:
    weight = op.inputs[_WEIGHT] if len(op.inputs) > _WEIGHT else None
    return (
        weight is not None
        and weight.data is not None
        and weight.type == schema().TensorType.FLOAT32
    )


def _fully_connected(op: Operator, grid: _Grid) -> list[Operator]:
    state, weight, *rest = op.inputs
    assert weight is not None
    integers, scales = grid.integers(weight, axis=0)
    bias = rest[0] if rest else None
    if bias is not None:
        bias = constant(bias.name, bias.values() / scales)
    output = op.outputs[0]
    product = _like(output, f"{output.name}.unscaled")
    options = copy.copy(op.fields.builtinOptions)
    activation, options.fusedActivationFunction = options.fusedActivationFunction, 0
    options.asymmetricQuantizeInputs = True
    inputs = [state, integers, bias]
    version = _FULLY_CONNECTED_ASYMMETRIC
    return [
        operator("FULLY_CONNECTED", inputs, [product], version=version, options=options),
        _multiply(product, constant(f"{weight.name}.scale", scales), output, activation),
    ]


def _embedding_lookup(op: Operator, grid: _Grid) -> list[Operator]:
    ids, table = op.inputs
    assert table is not None
    integers, scales = grid.integers(table, axis=0)
    scale_table = constant(f"{table.name}.scale", scales.reshape(-1, 1))
    output = op.outputs[0]
    rows = _like(output, f"{output.name}.unscaled")
    row_scales = _like(output, f"{output.name}.scale", width=1)
    version = _EMBEDDING_LOOKUP_INT8
    return [
        operator("EMBEDDING_LOOKUP", [ids, integers], [rows], version=version),
        operator("EMBEDDING_LOOKUP", [ids, scale_table], [row_scales]),
        _multiply(rows, row_scales, output),
    ]


def _convolution(op: Operator, grid: _Grid) -> list[Operator]:
    weight = op.inputs[_WEIGHT]
    assert weight is not None
    axis = _FILTER_AXIS[op.kernel.name]
    integers, scales = grid.integers(weight, axis)
    integers.fields = _scaled(scales, axis)
    widened = Tensor(f"{weight.name}.float32", weight.type, weight.shape)
    inputs = [*op.inputs[:_WEIGHT], widened, *op.inputs[_WEIGHT + 1 :]]
    return [
        operator("DEQUANTIZE", [integers], [widened], version=_DEQUANTIZE_PER_CHANNEL),
        Operator(op.kernel, inputs, op.outputs, op.fields),
    ]


def _multiply(left: Tensor, right: Tensor, output: Tensor, activation: int = 0) -> Operator:
    options = schema().MulOptionsT()
    options.fusedActivationFunction = activation
    return operator("MUL", [left, right], [output], options=options)


def _like(tensor: Tensor, name: str, width: int | None = None) -> Tensor:
    """Another value of that type and shape, or one that is ``width`` wide."""
    made = Tensor(name, tensor.type, tensor.shape, fields=copy.copy(tensor.fields))
    if width is not None:
        made.shape = (*tensor.shape[:-1], width)
        if made.fields is not None and made.fields.shapeSignature is not None:
            made.fields.shapeSignature = [*tensor.fields.shapeSignature[:-1], width]
    return made


def _scaled(scales: Any, axis: int = 0) -> Any:
    """Schema fields that say: symmetric, ``scales`` along ``axis``."""
    fields = schema().TensorT()
    fields.quantization = schema().QuantizationParametersT()
    fields.quantization.scale = np.asarray(scales, np.float32)
    fields.quantization.zeroPoint = np.zeros(len(scales), np.int64)
    fields.quantization.quantizedDimension = axis
    return fields
