"""Which operators read a constant of an ONNX file, and what that says of it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekit.contents.graph import is_weight_type
from edgekit.contents.ledger import Kind, Place
from edgekit.contents.onnx import all_nodes
from edgekit.contents.places import place_of, stem_of

if TYPE_CHECKING:
    import onnx

# Inputs that are scales and zero points, by operator.
_SCALES = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulNBits": (2, 3, 4),
    "GatherBlockQuantized": (2, 3),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QLinearAdd": (1, 2, 4, 5, 6, 7),
    "QLinearMul": (1, 2, 4, 5, 6, 7),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3),
}
# Operators whose 32-bit integers are biases.
_BIASES = {"QLinearConv": (8,), "DequantizeLinear": (0,), "QGemm": (6,)}
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Gather")
_FAR = 6  # operators between a constant and the one that says where it belongs
_FEW = 4  # of the readers of a value, and of the values that are followed
_INPUTS = 16  # of an operator, that are looked at
_SCALE_NAMES = (".scale", ".zero")


class Readers:
    """The operators of a file by what they read."""

    def __init__(self, model: "onnx.ModelProto") -> None:
        self.nodes: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        self.constants = {tensor.name for tensor in model.graph.initializer}
        for graph in (model.graph, *model.functions):
            for node in all_nodes(graph):
                if node.op_type == "Constant":
                    self.constants.update(node.output)
                for index, name in enumerate(node.input):
                    self.nodes.setdefault(name, []).append((node, index))

    def kind(self, name: str, dtype: str, count: int) -> Kind:
        """What a constant of ``count`` numbers is; a single one is no weight."""
        roles = [(node.op_type, index) for node, index in self.nodes.get(name, ())[:_INPUTS]]
        if any(index in _SCALES.get(op, ()) for op, index in roles):
            return "quantization"
        for suffix in _SCALE_NAMES:
            stem = name.removesuffix(suffix)
            if stem != name and any(f"{stem}{e}" in self.constants for e in ("", ".int8", ".int4")):
                return "quantization"
        if count < 2:
            return "graph"
        is_bias = any(index in _BIASES.get(op, ()) for op, index in roles)
        return "weights" if is_weight_type(dtype) or is_bias else "graph"

    def place(self, name: str) -> Place:
        """Where a constant belongs: by its name, else by the operators that it goes to."""
        found = place_of(name)
        if found:
            return found
        for node, along in self._readers(name):
            found = _place_of_node(node, along)
            if found:
                return found
            beside = (place_of(other) for other in node.input[:_INPUTS] if other in self.constants)
            found = next((each for each in beside if each), ())
            if found:
                return (*found[:-1], f"{found[-1].rpartition('.')[0] or found[-1]} (constant)")
        kinds = [node.op_type for node, _ in self.nodes.get(name, ())]
        return ("operators", kinds[0] if kinds else "not read", stem_of(name) or "unnamed")

    def _readers(self, name: str) -> "Iterator[tuple[onnx.NodeProto, bool]]":
        """Operators that a value goes to, nearest first; whether nothing else than constants
        goes into them."""
        values, fixed = [name], {""}
        for _ in range(_FAR):
            made: list[str] = []
            for node in [n for value in values for n, _ in self.nodes.get(value, ())[:_FEW]]:
                along = all(
                    each in self.constants or each in fixed for each in node.input[:_INPUTS]
                )
                yield node, along
                if along:
                    fixed.update(node.output)
                made += node.output
            values = list(dict.fromkeys(made))[:_FEW]


def _place_of_node(node: "onnx.NodeProto", along: bool) -> Place:
    """By what an operator makes of constants alone, or by its own path in the model."""
    if along and node.output and "." in node.output[0]:
        return place_of(node.output[0])
    outer, _, last = node.name.rpartition("/")
    if not outer.strip("/"):
        return ()
    return place_of(f"{outer.strip('/')}/{'weight' if node.op_type in _PRODUCTS else last}")
