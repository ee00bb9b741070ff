"""Static integers in TFLite: in the file, and between its operators.

Takes a program whose graphs hold marks (see ``steps/quantize/points``): a clamp to plus and minus
2^20 and a number stands behind each value that is an integer. Rules:

1. An operator with an integer kernel (``_VERSIONS``) whose inputs are integers and whose output is
   marked writes integers; a product scaled by a number or put through a ReLU does that itself.
2. Operators that only move numbers move integers, on their input's grid.
3. All else takes floats (DEQUANTIZE) and gives floats; a mark behind it is a QUANTIZE.
4. A product's weight: int8, a scale for each output channel; its bias int32 on the scale of state
   times weight. A FULLY_CONNECTED becomes a CONV_2D of one by one: before version 12 of the
   operator, which tflite-runtime 2.14 does not know, it has one scale for the whole weight. XNNPACK
   runs both as the same product, in the same time.
5. Tables are int8 on one scale, and rows leave them as integers.
6. Activations are int8, or int16 around zero (16x8): then biases are int64, and rows of a table
   that meet int16 are widened to it on their own scale. The way is through a float, which loses
   nothing: tflite-runtime 2.14 has no QUANTIZE from int8 to int16.
7. The ends are float, unless ``integer_ends``: then they are integers as well.
8. A product that reads floats, in a layer that stays float, is left to ``tflite_weights``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgekit.errors import ExportError
from edgekit.export.static_tables import Tables, channel_scales, table_integers
from edgekit.export.tflite_graph import (
    Bytes,
    Graph,
    Operator,
    Program,
    Tensor,
    constant,
    operator,
    schema,
    type_name,
)
from edgekit.steps.quantize.fake import MARK
from edgekit.steps.quantize.grid import Float32, Grid, Int8, quantize_int8

# Operators with kernels for activations of so many bits, and the versions that those ask for
# (op_version.cc in TensorFlow).
_VERSIONS = {
    8: {
        "ADD": 2,
        "BATCH_MATMUL": 2,
        "CONV_2D": 3,
        "DEPTHWISE_CONV_2D": 3,
        "FULLY_CONNECTED": 4,
        "GELU": 2,
        "LOGISTIC": 2,
        "MEAN": 2,
        "SOFTMAX": 2,
        "TANH": 2,
    },
    16: {
        "ADD": 3,
        "BATCH_MATMUL": 3,
        "CONV_2D": 4,
        "DEPTHWISE_CONV_2D": 5,
        "FULLY_CONNECTED": 7,
        "LOGISTIC": 3,
        "MEAN": 3,
        "SOFTMAX": 3,
        "TANH": 3,
    },
}
_MOVING = {
    "RESHAPE": {8: 1, 16: 1},
    "TRANSPOSE": {8: 2, 16: 5},
    "SLICE": {8: 2, 16: 4},
    "STRIDED_SLICE": {8: 2, 16: 2},
    "EXPAND_DIMS": {8: 1, 16: 1},
    "SQUEEZE": {8: 1, 16: 1},
    "PAD": {8: 2, 16: 3},
    "PADV2": {8: 2, 16: 3},
    "MAX_POOL_2D": {8: 2, 16: 3},
}
_PRODUCTS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0}
_RELUS = {"RELU": 1, "RELU6": 3}  # and their numbers as fused activations
_EMBEDDING_LOOKUP_INT8 = 3
_DEQUANTIZE = {8: 2, 16: 3}
_QUANTIZE = {8: 1, 16: 2}
_REQUANTIZE = 2
_INTEGERS: dict[int, type[np.integer[Any]]] = {8: np.int8, 16: np.int16}


def quantize_static(
    program: Program,
    grids: Sequence[Grid],
    tables: Tables,
    *,
    integer_ends: bool = False,
) -> None:
    """Rewrite ``program`` in place by the rules above.

    grids: of each mark, by its number. Raises ExportError when a mark is torn apart, or when an
    end that is asked to be an integer belongs to an operator that works in float.
    """
    weights = _Weights(tables)
    for graph in program.graphs:
        made = _Rewriting(graph, grids, weights, integer_ends)
        graph.operators = made.operators
        if integer_ends:
            made.narrow_ends(program)


class _Weights:
    """The integers of each constant, made once however many graphs hold it."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._scales: dict[int, tuple[Bytes, float | None]] = {}
        # The float bytes are kept as well: while they live, their id is theirs alone.
        self._made: dict[tuple[int, str], tuple[Bytes, Int8, Float32]] = {}

    def product(self, weight: Tensor, kind: str) -> tuple[Int8, Float32]:
        """Integers, and a scale for each output channel."""
        assert weight.data is not None
        key = id(weight.data), kind
        if key not in self._made:
            axis, scale = _PRODUCTS[kind], self.scale(weight)
            if scale is None:
                made = quantize_int8(weight.values(), axis)
            else:
                integers = table_integers(weight.values(), scale)
                made = integers, channel_scales(scale, weight.shape[axis])
            self._made[key] = weight.data, *made
        return self._made[key][1:]

    def scale(self, tensor: Tensor | None) -> float | None:
        """The scale of a constant that is a table."""
        if tensor is None or not _is_float_constant(tensor):
            return None
        assert tensor.data is not None
        if id(tensor.data) not in self._scales:
            self._scales[id(tensor.data)] = tensor.data, self.tables.scale(tensor.values())
        return self._scales[id(tensor.data)][1]

    def table(self, table: Tensor) -> tuple[Int8, Float32]:
        """Integers on one scale."""
        scale = self.scale(table)
        assert table.data is not None and scale is not None
        key = id(table.data), "table"
        if key not in self._made:
            integers = table_integers(table.values(), scale)
            self._made[key] = table.data, integers, channel_scales(scale, 1)
        return self._made[key][1:]


class _Rewriting:
    """One graph while it is being rewritten."""

    def __init__(
        self, graph: Graph, grids: Sequence[Grid], weights: _Weights, integer_ends: bool
    ) -> None:
        self.graph, self.grids, self.weights = graph, grids, weights
        self.bits = max((grid.bits for grid in grids), default=8)
        self.operators: list[Operator] = []
        self.readers: dict[int, list[Operator]] = {}
        for op in graph.operators:
            for tensor in op.inputs:
                if tensor is not None:
                    self.readers.setdefault(id(tensor), []).append(op)
        # A mark's clamp: what goes in, by what comes out behind both of its operators.
        self.marks: dict[int, tuple[int, Tensor]] = {}
        self.done: set[int] = set()
        self._find_marks()
        # Of each value of the old graph: its integers, and whether they were widened already.
        self.integers: dict[int, tuple[Tensor, Grid]] = {}
        self.widened: set[int] = set()
        self.wide_tables: dict[int, Tensor] = {}
        self.wider: dict[int, Tensor] = {}  # int16 of what is int8
        self.pictures: dict[int, Tensor] = {}
        for tensor in graph.inputs:
            self._mark(tensor)
        for op in graph.operators:
            if id(op) not in self.done:
                self._rewrite(op)
        if not integer_ends:
            for tensor in graph.outputs:
                self._wide(tensor)

    def narrow_ends(self, program: Program) -> None:
        """Rule 7: the ends of the graph are the integers themselves."""
        graph = self.graph
        swap: dict[int, Tensor] = {}
        for op in list(self.operators):
            if op.kernel.name == "QUANTIZE" and any(op.inputs[0] is t for t in graph.inputs):
                assert op.inputs[0] is not None
                swap[id(op.inputs[0])] = op.outputs[0]
                self.operators.remove(op)
        graph.operators = self.operators
        graph.inputs = [swap.get(id(tensor), tensor) for tensor in graph.inputs]
        ends = {id(t): self.integers[id(t)][0] for t in graph.outputs if id(t) in self.integers}
        graph.outputs = [ends.get(id(tensor), tensor) for tensor in graph.outputs]
        for place, tensors in (("first", graph.inputs), ("last", graph.outputs)):
            if any(type_name(tensor.type) == "float32" for tensor in tensors):
                raise ExportError(
                    f"the {place} operator of this model works in float, so that the file cannot "
                    f"{'take' if place == 'first' else 'give'} integers; choose a target with "
                    "float inputs and outputs, as android-arm64"
                )
        for signature in program.signatures:
            if signature.graph is graph:
                signature.inputs = {n: swap.get(id(t), t) for n, t in signature.inputs.items()}
                signature.outputs = {n: ends.get(id(t), t) for n, t in signature.outputs.items()}

    def _find_marks(self) -> None:
        for op in self.graph.operators:
            number = _mark_number(op, "MAXIMUM")
            if number is None:
                continue
            (inner,) = self.readers[id(op.outputs[0])]
            if _mark_number(inner, "MINIMUM") != number:
                raise ExportError("the converter has torn a mark apart; choose int8-dynamic")
            value = op.inputs[0]
            assert value is not None
            self.marks[id(value)] = number, inner.outputs[0]
            self.done |= {id(op), id(inner)}

    def _rewrite(self, op: Operator) -> None:
        op = _as_reshape(op)
        if op.kernel.name == "EMBEDDING_LOOKUP" and self._is_table(op.inputs[1]):
            self._look_up(op)
        elif op.kernel.name in _MOVING and self._moves_integers(op):
            self._move(op)
        elif not self._integer(op):
            self._float(op)

    def _moves_integers(self, op: Operator) -> bool:
        state = op.inputs[0]
        if state is not None and self._is_table(state):
            self._constant(state)
        if op.kernel.name == "PADV2" and id(state) in self.integers:
            return self._filling(op) is not None
        return id(state) in self.integers

    def _filling(self, op: Operator) -> Tensor | None:
        """The integer that a PADV2 pads with: before a max pool, less than any number."""
        filling, (_, grid) = op.inputs[2], self.integers[id(op.inputs[0])]
        if filling is None or not _is_float_constant(filling) or filling.values().size != 1:
            return None
        number = float(filling.values().reshape(-1)[0])
        if number > grid.range[0] and number != 0:
            return None
        integer = grid.zero if number == 0 else grid.lowest
        fields = _on_grid(None, np.array([grid.scale], np.float32), grid.zero)
        return constant(filling.name, np.array([integer], _INTEGERS[grid.bits]), fields)

    def _move(self, op: Operator) -> None:
        """Rule 2."""
        state, grid = self.integers[id(op.inputs[0])]
        output = self._made(op.outputs[0], grid)
        version = _MOVING[op.kernel.name][grid.bits]
        others = op.inputs[1:]
        if op.kernel.name == "PADV2":
            others = [op.inputs[1], self._filling(op)]
        made = operator(op.kernel.name, [state, *others], [output], version=version)
        made.fields = op.fields
        self.operators.append(made)
        self._settle(op.outputs[0], output, grid)

    def _look_up(self, op: Operator) -> None:
        """Rule 5."""
        ids, table = op.inputs
        assert table is not None
        stored, grid = self._constant(table)
        output = self._made(op.outputs[0], grid)
        inputs = [ids, stored]
        version = _EMBEDDING_LOOKUP_INT8
        self.operators.append(operator("EMBEDDING_LOOKUP", inputs, [output], version=version))
        self._settle(op.outputs[0], output, grid)

    def _constant(self, table: Tensor) -> tuple[Tensor, Grid]:
        if id(table) not in self.integers:
            integers, scales = self.weights.table(table)
            grid = Grid(float(scales[0]), 0)
            stored = constant(table.name, integers, _on_grid(None, scales, 0))
            self.integers[id(table)] = stored, grid
        return self.integers[id(table)]

    def _is_table(self, tensor: Tensor | None) -> bool:
        return self.weights.scale(tensor) is not None

    def _integer(self, op: Operator) -> bool:
        """Rule 1: whether the operator writes integers now."""
        kind = op.kernel.name
        if kind not in _VERSIONS[self.bits]:
            return False
        product = kind in _PRODUCTS
        operands = [t for t in (op.inputs[:1] if product else op.inputs) if t is not None]
        if kind == "MEAN":
            operands = operands[:1]
        if product and (len(op.inputs) < 2 or not _is_float_constant(op.inputs[1])):
            return False
        tail = self._tail(op.outputs[0], product, product or kind == "ADD")
        if tail is None:
            return False
        for operand in operands:
            if id(operand) not in self.integers and self._is_table(operand):
                self._constant(operand)
        if any(id(operand) not in self.integers for operand in operands):
            return False
        mark, factor, activation, passed = tail
        number, marked = self.marks[id(mark)]
        grid = self.grids[number]
        self.done |= passed
        output = self._made(marked, grid)
        inputs: list[Tensor | None] = [
            self._operand(t) if t is not None and id(t) in self.integers else t for t in op.inputs
        ]
        if product:
            inputs[1:] = self._product(op, factor)
        fused = op.fields.builtinOptions.fusedActivationFunction if product else 0
        if kind == "FULLY_CONNECTED":
            self._convolve(inputs, output, activation or fused)
        else:
            made = operator(kind, inputs, [output], version=_VERSIONS[self.bits][kind])
            made.fields = copy.copy(op.fields)
            made.fields.builtinOptions = copy.copy(op.fields.builtinOptions)
            if activation:
                made.fields.builtinOptions.fusedActivationFunction = activation
            if kind == "ADD" and self.bits == 16:
                made.fields.builtinOptions.potScaleInt16 = False  # scales are no powers of two
            self.operators.append(made)
        self._settle(mark, output, grid)
        self._settle(marked, output, grid)
        return True

    def _tail(
        self, output: Tensor, product: bool, relus: bool
    ) -> tuple[Tensor, float, int, set[int]] | None:
        """The value whose mark an operator writes to; the factor and ReLU before it.

        Also the operators that go into the kernel. ``None`` when somebody reads a float.
        """
        passed: set[int] = set()
        factor, activation = 1.0, 0
        while True:
            readers = self.readers.get(id(output), [])
            if len(readers) != 1:
                return None
            if id(output) in self.marks:
                return output, factor, activation, passed
            (reader,) = readers
            scaling = _scaling(reader, output)
            if product and scaling is not None and not activation:
                factor *= scaling
            elif relus and reader.kernel.name in _RELUS and not activation:
                activation = _RELUS[reader.kernel.name]
            else:
                return None
            passed.add(id(reader))
            output = reader.outputs[0]

    def _product(self, op: Operator, factor: float) -> list[Tensor | None]:
        """Weight and bias by rule 4, with the factor in their scales."""
        state, weight, *rest = op.inputs
        assert weight is not None and state is not None
        _, grid = self.integers[id(state)]
        integers, scales = self.weights.product(weight, op.kernel.name)
        scales = (scales * np.float32(factor)).astype(np.float32)
        axis = _PRODUCTS[op.kernel.name]
        stored = constant(weight.name, integers, _on_grid(None, scales, 0, axis))
        bias = rest[0] if rest else None
        floats = np.zeros(len(scales)) if bias is None else bias.values().astype(np.float64)
        steps = np.float64(grid.scale) * scales.astype(np.float64)
        whole = np.clip(np.rint(floats * factor / steps), 1 - 2**31, 2**31 - 1)
        whole = whole.astype(np.int32 if self.bits == 8 else np.int64)
        name = f"{weight.name}.bias" if bias is None else bias.name
        fields = _on_grid(None, steps.astype(np.float32), 0)
        return [stored, constant(name, whole, fields)]

    def _convolve(self, inputs: list[Tensor | None], output: Tensor, activation: int) -> None:
        """Rule 4: rows as the pixels of a picture that is one pixel high."""
        state, weight, bias = inputs
        assert state is not None and weight is not None and bias is not None
        outer, inner = weight.shape
        filters = constant(weight.name, weight.values().reshape(outer, 1, 1, inner), weight.fields)
        if id(state) not in self.pictures:
            shape = [1, 1, -1, inner]
            self.pictures[id(state)] = _reshaped_like(state, f"{state.name}.picture", shape)
            self._reshape(state, self.pictures[id(state)], f"picture.{inner}", shape)
        made = _reshaped_like(output, f"{output.name}.picture", [1, 1, -1, outer])
        options = schema().Conv2DOptionsT()
        options.strideW = options.strideH = 1
        options.dilationWFactor = options.dilationHFactor = 1
        options.fusedActivationFunction = activation
        inputs = [self.pictures[id(state)], filters, bias]
        version = _VERSIONS[self.bits]["CONV_2D"]
        self.operators.append(operator("CONV_2D", inputs, [made], version=version, options=options))
        signature = output.fields.shapeSignature
        free = list(output.shape) if signature is None else [int(size) for size in signature]
        self._reshape(made, output, f"{output.name}.shape", free)

    def _reshape(self, state: Tensor, output: Tensor, name: str, shape: list[int]) -> None:
        target = constant(name, np.array(shape, np.int32))
        options = schema().ReshapeOptionsT()
        self.operators.append(operator("RESHAPE", [state, target], [output], options=options))

    def _float(self, op: Operator) -> None:
        """Rule 3."""
        inputs = [None if tensor is None else self._wide(tensor) for tensor in op.inputs]
        self.operators.append(Operator(op.kernel, inputs, op.outputs, op.fields))
        for output in op.outputs:
            self._mark(output)

    def _mark(self, value: Tensor) -> None:
        """A QUANTIZE behind a float that is marked."""
        if id(value) not in self.marks:
            return
        number, marked = self.marks[id(value)]
        output = self._made(marked, self.grids[number])
        version = _QUANTIZE[self.bits]
        self.operators.append(operator("QUANTIZE", [value], [output], version=version))
        self._settle(marked, output, self.grids[number])

    def _settle(self, value: Tensor, integers: Tensor, grid: Grid) -> None:
        """``value`` is these integers from now on; a mark behind it is another grid."""
        self.integers[id(value)] = integers, grid
        if id(value) in self.marks:
            number, marked = self.marks[id(value)]
            if self.grids[number] == grid:
                self.integers[id(marked)] = integers, grid
            elif id(marked) not in self.integers:
                output = self._made(marked, self.grids[number])
                source = integers if grid.bits == self.bits else self._wide(value)
                self.operators.append(operator("QUANTIZE", [source], [output], version=_REQUANTIZE))
                self.integers[id(marked)] = output, self.grids[number]

    def _wide(self, tensor: Tensor) -> Tensor:
        """The floats of a value of the old graph: itself, behind a DEQUANTIZE where need be."""
        if self._is_table(tensor):
            return self._wide_table(tensor)
        if id(tensor) in self.integers and id(tensor) not in self.widened and tensor.data is None:
            stored, grid = self.integers[id(tensor)]
            version = _DEQUANTIZE[grid.bits]
            self.operators.append(operator("DEQUANTIZE", [stored], [tensor], version=version))
            self.widened.add(id(tensor))
        return tensor

    def _operand(self, value: Tensor) -> Tensor:
        """The integers of a value as a kernel takes them (rule 6)."""
        stored, grid = self.integers[id(value)]
        if grid.bits == self.bits:
            return stored
        if id(value) not in self.wider:
            output = self._made(value, Grid(grid.scale, 0, self.bits))
            version = _QUANTIZE[self.bits]
            wide = [self._wide(value)]
            self.operators.append(operator("QUANTIZE", wide, [output], version=version))
            self.wider[id(value)] = output
        return self.wider[id(value)]

    def _wide_table(self, table: Tensor) -> Tensor:
        """A table that a float operator reads: rounded all the same."""
        stored, _ = self._constant(table)
        if id(table) not in self.wide_tables:
            wide = Tensor(f"{table.name}.float32", table.type, table.shape)
            self.wide_tables[id(table)] = wide
            version = _DEQUANTIZE[8]
            self.operators.append(operator("DEQUANTIZE", [stored], [wide], version=version))
        return self.wide_tables[id(table)]

    def _made(self, like: Tensor, grid: Grid) -> Tensor:
        """A new value on a grid, of the shape of ``like``."""
        fields = _on_grid(like.fields, np.array([grid.scale], np.float32), grid.zero)
        kind = f"int{grid.bits}"
        number = getattr(schema().TensorType, kind.upper())
        return Tensor(f"{like.name}.{kind}", number, like.shape, fields=fields)


def _as_reshape(op: Operator) -> Operator:
    """A SUM over axes of one number each, which the mean of a single pixel is converted to."""
    if op.kernel.name != "SUM" or op.inputs[0] is None:
        return op
    shape = op.outputs[0].shape
    # A length that is one here may be another in the app.
    for tensor in (op.inputs[0], op.outputs[0]):
        free = tensor.fields.shapeSignature
        if free is not None and min(free, default=0) < 0:
            return op
    if np.prod(shape) != np.prod(op.inputs[0].shape):
        return op
    target = constant(f"{op.outputs[0].name}.shape", np.array(shape, np.int32))
    options = schema().ReshapeOptionsT()
    return operator("RESHAPE", [op.inputs[0], target], op.outputs, options=options)


def _mark_number(op: Operator, kind: str) -> int | None:
    """The number of the mark that an operator is one half of."""
    if op.kernel.name != kind or len(op.inputs) != 2 or op.inputs[1] is None:
        return None
    limit = op.inputs[1]
    if limit.data is None or type_name(limit.type) != "float32" or limit.values().size != 1:
        return None
    value = abs(float(limit.values().reshape(-1)[0]))
    return int(value) - MARK if MARK <= value < 2 * MARK else None


def _scaling(op: Operator, value: Tensor) -> float | None:
    """The positive number that an operator multiplies ``value`` by."""
    if op.kernel.name != "MUL" or op.inputs[0] is not value or op.inputs[1] is None:
        return None
    factor = op.inputs[1]
    if factor.data is None or type_name(factor.type) != "float32" or factor.values().size != 1:
        return None
    number = float(factor.values().reshape(-1)[0])
    return number if number > 0 else None


def _reshaped_like(state: Tensor, name: str, shape: list[int]) -> Tensor:
    """Another value on the grid of ``state``; -1 where the size varies from run to run."""
    made = Tensor(name, state.type, tuple(shape), fields=copy.copy(state.fields))
    rows = int(np.prod(state.shape, dtype=np.int64)) // shape[-1]
    made.shape = tuple(rows if size < 0 else size for size in shape)
    free = state.fields.shapeSignature
    varies = free is not None and any(int(size) < 0 for size in free)
    made.fields.shapeSignature = shape if varies else None
    return made


def _is_float_constant(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.data is not None and type_name(tensor.type) == "float32"


def _on_grid(like: Any, scales: Float32, zero: int, axis: int = 0) -> Any:
    """Schema fields that say which numbers the integers are; the rest as in ``like``."""
    fields = schema().TensorT() if like is None else copy.copy(like)
    fields.quantization = schema().QuantizationParametersT()
    fields.quantization.scale = np.asarray(scales, np.float32)
    fields.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
    fields.quantization.quantizedDimension = axis
    return fields


def without_marks(program: Program) -> Program:
    """The same program in float32, its marks taken out; ``program`` stays as it is."""
    graphs = {id(graph): _unmarked(graph) for graph in program.graphs}
    signatures = [replace(each, graph=graphs[id(each.graph)]) for each in program.signatures]
    for signature in signatures:
        # An output may be what stands behind a mark.
        (name,) = signature.outputs
        signature.outputs = {name: signature.graph.outputs[0]}
    return replace(program, graphs=list(graphs.values()), signatures=signatures)


def _unmarked(graph: Graph) -> Graph:
    passed: dict[int, Tensor] = {}
    operators = []
    for op in graph.operators:
        inputs = [None if t is None else passed.get(id(t), t) for t in op.inputs]
        mark = [_mark_number(op, kind) for kind in ("MAXIMUM", "MINIMUM")] != [None, None]
        if mark and inputs[0] is not None:
            passed[id(op.outputs[0])] = inputs[0]
        else:
            operators.append(Operator(op.kernel, inputs, op.outputs, op.fields))
    outputs = [passed.get(id(tensor), tensor) for tensor in graph.outputs]
    return Graph(graph.inputs, outputs, operators, graph.name)
