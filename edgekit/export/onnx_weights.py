"""Weights of 8, 4 and 2 bits in ONNX. Rules, by scheme:

1. ``int8-dynamic``, MatMul and Gemm with a constant matrix: int8 weight with a scale for each
   output column. The other factor is quantized when the model runs, to uint8 with one scale and
   zero point (DynamicQuantizeLinear), once however many products read it. MatMulInteger, Cast, Mul
   by both scales and Add of the bias follow, in the order in which ONNX Runtime fuses them into one
   kernel (DynamicQuantizeMatMul, or MatMulIntegerToFloat where products share an input).
2. ``int8-weights``, the same operators: int8 weight with a scale for each output channel, widened
   as in rule 5; the product stays as it is, in float32.
3. ``int4-weights`` and ``int4-all``, the same operators: MatMulNBits of the domain com.microsoft,
   which ONNX Runtime knows since 1.17; integers from -7 to 7, stored 8 higher, two to a byte, with
   a scale for each block of 32 along the input. Accuracy level 4: the other factor is quantized to
   int8 by the same blocks, where the CPU has a kernel for that. Add of the bias follows.
   ``int2-weights``: integers from -1 to 1, stored 2 higher, four to a byte (ONNX Runtime 1.24).
4. All schemes, Gather and Slice of rows of a constant table: int8 table with a scale for each row;
   rows and scales are picked and multiplied. Tables below 1,024 values stay as they are.
   ``int4-all``, the word table: integers from -7 to 7, two to a byte (rules 2 and 3 of
   ``packing``).
5. All schemes, Conv: int8 filter with a scale for each output channel, widened by Cast and Mul,
   which ONNX Runtime works out once, at load: the file is small and runs as fast as float32. (The
   same with DequantizeLinear is repeated in every run: MobileNetV2 31 instead of 15 ms.
   ConvInteger: 120.)
6. All schemes, LSTM: int8 weights with a scale for each row of a gate, widened as in rule 5.
7. All else (biases, norms, small tables) stays float32.
8. But for rule 3, only operators of the ONNX standard, opset 11.

Weights are signed because a product of uint8 and int8 is what x86 VNNI and Arm dotprod
instructions compute: with uint8 weights MiniLM takes 1.6 times as long.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import MATRIX_BITS, Scheme
from edgekit.contents.onnx import subgraphs
from edgekit.errors import ModelError
from edgekit.export.packing import STEP, pack_bits, pack_rows, table_bits
from edgekit.steps.quantize.grid import quantize

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, Any]

_OPSET = 11  # of DynamicQuantizeLinear
_SMALLEST_TABLE = 1024
_FLOAT = 1  # onnx.TensorProto.FLOAT
BLOCK = 32  # of rule 3
_INT8_ACTIVATIONS = 4  # an accuracy level
_MICROSOFT = "com.microsoft"
_STEP = "packing.step"


def quantize_weights(model: "onnx.ModelProto", scheme: Scheme, bits: int = 8) -> None:
    """Rewrite ``model`` in place by the rules above.

    bits: of the weights that meet integer activations, 7 for instruction sets that saturate.
    Raises ModelError when its opset is too old, or a weight holds NaN or infinity.
    """
    import onnx

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < _OPSET:
        raise ModelError(
            f"{scheme} needs opset {_OPSET} and this file has {opset}; export it again"
        )
    graph = model.graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    rewriting = _Rewriting(scheme, constants, bits)
    for node in graph.node:
        rewriting.node(node)
    known = {entry.domain for entry in model.opset_import}
    if _MICROSOFT not in known and any(node.domain == _MICROSOFT for node in rewriting.nodes):
        model.opset_import.append(onnx.helper.make_opsetid(_MICROSOFT, 1))
    used = set(_used_names(graph, rewriting.nodes))
    del graph.node[:]
    graph.node.extend(rewriting.nodes)
    del graph.initializer[:]
    graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name)
        for name, array in rewriting.constants.items()
        if name in used
    )


@dataclass
class _Rewriting:
    """A graph while it is being rewritten.

    constants: by name, old and new. nodes: the new graph so far. activations: of each tensor
    that was quantized, the names of its integers, scale and zero point. integers: of each weight
    and kind of use, the names of its integers and scales. widened: the integers that are float32
    again, by name.
    """

    scheme: Scheme
    constants: dict[str, Array]
    bits: int = 8
    nodes: "list[onnx.NodeProto]" = field(default_factory=list)
    activations: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    integers: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    widened: dict[str, str] = field(default_factory=dict)

    def node(self, node: "onnx.NodeProto") -> None:
        """Append ``node``, or what it becomes."""
        standard = node.domain in ("", "ai.onnx")
        if not standard or not self._rewrite(node):
            self.nodes.append(node)

    def _rewrite(self, node: "onnx.NodeProto") -> bool:
        """Whether a rule has taken care of ``node``."""
        match node.op_type:
            case "Constant":
                return self._constant(node)
            case "Identity" | "Transpose":
                return self._fold(node)
            case "MatMul":
                return self._matmul(node)
            case "Gemm":
                return self._gemm(node)
            case "Gather":
                return self._gather(node)
            case "Slice":
                return self._slice(node)
            case "Conv":
                return self._convolution(node)
            case "LSTM":
                return self._recurrent(node)
        return False

    def _constant(self, node: "onnx.NodeProto") -> bool:
        """Weights that an exporter wrote as nodes become initializers, like all others."""
        import onnx

        if node.attribute[0].name != "value":
            return False
        self.constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
        return True

    def _fold(self, node: "onnx.NodeProto") -> bool:
        """A weight that is passed on or transposed is a weight."""
        weight = self.constants.get(node.input[0])
        if weight is None:
            return False
        if node.op_type == "Transpose":
            weight = weight.transpose(_attributes(node).get("perm"))
        self.constants[node.output[0]] = weight
        return True

    def _matmul(self, node: "onnx.NodeProto") -> bool:
        if not self._is_float(node.input[1], 2):
            return False
        return self._product(node, transposed=False)

    def _gemm(self, node: "onnx.NodeProto") -> bool:
        options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | _attributes(node)
        plain = options["alpha"] == options["beta"] == 1 and not options["transA"]
        if not self._is_float(node.input[1], 2):
            return False
        return self._product(node, transposed=bool(options["transB"]), plain=plain)

    def _product(self, node: "onnx.NodeProto", *, transposed: bool, plain: bool = True) -> bool:
        """Rules 1 to 3. transposed: the weight has a row for each output, not a column.
        plain: nothing else is done than adding a bias.
        """
        if self.scheme == "int8-weights":
            self._widen(node, axis=0 if transposed else 1)
            return True
        if not plain:
            return False
        result = node.output[0]
        biases = [name for name in node.input[2:] if name]
        product = f"{result}.unbiased" if biases else result
        if self.scheme in MATRIX_BITS:
            self._multiply_packed(node, product, transposed, MATRIX_BITS[self.scheme])
        else:
            self._multiply_8(node, product, transposed)
        if biases:
            self._add("Add", [product, *biases], [result])
        return True

    def _multiply_8(self, node: "onnx.NodeProto", product: str, transposed: bool) -> None:
        """Rule 1, but for the bias."""
        state, weight = node.input[:2]
        result = node.output[0]
        if state not in self.activations:
            stem = f"{state}.uint8"
            self.activations[state] = stem, f"{stem}.scale", f"{stem}.zero"
            self._add("DynamicQuantizeLinear", [state], self.activations[state])
        states, scale, zero = self.activations[state]
        columns = self.constants[weight].T if transposed else self.constants[weight]
        use = "transposed" if transposed else "columns"
        integers, scales = self._quantize(weight, columns, axis=1, use=use, bits=self.bits)
        name = node.name or result
        self._add("MatMulInteger", [states, integers, zero], [f"{result}.int32"], name)
        self._add("Cast", [f"{result}.int32"], [f"{result}.unscaled"], to=_FLOAT)
        self._add("Mul", [scale, scales], [f"{result}.scale"])
        self._add("Mul", [f"{result}.unscaled", f"{result}.scale"], [product])

    def _multiply_packed(
        self, node: "onnx.NodeProto", product: str, transposed: bool, bits: int
    ) -> None:
        """Rule 3, but for the bias."""
        state, weight = node.input[:2]
        rows = self.constants[weight] if transposed else self.constants[weight].T
        use = f"int{bits}.transposed" if transposed else f"int{bits}"
        if (weight, use) not in self.integers:
            self.integers[weight, use] = names = (f"{weight}.{use}", f"{weight}.{use}.scale")
            self.constants |= dict(zip(names, _packed_blocks(rows, bits), strict=True))
        outputs, inputs = rows.shape
        self._add(
            "MatMulNBits",
            [state, *self.integers[weight, use]],
            [product],
            node.name or node.output[0],
            domain=_MICROSOFT,
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def _gather(self, node: "onnx.NodeProto") -> bool:
        table, rows = node.input
        if _attributes(node).get("axis", 0) != 0 or not self._is_table(table):
            return False
        self._pick(node, "Gather", table, [rows])
        return True

    def _slice(self, node: "onnx.NodeProto") -> bool:
        table, *bounds = node.input
        axes = self.constants.get(bounds[2]) if len(bounds) > 2 else None
        if axes is None or not self._is_table(table):
            return False
        rank = self.constants[table].ndim
        if any(axis % rank == rank - 1 for axis in axes.tolist()):
            return False
        self._pick(node, "Slice", table, bounds)
        return True

    def _pick(self, node: "onnx.NodeProto", kind: str, table: str, which: list[str]) -> None:
        """Rule 4."""
        result = node.output[0]
        values = self.constants[table]
        rows = values.reshape(-1, values.shape[-1])
        bits = table_bits(self.scheme, rows.shape)
        is_new = (table, "rows") not in self.integers
        integers, scales = self._quantize(table, rows, axis=0, use="rows", bits=bits)
        if is_new:
            stored = self.constants[integers].reshape(values.shape)
            self.constants[integers] = pack_rows(stored) if bits == 4 else stored
            self.constants[scales] = self.constants[scales].reshape(*values.shape[:-1], 1)
        options = _attributes(node)
        self._add(kind, [integers, *which], [f"{result}.int8"], node.name or result, **options)
        self._add(kind, [scales, *which], [f"{result}.scale"], **options)
        if bits == 4:
            self._add("Cast", [f"{result}.int8"], [f"{result}.packed"], to=_FLOAT)
            self._unpack(f"{result}.packed", f"{result}.unscaled")
        else:
            self._add("Cast", [f"{result}.int8"], [f"{result}.unscaled"], to=_FLOAT)
        self._add("Mul", [f"{result}.unscaled", f"{result}.scale"], [result])

    def _unpack(self, packed: str, rows: str) -> None:
        """Both numbers of each byte, side by side (rule 2 of ``packing``)."""
        self.constants[_STEP] = np.array(STEP, np.float32)
        first, second, whole = (f"{rows}.{part}" for part in ("first", "second", "whole"))
        self._add("Div", [packed, _STEP], [f"{rows}.quotient"])
        self._add("Round", [f"{rows}.quotient"], [second])
        self._add("Mul", [second, _STEP], [whole])
        self._add("Sub", [packed, whole], [first])
        self._add("Concat", [first, second], [rows], axis=-1)

    def _convolution(self, node: "onnx.NodeProto") -> bool:
        filters = self.constants.get(node.input[1])
        if filters is None or filters.dtype != np.float32:
            return False
        self._widen(node, axis=0)
        return True

    def _recurrent(self, node: "onnx.NodeProto") -> bool:
        """Rule 6."""
        if not all(self._is_float(name, 3) for name in node.input[1:3]):
            return False
        for place in (1, 2):
            weight = node.input[place]
            values = self.constants[weight]
            rows = values.reshape(-1, values.shape[-1])
            integers, scales = self._quantize(weight, rows, 0, use="gates")
            self.constants[integers] = self.constants[integers].reshape(values.shape)
            self.constants[scales] = self.constants[scales].reshape(*values.shape[:-1], 1)
            self._add("Cast", [integers], [f"{weight}.unscaled"], to=_FLOAT)
            self._add("Mul", [f"{weight}.unscaled", scales], [f"{weight}.float32"])
            node.input[place] = f"{weight}.float32"
        self.nodes.append(node)
        return True

    def _widen(self, node: "onnx.NodeProto", axis: int) -> None:
        """Rule 5: the operator as it is, its weight stored as integers."""
        weight = node.input[1]
        values = self.constants[weight]
        integers, scales = self._quantize(weight, values, axis, use=f"axis{axis}")
        stem = integers.removesuffix(".int8")
        if integers not in self.widened:
            self.widened[integers] = f"{stem}.float32"
            along = [-1 if number == axis else 1 for number in range(values.ndim)]
            self.constants[scales] = self.constants[scales].reshape(along)
            self._add("Cast", [integers], [f"{stem}.unscaled"], to=_FLOAT)
            self._add("Mul", [f"{stem}.unscaled", scales], [f"{stem}.float32"])
        node.input[1] = self.widened[integers]
        self.nodes.append(node)

    def _quantize(
        self, weight: str, values: Array, axis: int, use: str, bits: int = 8
    ) -> tuple[str, str]:
        """Names of the integers and scales of a weight, made when first asked for."""
        key = weight, use
        if key not in self.integers:
            stem = f"{weight}.{use}" if f"{weight}.int8" in self.constants else weight
            self.integers[key] = names = (f"{stem}.int8", f"{stem}.scale")
            self.constants |= dict(zip(names, quantize(values, bits, axis), strict=True))
        return self.integers[key]

    def _is_float(self, name: str, rank: int) -> bool:
        constant = self.constants.get(name)
        return constant is not None and constant.ndim == rank and constant.dtype == np.float32

    def _is_table(self, name: str) -> bool:
        constant = self.constants.get(name)
        return (
            constant is not None
            and constant.ndim >= 2
            and constant.dtype == np.float32
            and constant.size >= _SMALLEST_TABLE
        )

    def _add(
        self, kind: str, inputs: list[str], outputs: Any, name: str = "", **options: Any
    ) -> None:
        import onnx

        named = name or f"{outputs[0]}.{kind}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, list(outputs), named, **options))


def _packed_blocks(rows: Array, bits: int) -> tuple[Array, Array]:
    """Integers [outputs, blocks, 32 bits / 8] as bytes, and scales [outputs * blocks]."""
    outputs, inputs = rows.shape
    integers, scales = quantize(rows, bits, block=BLOCK)
    zero = 2 ** (bits - 1)  # where MatMulNBits has it when it is told of none
    stored = np.full((outputs, scales.shape[1] * BLOCK), zero, np.uint8)
    stored[:, :inputs] = integers + zero
    return pack_bits(stored, bits).reshape(*scales.shape, BLOCK * bits // 8), scales.reshape(-1)


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def _used_names(graph: "onnx.GraphProto", nodes: "list[onnx.NodeProto]") -> Iterator[str]:
    """Names that nodes, those of their subgraphs, or the outputs read."""
    yield from (value.name for value in graph.output)
    for node in nodes:
        yield from node.input
        for inner in subgraphs(node):
            yield from _used_names(inner, list(inner.node))
