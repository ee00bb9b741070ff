"""The operators of an ONNX file, with the shapes that ONNX's own inference works out."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.contents.graph import (
    Graph,
    Operator,
    Value,
    extent,
    input_shape,
    is_weight_type,
    product,
    trailing,
)
from edgekit.contents.onnx import load_onnx, packed_matrices, subgraphs

if TYPE_CHECKING:
    import onnx

# Operators that multiply matrices or filters, and where their filter is.
_MATRIX = {"MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul", "MatMulIntegerToFloat"}
_MATRIX |= {"DynamicQuantizeMatMul"}
_FILTER = {"Conv": 1, "ConvInteger": 1, "FusedConv": 1, "QLinearConv": 3}
# Multiply in ways that are not counted here, so that a file with one has no count.
_UNCOUNTED = {"LSTM", "GRU", "RNN", "Attention", "DeformConv", "DFT", "STFT", "If", "Loop", "Scan"}
_STANDARD = ("", "ai.onnx")
# Of other domains: known to do no products of matrices.
_ELEMENTWISE = {"BiasGelu", "Gelu", "FastGelu", "QuickGelu", "SkipLayerNormalization"}
_ELEMENTWISE |= {"QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax"}
_ELEMENTWISE |= {"QuantizeLinear", "DequantizeLinear"}
_LOOKUPS = {"Gather", "GatherND", "Slice"}
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}

# Arithmetic on shapes that is worked out beforehand: what shape inference itself leaves open.
_SHAPE_ARITHMETIC = {"Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Identity"}
_SHAPE_ARITHMETIC |= {"Add", "Sub", "Mul", "Div", "Min", "Max", "Reshape", "ReduceProd"}
_SMALL = 64  # numbers in a shape, at most
_ROUNDS = 8  # of inference; a shape that needs more stays unknown


def read_onnx_graph(path: Path, length: int | None) -> Graph:
    """The file's graph for one row of ``length`` tokens. Raises ModelError as ``load_onnx``."""
    from onnx import inliner

    model = load_onnx(path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    constants = dict(_constants(model.graph))
    for entry in model.graph.input:
        _fix_shape(entry, length)
    inferred, folded = _infer(model)
    values = {name: Value(name, "int64", array.shape) for name, array in folded.items()}
    for info in (*inferred.value_info, *inferred.input, *inferred.output):
        dtype = _dtype(info.type.tensor_type.elem_type)
        values[info.name] = Value(info.name, dtype, _shape(info))
    values |= constants

    def value(name: str) -> Value:
        return values.setdefault(name, Value(name, "unknown", None))

    def operator(node: "onnx.NodeProto") -> Operator:
        inputs = tuple(value(name) for name in node.input if name)
        outputs = tuple(value(name) for name in node.output if name)
        standard = node.domain in _STANDARD
        return Operator(
            kind=node.op_type if standard else f"{node.domain}.{node.op_type}",
            name=node.name or (node.output[0] if node.output else ""),
            inputs=inputs,
            outputs=outputs,
            macs=_macs(node, [value(name) for name in node.input], outputs),
            table=0 if node.op_type in _LOOKUPS and standard else None,
            view=node.op_type in _VIEWS and standard,
        )

    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    return Graph(
        inputs=tuple(value(v.name) for v in model.graph.input if v.name not in constants),
        outputs=tuple(value(v.name) for v in model.graph.output),
        operators=tuple(map(operator, nodes)),
    )


def _constants(graph: "onnx.GraphProto") -> Iterable[tuple[str, Value]]:
    number = itertools.count()
    packed = packed_matrices(graph)
    for tensor in graph.initializer:
        if tensor.name in packed:
            value = Value(tensor.name, *packed[tensor.name], True, next(number), True)
            yield tensor.name, value
        else:
            yield tensor.name, _constant(tensor.name, tensor, next(number))
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            name = node.output[0]
            if attribute.name == "value":
                yield name, _constant(name, attribute.t, next(number))
            else:
                yield name, Value(name, "int64", (), constant=True, shared=next(number))


def _constant(name: str, tensor: "onnx.TensorProto", number: int) -> Value:
    dtype = _dtype(tensor.data_type)
    # Biases of quantized convolutions are int32; no operator takes a shape of that type.
    weight = is_weight_type(dtype) or dtype == "int32"
    return Value(name, dtype, tuple(tensor.dims), True, number, weight)


def _fix_shape(value: "onnx.ValueInfoProto", length: int | None) -> None:
    dims = value.type.tensor_type.shape.dim
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
    for dim, size in zip(dims, input_shape(sizes, length) or ()):
        dim.dim_value = size


def _infer(model: "onnx.ModelProto") -> "tuple[onnx.GraphProto, dict[str, Any]]":
    """The graph with the shapes of its values, and the values that are shapes.

    Weights are left out, for they only take time.
    """
    import onnx

    light = onnx.ModelProto()
    light.CopyFrom(model)
    graph = light.graph
    _unpack_products(graph)
    declared = {value.name for value in graph.input}
    del graph.initializer[:]
    known = {}
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL:
            graph.initializer.append(tensor)
            known[tensor.name] = onnx.numpy_helper.to_array(tensor)
        elif tensor.name not in declared:
            shape = list(tensor.dims)
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, shape)
            )
    inferred: onnx.GraphProto = graph
    for _ in range(_ROUNDS):
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            break  # shapes that contradict each other are not known
        if not _fold_shapes(graph, inferred, known):
            break
    return inferred, known


def _unpack_products(graph: "onnx.GraphProto") -> None:
    """MatMulNBits, which inference does not know, as the MatMul that has the same shapes."""
    import onnx

    packed = packed_matrices(graph)
    for node in graph.node:
        if node.op_type == "MatMulNBits" and node.input[1] in packed:
            outputs, inputs = packed[node.input[1]][1]
            wide, shape = f"{node.output[0]}.matrix", [inputs, outputs]
            graph.input.append(
                onnx.helper.make_tensor_value_info(wide, onnx.TensorProto.FLOAT, shape)
            )
            node.CopyFrom(onnx.helper.make_node("MatMul", [node.input[0], wide], list(node.output)))


def _fold_shapes(
    graph: "onnx.GraphProto", inferred: "onnx.GraphProto", known: dict[str, Any]
) -> bool:
    """Replace what is worked out from known shapes by its value; whether there was any."""
    import onnx

    shapes = {info.name: _shape(info) for info in (*inferred.value_info, *inferred.input)}
    kept = []
    for node in graph.node:
        found = _folded(node, shapes, known)
        if found is None:
            kept.append(node)
            continue
        name = node.output[0]
        known[name] = found
        graph.initializer.append(onnx.numpy_helper.from_array(found, name))
    folded = len(kept) < len(graph.node)
    if folded:
        del graph.node[:]
        graph.node.extend(kept)
    return folded


def _folded(node: "onnx.NodeProto", shapes: dict[str, Any], known: dict[str, Any]) -> Any:
    import onnx
    from onnx.reference import ReferenceEvaluator

    if node.domain not in _STANDARD or len(node.output) != 1:
        return None
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        tensor = node.attribute[0].t
        small = int(np.prod(tensor.dims, dtype=np.int64)) <= _SMALL
        return onnx.numpy_helper.to_array(tensor) if small else None
    if node.op_type == "Shape" and shapes.get(node.input[0]) is not None:
        options = _attributes(node)
        whole: tuple[int, ...] = shapes[node.input[0]]
        return np.array(whole[options.get("start", 0) : options.get("end")], np.int64)
    inputs = {name: known.get(name) for name in node.input if name}
    if node.op_type not in _SHAPE_ARITHMETIC or not inputs:
        return None
    if any(a is None or a.size > _SMALL or a.dtype != np.int64 for a in inputs.values()):
        return None
    try:
        results: Any = ReferenceEvaluator(node).run(None, inputs)
    except Exception:  # whatever a wrong node makes numpy raise: its value is not known
        return None
    found = results[0]
    return found if isinstance(found, np.ndarray) and found.dtype == np.int64 else None


def _macs(node: "onnx.NodeProto", inputs: list[Value], outputs: tuple[Value, ...]) -> int | None:
    kind, options = node.op_type, _attributes(node)
    made = outputs[0].count if outputs else None
    if any(True for _ in subgraphs(node)):
        return None
    if kind in _MATRIX:
        inner = -2 if options.get("transA") else -1
        return product(made, extent(inputs[0], inner))
    if kind in ("Gemm", "FusedGemm"):
        return product(made, extent(inputs[0], 0 if options.get("transA") else 1))
    if kind in _FILTER and len(inputs) > _FILTER[kind]:
        return product(made, trailing(inputs[_FILTER[kind]]))
    if kind == "ConvTranspose":
        return product(inputs[0].count, trailing(inputs[1]))
    if kind == "MatMulNBits":
        return product(made, options.get("K"))
    if kind == "Einsum":
        return _einsum_macs(options["equation"].decode(), inputs)
    if kind in _UNCOUNTED:
        return None
    return 0 if node.domain in _STANDARD or kind in _ELEMENTWISE else None


def _einsum_macs(equation: str, inputs: list[Value]) -> int | None:
    """Of two factors: the product of the sizes of all letters."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or len(inputs) != 2 or "." in equation:
        return None
    sizes: dict[str, int] = {}  # by letter
    for term, value in zip(terms, inputs, strict=True):
        if value.shape is None or len(term) != len(value.shape):
            return None
        sizes |= dict(zip(term, value.shape, strict=True))
    return product(*sizes.values())


def _attributes(node: "onnx.NodeProto") -> dict[str, Any]:
    import onnx

    plain = [entry for entry in node.attribute if entry.type != onnx.AttributeProto.GRAPH]
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in plain}


def _shape(info: "onnx.ValueInfoProto") -> tuple[int, ...] | None:
    kind = info.type.tensor_type
    if not kind.HasField("shape"):
        return None
    dims = tuple(dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value"))
    return dims if len(dims) == len(kind.shape.dim) else None


def _dtype(data_type: int) -> str:
    import onnx

    name: str = onnx.TensorProto.DataType.Name(data_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
