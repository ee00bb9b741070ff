"""Static int8 in ONNX: integers in the file, and integers between its operators.

Takes a graph that holds marks (see ``steps/quantize/fake``): a LeakyRelu with a slope of 2^20 and
a number stands behind each value that is an integer. Rules:

1. Values are uint8: the integers of the grid plus 128. An operator with an integer kernel
   (``_INTEGER``) stands between DequantizeLinear and QuantizeLinear, which ONNX Runtime fuses
   into that kernel.
2. Operators that only move numbers move integers, on their input's grid.
3. All else takes floats (DequantizeLinear); a mark behind it is a QuantizeLinear.
4. MatMul with a matrix, and the Add of its bias, become a Gemm (ONNX Runtime: QGemm, with the bias
   in int32): int8 weight, a scale for each output channel. More than two dimensions are reshaped
   before and after. A positive number that scales the product goes into the scales. What a ReLU
   or ReLU6 cuts off is beyond the grid behind it, so that the QuantizeLinear cuts it off.
5. Conv: int8 filter, a scale for each output channel; bias int32. The mean of a whole picture is
   a GlobalAveragePool: ReduceMean has no integer kernel.
6. Tables are int8 on one scale, and rows leave them as integers.
7. 7 bits a weight (``reduced``) for instruction sets that add two products in 16 bits and
   saturate: AVX2 and AVX-512 without VNNI.
8. Only operators of the ONNX standard.
9. A product that reads floats, in a layer that stays float, is left to ``onnx_weights``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.contents.onnx import subgraphs
from edgekit.errors import ExportError
from edgekit.export.static_tables import Tables, channel_scales, table_integers
from edgekit.steps.quantize.fake import MARK
from edgekit.steps.quantize.grid import Float32, Grid, Int8, quantize_int8

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_INTEGER = {"Add", "MatMul", "Softmax", "Sigmoid", "GlobalAveragePool"}
_MOVING = {
    "Reshape",
    "Transpose",
    "Flatten",
    "Slice",
    "Gather",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "MaxPool",
    "Pad",
}
_SHAPE_KEEPING = {"LayerNormalization", "Gelu", "Add", "Tanh", "Relu", "Erf", "Mul"}
_OFFSET = 128  # a uint8 is the integer of the grid plus this


def quantize_static(model: onnx.ModelProto, grids: Sequence[Grid], tables: Tables) -> None:
    """Rewrite ``model`` in place by the rules above; ``grids``: of each mark, by its number.

    Raises ExportError when a mark is lost.
    """
    import onnx

    graph = model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    rewriting = _Rewriting(graph, constants, grids, tables)
    rewriting.run()
    if len(rewriting.marks) < len(grids):
        raise ExportError("torch has left marks out of the graph; choose --scheme int8-dynamic")
    used = set(_used_names(graph, rewriting.nodes))
    del graph.node[:]
    graph.node.extend(rewriting.nodes)
    del graph.initializer[:]
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array, order="C"), name)
        for name, array in rewriting.constants.items()
        if name in used
    )


@dataclass(frozen=True)
class _Tail:
    """What an integer kernel does besides its operator, up to the value that is marked.

    most: what a ReLU ends at (infinity, or 6). passed: the ids of the nodes that go into it.
    """

    mark: str
    factor: float
    bias: str | None
    most: float | None
    passed: set[int]


class _Rewriting:
    """A graph while it is being rewritten.

    integers: of each value of the old graph that has them, the name of its integers and the
    names of their scale and zero point. widened: the name of its floats, where it has integers.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        constants: dict[str, Array],
        grids: Sequence[Grid],
        tables: Tables,
    ) -> None:
        self.graph, self.constants, self.grids, self.tables = graph, constants, grids, tables
        self.nodes: list[onnx.NodeProto] = []
        self.integers: dict[str, tuple[str, Grid, str]] = {}
        self.widened: set[str] = set()
        self.done: set[int] = set()
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        self.marks: dict[str, tuple[int, str]] = {}
        self.scales: dict[str, float | None] = {}
        # Of a value: the name of all its dimensions but the last, for those that share them.
        self.leading: dict[str, str] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        for value in graph.output:
            self.readers.setdefault(value.name, []).append(value)

    def run(self) -> None:
        for node in self.graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                import onnx

                self.constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
                self.done.add(id(node))
        for node in self.graph.node:
            number = _mark_number(node)
            if number is not None:
                self.marks[node.input[0]] = number, node.output[0]
                self.done.add(id(node))
        for value in self.graph.input:
            self._mark(value.name)
        for node in self.graph.node:
            if id(node) in self.done:
                continue
            moves = node.op_type in _MOVING and self._moves_integers(node)
            if moves:
                self._move(node)
            elif not (self._product(node) or self._pool(node) or self._integer(node)):
                self._float(node)
        for value in self.graph.output:
            self._wide(value.name)

    def _moves_integers(self, node: onnx.NodeProto) -> bool:
        source = node.input[0]
        if node.op_type == "Pad" and not self._pads_zeros(node):
            return False
        if self._is_table(source):
            self._table(source)
        return source in self.integers

    def _pads_zeros(self, node: onnx.NodeProto) -> bool:
        if _attributes(node).get("mode", b"constant") != b"constant":
            return False
        filling = node.input[2] if len(node.input) > 2 else ""
        return not filling or not self.constants.get(filling, np.ones(1)).any()

    def _move(self, node: onnx.NodeProto) -> None:
        """Rule 2."""
        import onnx

        source, grid, kind = self.integers[node.input[0]]
        output = node.output[0]
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[0] = source
        if node.op_type == "Pad":
            filling = self._parameters(grid, kind)[1]
            made.input[:] = [*made.input[:2], filling, *made.input[3:]]
        made.output[0] = f"{output}.{kind}"
        self.nodes.append(made)
        self._settle(output, made.output[0], grid, kind)

    def _integer(self, node: onnx.NodeProto) -> bool:
        """Rule 1: whether the operator writes integers now."""
        if node.op_type not in _INTEGER:
            return False
        tail = self._tail(node, product=False)
        if tail is None:
            return False
        for name in node.input:
            if self._is_table(name):
                self._table(name)
        if any(name not in self.integers for name in node.input):
            return False
        import onnx

        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.input[:] = [self._floats(name) for name in node.input]
        made.output[0] = f"{node.output[0]}.wide"
        self.nodes.append(made)
        self.done |= tail.passed
        self._quantize(self._cut_off(made.output[0], tail), tail.mark)
        return True

    def _cut_off(self, wide: str, tail: _Tail) -> str:
        """Rule 4: a ReLU that the grid does not do by itself."""
        if tail.most is None:
            return wide
        grid = self.grids[self.marks[tail.mark][0]]
        least, most = grid.range
        if least >= 0 and most <= tail.most + grid.scale / 2:
            return wide
        for name, number in (("zero", 0.0), ("most", tail.most)):
            self.constants[f"relu.{name}.{number}"] = np.array(number, np.float32)
        result = f"{wide}.relu"
        self._add("Clip", [wide, "relu.zero.0.0", f"relu.most.{tail.most}"], [result])
        return result

    def _product(self, node: onnx.NodeProto) -> bool:
        """Rules 4 and 5."""
        weight = node.input[1] if len(node.input) > 1 else ""
        values = self.constants.get(weight)
        if values is None or values.dtype != np.float32 or node.input[0] not in self.integers:
            return False
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            return False
        options = _attributes(node)
        if node.op_type == "MatMul" and values.ndim != 2:
            return False
        if options.get("transA") or options.get("alpha", 1) != 1 or options.get("beta", 1) != 1:
            return False
        tail = self._tail(node)
        if tail is None:
            return False
        mark, factor, bias = tail.mark, tail.factor, tail.bias
        self.done |= tail.passed
        state, grid, _ = self.integers[node.input[0]]
        turned = node.op_type != "Conv" and not options.get("transB")
        matrix = values.T if turned else values
        stem, scales = self._weight(weight, turned, factor)
        channels = len(scales)
        total = np.zeros(channels) if bias is None else self.constants[bias].astype(np.float64)
        total = np.broadcast_to(total.reshape(-1), channels) * factor
        steps = np.float64(grid.scale) * scales.astype(np.float64)
        whole = np.clip(np.rint(total / steps), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        name = f"{node.output[0]}.bias"
        self.constants[f"{name}.int32"] = whole
        self.constants[f"{name}.scale"] = steps.astype(np.float32)
        self.constants[f"zeros.{channels}.int32"] = np.zeros(channels, np.int32)
        inputs = [f"{name}.int32", f"{name}.scale", f"zeros.{channels}.int32"]
        self._add("DequantizeLinear", inputs, [f"{name}.wide"], axis=0)
        result = f"{node.output[0]}.wide"
        if node.op_type == "Conv":
            inputs = [self._floats(node.input[0]), f"{stem}.wide", f"{name}.wide"]
            self._add("Conv", inputs, [result], **options)
        else:
            rank = self._rank(node)
            source = self._floats(node.input[0])
            if rank != 2:
                flat = f"{node.output[0]}.rows"
                shape = f"rows.{matrix.shape[1]}"
                self.constants[shape] = np.array([-1, matrix.shape[1]], np.int64)
                self._add("Reshape", [state, shape], [flat])
                source = self._dequantize(flat, grid, self.integers[node.input[0]][2])
            inputs = [source, f"{stem}.wide", f"{name}.wide"]
            self._add("Gemm", inputs, [result], transB=1)
        result = self._cut_off(result, tail)
        if node.op_type == "Conv" or self._rank(node) == 2:
            self._quantize(result, mark)
            return True
        self._quantize(result, mark, shaped_like=(node.input[0], channels))
        self.leading[self.marks[mark][1]] = self.leading[node.input[0]]
        return True

    def _pool(self, node: onnx.NodeProto) -> bool:
        """Rule 5 for the mean of a picture."""
        if node.op_type != "ReduceMean" or node.input[0] not in self.integers:
            return False
        axes = self.constants.get(node.input[1]) if len(node.input) > 1 else None
        if axes is None or sorted(axes.reshape(-1).tolist()) not in ([-2, -1], [2, 3]):
            return False
        tail = self._tail(node, product=False)
        if tail is None:
            return False
        self.done |= tail.passed
        result = f"{node.output[0]}.wide"
        self._add("GlobalAveragePool", [self._floats(node.input[0])], [result])
        self._quantize(self._cut_off(result, tail), tail.mark)
        if not _attributes(node).get("keepdims", 1):
            marked = self.marks[tail.mark][1]
            integers, grid, kind = self.integers[marked]
            self._add("Flatten", [integers], [f"{integers}.flat"], axis=1)
            self.integers[marked] = f"{integers}.flat", grid, kind
        return True

    def _weight(self, name: str, turned: bool, factor: float) -> tuple[str, Float32]:
        """The floats of a product's weight, [outputs, …], without ``.wide``; and its scales.

        The integers are stored once, however many products read them, by whatever factor.
        """
        stem = f"{name}.turned" if turned and self._is_table(name) else name
        integers, scales = self._product_integers(name, turned)
        self.constants[f"{stem}.int8"] = integers
        scales = (scales * np.float32(factor)).astype(np.float32)
        scaled = stem if factor == 1 else f"{stem}.{factor!r}"
        self.constants[f"{scaled}.scale"] = scales
        if scaled not in self.widened:
            self.widened.add(scaled)
            # ONNX Runtime fuses only where the zero points are spelled out.
            zeros = f"zeros.{len(scales)}.int8"
            self.constants[zeros] = np.zeros(len(scales), np.int8)
            inputs = [f"{stem}.int8", f"{scaled}.scale", zeros]
            self._add("DequantizeLinear", inputs, [f"{scaled}.wide"], axis=0)
        return scaled, scales

    def _product_integers(self, name: str, turned: bool) -> tuple[Int8, Float32]:
        values = self.constants[name]
        matrix = np.ascontiguousarray(values.T if turned else values)
        if self._is_table(name):
            scale = self.scales[name]
            assert scale is not None
            return table_integers(matrix, scale), channel_scales(scale, len(matrix))
        return quantize_int8(matrix)

    def _tail(self, node: onnx.NodeProto, product: bool = True) -> _Tail | None:
        """The value whose mark an operator writes to: through a ReLU, and for a product through
        its bias and a factor before that.
        """
        passed: set[int] = set()
        output, factor, most = node.output[0], 1.0, None
        bias = None
        if product and len(node.input) > 2 and node.input[2]:
            bias = node.input[2]
            if bias not in self.constants:
                return None
        while True:
            readers = self.readers.get(output, [])
            if len(readers) != 1:
                return None
            if output in self.marks:
                return _Tail(output, factor, bias, most, passed)
            reader: Any = readers[0]
            kind = getattr(reader, "op_type", "")
            joins = product and kind in ("Add", "Mul") and most is None
            other = self._other_constant(reader, output) if joins else None
            if kind == "Add" and other is not None and bias is None and factor == 1:
                bias = other
                if self.constants[other].size not in (1, self.constants[other].shape[-1]):
                    return None
            elif kind == "Mul" and other is not None:
                number = self.constants[other]
                if number.size != 1 or float(number.reshape(-1)[0]) <= 0:
                    return None
                factor *= float(number.reshape(-1)[0])
            elif most is None and _relu_limit(reader, self.constants) is not None:
                most = _relu_limit(reader, self.constants)
            else:
                return None
            passed.add(id(reader))
            output = reader.output[0]

    def _other_constant(self, node: onnx.NodeProto, known: str) -> str | None:
        others = [name for name in node.input if name != known]
        return others[0] if len(others) == 1 and others[0] in self.constants else None

    def _rank(self, node: onnx.NodeProto) -> int:
        """2 for a Gemm; of a MatMul's state it is not known, and reshaping costs nothing."""
        return 2 if node.op_type == "Gemm" else 3

    def _float(self, node: onnx.NodeProto) -> None:
        """Rule 3."""
        for place, name in enumerate(node.input):
            self._wide(name)
            if self._is_table(name):
                # A table that a float operator reads is rounded all the same.
                self._table(name)
                node.input[place] = self._floats(name)
        self.nodes.append(node)
        if node.op_type in _SHAPE_KEEPING:
            known = {self.leading.get(name) for name in node.input if name not in self.constants}
            (stem,) = known if len(known) == 1 else (None,)
            if stem is not None:
                self.leading[node.output[0]] = stem
        for name in node.output:
            self._mark(name)

    def _mark(self, name: str) -> None:
        if name in self.marks:
            self._quantize(name, name)

    def _quantize(self, wide: str, mark: str, shaped_like: tuple[str, int] | None = None) -> None:
        """The integers of the floats ``wide``, for what reads the mark behind ``mark``."""
        number, marked = self.marks[mark]
        grid = self.grids[number]
        if mark in self.leading:
            self.leading[marked] = self.leading[mark]
        output = f"{marked}.uint8"
        scale, zero = self._parameters(grid, "uint8")
        if shaped_like is None:
            self._add("QuantizeLinear", [wide, scale, zero], [output])
        else:
            # Back to the state's own shape, with another last dimension.
            state, channels = shaped_like
            self._add("QuantizeLinear", [wide, scale, zero], [f"{output}.rows"])
            shape = self._shape_with(state, channels)
            self._add("Reshape", [f"{output}.rows", shape], [output])
        self.integers[marked] = output, grid, "uint8"
        if mark != marked and mark not in self.integers and wide != mark:
            self.integers[mark] = self.integers[marked]

    def _shape_with(self, state: str, channels: int) -> str:
        """The shape of ``state``, worked out when the model runs, with another last dimension."""
        stem = self.leading.get(state)
        if stem is None:
            stem = f"{self.integers[state][0]}.leading"
            self._add("Shape", [self.integers[state][0]], [stem], start=0, end=-1)
            self.leading[state] = stem
        name = f"{stem}.{channels}"
        if name not in self.widened:
            self.widened.add(name)
            self.constants[f"channels.{channels}"] = np.array([channels], np.int64)
            self._add("Concat", [stem, f"channels.{channels}"], [name], axis=0)
        return name

    def _settle(self, name: str, integers: str, grid: Grid, kind: str) -> None:
        """``name`` is these integers from now on; a mark behind it is another grid."""
        self.integers[name] = integers, grid, kind
        if name in self.marks:
            number, marked = self.marks[name]
            if self.grids[number] == grid:
                self.integers[marked] = integers, grid, kind
            else:
                self._quantize(self._floats(name), name)

    def _table(self, name: str) -> None:
        """Rule 6."""
        if name in self.integers:
            return
        scale = self.scales[name]
        assert scale is not None
        self.constants[f"{name}.int8"] = table_integers(self.constants[name], scale)
        self.integers[name] = f"{name}.int8", Grid(scale, 0), "int8"

    def _floats(self, name: str) -> str:
        """The name of a value's floats, dequantized once for each that reads them."""
        integers, grid, kind = self.integers[name]
        return self._dequantize(integers, grid, kind)

    def _dequantize(self, integers: str, grid: Grid, kind: str) -> str:
        wide = f"{integers}.wide"
        if wide not in self.widened:
            self.widened.add(wide)
            self._add("DequantizeLinear", [integers, *self._parameters(grid, kind)], [wide])
        return wide

    def _wide(self, name: str) -> None:
        """Floats under the name that the old graph has for them."""
        if name in self.integers and name not in self.widened and name not in self.constants:
            self.widened.add(name)
            integers, grid, kind = self.integers[name]
            self._add("DequantizeLinear", [integers, *self._parameters(grid, kind)], [name])

    def _parameters(self, grid: Grid, kind: str) -> list[str]:
        """Names of a grid's scale and zero point, one pair for each grid."""
        stem = f"grid.{grid.scale!r}.{grid.zero}.{kind}"
        offset, dtype = (_OFFSET, np.uint8) if kind == "uint8" else (0, np.int8)
        self.constants[f"{stem}.scale"] = np.array(grid.scale, np.float32)
        self.constants[f"{stem}.zero"] = np.array(grid.zero + offset, dtype)
        return [f"{stem}.scale", f"{stem}.zero"]

    def _is_table(self, name: str) -> bool:
        if name in self.constants and name not in self.scales:
            self.scales[name] = self.tables.scale(self.constants[name])
        return self.scales.get(name) is not None

    def _add(self, kind: str, inputs: list[str], outputs: list[str], **options: Any) -> None:
        import onnx

        name = f"{outputs[0]}.{kind}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, outputs, name, **options))


def _mark_number(node: onnx.NodeProto) -> int | None:
    """The number of the point that a node marks."""
    if node.op_type != "LeakyRelu":
        return None
    slope = float(_attributes(node).get("alpha", 0.01))
    return int(slope) - MARK if slope >= MARK else None


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def _relu_limit(node: Any, constants: dict[str, Array]) -> float | None:
    """Where a ReLU ends: infinity, 6; None for what is no ReLU."""
    kind = getattr(node, "op_type", "")
    if kind == "Relu":
        return float("inf")
    if kind != "Clip" or len(node.input) != 3:
        return None
    ends = [constants.get(name) for name in node.input[1:]]
    if any(end is None or end.size != 1 for end in ends):
        return None
    least, most = (float(end.reshape(-1)[0]) for end in ends if end is not None)
    return most if least == 0 and most == 6 else None


def _used_names(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> Iterator[str]:
    """Names that nodes, those of their subgraphs, or the outputs read."""
    yield from (value.name for value in graph.output)
    for node in nodes:
        yield from node.input
        for inner in subgraphs(node):
            yield from _used_names(inner, list(inner.node))


def without_marks(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the same model in float32, its marks taken out."""
    import onnx

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    graph = plain.graph
    behind: dict[str, str] = {}
    ends = {value.name for value in graph.output}
    for node in list(graph.node):
        if _mark_number(node) is not None:
            behind[node.output[0]] = node.input[0]
            graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [behind.get(name, name) for name in node.input]
        # What an output stood behind takes the output's name.
        node.output[:] = [
            next((end for end in ends if behind.get(end) == name), name) for name in node.output
        ]
    return plain
