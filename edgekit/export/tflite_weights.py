"""Weights of 8, 4 and 2 bits in TFLite. Rules, by scheme:

1. ``int8-dynamic``, FULLY_CONNECTED: int8 weight with a scale for each output channel; inputs are
   quantized to int8 at run time, asymmetric, with one scale a row.
2. ``int8-weights``, FULLY_CONNECTED: int8 weight with a scale for each output channel, widened as
   in rule 5; the product stays as it is, in float32.
3. ``int4-weights`` and ``int4-all``, FULLY_CONNECTED: int4 weight, integers from -7 to 7, with a
   scale for each output channel; inputs as in rule 1. A weight of less than 4 rows or 32 columns,
   or of columns that do not fill their last byte, follows rule 1. ``int2-weights``: int2, from -1
   to 1 (LiteRT 2.2).
4. All schemes, EMBEDDING_LOOKUP: int8 table with a scale for each row. ``int4-all``, the word
   table: integers from -7 to 7, two to an int8 (rules 2 and 3 of ``packing``).
5. All schemes, convolutions: int8 filter with a scale for each output channel, widened by a
   DEQUANTIZE, which runtimes do once, at load: an image model is bound by arithmetic, not by
   reading its weights. (The kernels that take int8 filters as they are: 5 to 16 times slower on
   tflite-runtime 2.14.)
6. All schemes, LSTM: int8 weights, which the kernel takes with one scale each; the state and each
   step's input are quantized to int8 at run time.
7. All else (biases, norms, positions) stays float32.

The scales of rules 1 and 4 are no quantization parameters but constants of the graph: the weight
says "scale 1", the bias is divided by the scales, and a MUL follows. Why: the kernel of
tflite-runtime 2.14 takes a single scale for the whole weight. It accepts per-channel parameters,
runs, and returns garbage (version 12 of the operator, which 2.14 does not know, was made to mark
the difference). The MUL is right on every runtime, costs no measurable time, and lets all
signatures share one table of scales, where parameters are repeated for each.

Those of rule 3 are quantization parameters: 2.14 has another kernel for 4 bits, which reads them
by channel, but takes only the sizes that rule 3 names (others end in the kernel above); and
XNNPACK knows 4 bits by channel only. With "scale 1" ai-edge-litert 1.0 refuses the file and 1.4
runs it without XNNPACK.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgekit.artifact import MATRIX_BITS, Scheme
from edgekit.export.packing import STEP, pack_rows, table_bits
from edgekit.export.tflite_graph import (
    Bytes,
    Graph,
    Kernel,
    Operator,
    Program,
    Tensor,
    constant,
    operator,
    packed_constant,
    schema,
)
from edgekit.steps.quantize.grid import Float32, Int8, quantize

# The version of each operator that its int8 form asks for (op_version.cc in TensorFlow).
_FULLY_CONNECTED_ASYMMETRIC = 9
_EMBEDDING_LOOKUP_INT8 = 3
_DEQUANTIZE_PER_CHANNEL = 5

# Where the output channels are in each operator's filter.
_FILTER_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0, "CONV_3D": 4}
_LSTM_INT8 = 2
_LSTM_MATRICES = 8  # of four gates, for the input and for the state
_WHOLE = -1  # no axis: one scale for all
_WEIGHT = 1  # which input of all these operators is the weight

# What the 4-bit kernel of tflite-runtime 2.14 takes.
_LEAST_ROWS, _LEAST_COLUMNS = 4, 32


def quantize_weights(program: Program, scheme: Scheme) -> None:
    """Rewrite ``program`` in place by the rules above. What graphs shared, they still share."""
    grid = _Grid()
    for graph in program.graphs:
        _Rewriting(scheme, grid).rewrite(graph)


def _stored(name: str, integers: Int8, bits: int, table: bool) -> Tensor:
    if bits == 8:
        return constant(name, integers)
    return constant(name, pack_rows(integers)) if table else packed_constant(name, integers, bits)


class _Grid:
    """The integers of each constant, made once however many graphs hold it."""

    def __init__(self) -> None:
        # The float bytes are kept as well: while they live, their id is theirs alone.
        self._made: dict[tuple[int, int, int, bool], tuple[Bytes, Tensor, Float32]] = {}

    def integers(
        self, weight: Tensor, axis: int, bits: int = 8, *, table: bool = False
    ) -> tuple[Tensor, Float32]:
        """``weight`` as a new tensor that says "scale 1", and its channels' true scales."""
        assert weight.data is not None
        key = (id(weight.data), axis, bits, table)
        if key not in self._made:
            integers, scales = quantize(weight.values(), bits, axis)
            self._made[key] = weight.data, _stored(weight.name, integers, bits, table), scales
        _, found, scales = self._made[key]
        fields = _scaled([1.0])
        return Tensor(weight.name, found.type, found.shape, found.data, fields), scales


class _Rewriting:
    """A graph while it is being rewritten. instead: what operators read in place of a weight, by
    the id of its bytes and its axis; those that shared a weight share this.
    """

    def __init__(self, scheme: Scheme, grid: _Grid) -> None:
        self.scheme = scheme
        self.grid = grid
        self.instead: dict[tuple[int, int], Tensor] = {}

    def rewrite(self, graph: Graph) -> None:
        graph.operators = [new for op in graph.operators for new in self._operator(op)]

    def _operator(self, op: Operator) -> list[Operator]:
        if not _has_float_weight(op):
            return [op]
        if op.kernel.name == "UNIDIRECTIONAL_SEQUENCE_LSTM":
            return [self._recurrent(op)]
        if op.kernel.name == "FULLY_CONNECTED":
            weight = op.inputs[_WEIGHT]
            assert weight is not None
            if self.scheme == "int8-weights":
                return self._widen(op, axis=0)
            bits = matrix_bits(self.scheme, weight.shape)
            if bits < 8:
                return self._fully_connected_packed(op, bits)
            return self._fully_connected_8(op)
        if op.kernel.name == "EMBEDDING_LOOKUP":
            return self._embedding_lookup(op)
        if op.kernel.name in _FILTER_AXIS:
            return self._widen(op, _FILTER_AXIS[op.kernel.name])
        return [op]

    def _fully_connected_8(self, op: Operator) -> list[Operator]:
        """Rule 1."""
        state, weight, *rest = op.inputs
        assert weight is not None
        integers, scales = self.grid.integers(weight, axis=0)
        bias = rest[0] if rest else None
        if bias is not None:
            bias = constant(bias.name, bias.values() / scales)
        output = op.outputs[0]
        product = _like(output, f"{output.name}.unscaled")
        options = copy.copy(op.fields.builtinOptions)
        activation, options.fusedActivationFunction = options.fusedActivationFunction, 0
        return [
            _dynamic([state, integers, bias], product, options),
            _multiply(product, constant(f"{weight.name}.scale", scales), output, activation),
        ]

    def _fully_connected_packed(self, op: Operator, bits: int) -> list[Operator]:
        """Rule 3."""
        state, weight, *rest = op.inputs
        assert weight is not None
        key = id(weight.data), 0
        if key not in self.instead:
            integers, scales = self.grid.integers(weight, axis=0, bits=bits)
            integers.fields = _scaled(scales)
            self.instead[key] = integers
        options = copy.copy(op.fields.builtinOptions)
        return [_dynamic([state, self.instead[key], *rest], op.outputs[0], options)]

    def _embedding_lookup(self, op: Operator) -> list[Operator]:
        """Rule 4."""
        ids, table = op.inputs
        assert table is not None
        bits = table_bits(self.scheme, table.shape)
        integers, scales = self.grid.integers(table, 0, bits, table=True)
        scale_table = constant(f"{table.name}.scale", scales.reshape(-1, 1))
        output = op.outputs[0]
        rows = _like(output, f"{output.name}.unscaled")
        row_scales = _like(output, f"{output.name}.scale", width=1)
        version = _EMBEDDING_LOOKUP_INT8
        packed = (
            rows if bits == 8 else _like(rows, f"{output.name}.packed", width=table.shape[-1] // 2)
        )
        return [
            operator("EMBEDDING_LOOKUP", [ids, integers], [packed], version=version),
            *([] if bits == 8 else _unpack(packed, rows)),
            operator("EMBEDDING_LOOKUP", [ids, scale_table], [row_scales]),
            _multiply(rows, row_scales, output),
        ]

    def _recurrent(self, op: Operator) -> Operator:
        """Rule 6."""
        inputs = list(op.inputs)
        for place in range(_WEIGHT, _WEIGHT + _LSTM_MATRICES):
            weight = inputs[place]
            assert weight is not None
            key = id(weight.data), _WHOLE
            if key not in self.instead:
                integers, scales = quantize(weight.values().reshape(1, -1), 8, 0)
                stored = constant(weight.name, integers.reshape(weight.shape))
                self.instead[key] = Tensor(
                    weight.name, stored.type, stored.shape, stored.data, _scaled(scales)
                )
            inputs[place] = self.instead[key]
        return Operator(Kernel(op.kernel.builtin, _LSTM_INT8), inputs, op.outputs, op.fields)

    def _widen(self, op: Operator, axis: int) -> list[Operator]:
        """Rule 5: the operator as it is, its weight stored as integers."""
        weight = op.inputs[_WEIGHT]
        assert weight is not None
        key = id(weight.data), axis
        first: list[Operator] = []
        if key not in self.instead:
            integers, scales = self.grid.integers(weight, axis)
            integers.fields = _scaled(scales, axis)
            self.instead[key] = Tensor(f"{weight.name}.float32", weight.type, weight.shape)
            ends = [integers], [self.instead[key]]
            first.append(operator("DEQUANTIZE", *ends, version=_DEQUANTIZE_PER_CHANNEL))
        inputs = [*op.inputs[:_WEIGHT], self.instead[key], *op.inputs[_WEIGHT + 1 :]]
        return [*first, Operator(op.kernel, inputs, op.outputs, op.fields)]


def matrix_bits(scheme: Scheme, shape: tuple[int, ...]) -> int:
    """Bits of a FULLY_CONNECTED's weight of this shape (rules 1 and 3)."""
    rows, columns = shape
    bits = MATRIX_BITS.get(scheme, 8)
    fills = columns * bits % 8 == 0
    return bits if fills and rows >= _LEAST_ROWS and columns >= _LEAST_COLUMNS else 8


def _has_float_weight(op: Operator) -> bool:
    weight = op.inputs[_WEIGHT] if len(op.inputs) > _WEIGHT else None
    return (
        weight is not None
        and weight.data is not None
        and weight.type == schema().TensorType.FLOAT32
    )


def _dynamic(inputs: list[Tensor | None], output: Tensor, options: Any) -> Operator:
    """A FULLY_CONNECTED that quantizes its input when it runs."""
    options.asymmetricQuantizeInputs = True
    version = _FULLY_CONNECTED_ASYMMETRIC
    return operator("FULLY_CONNECTED", inputs, [output], version=version, options=options)


def _unpack(packed: Tensor, rows: Tensor) -> list[Operator]:
    """Both numbers of each byte, side by side (rule 2 of ``packing``)."""
    step, part = constant("packing.step", np.array([STEP], np.float32)), packed.name
    quotient, second, whole, first = (
        _like(packed, f"{part}.{name}") for name in ("quotient", "second", "whole", "first")
    )
    divided, joined = schema().DivOptionsT(), schema().ConcatenationOptionsT()
    joined.axis = len(rows.shape) - 1
    return [
        operator("DIV", [packed, step], [quotient], options=divided),
        operator("ROUND", [quotient], [second]),
        _multiply(second, step, whole),
        operator("SUB", [packed, whole], [first], options=schema().SubOptionsT()),
        operator("CONCATENATION", [first, second], [rows], options=joined),
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
