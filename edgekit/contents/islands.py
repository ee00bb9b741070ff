"""The float islands of a static int8 file: operators between its integers that work in float."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from edgekit.contents import identify_format

# Operators that are float in layers that are kept so, and nowhere else.
_KERNELS = {
    "BATCH_MATMUL",
    "CONV_2D",
    "Conv",
    "FULLY_CONNECTED",
    "GELU",
    "Gemm",
    "MatMul",
    "SOFTMAX",
    "Softmax",
}
# There as well as elsewhere.
_SUMS = {"ADD", "Add", "MUL", "Mul"}
# ONNX operators that ONNX Runtime fuses with the DequantizeLinear before and the QuantizeLinear
# behind them, and operators of both formats that move numbers or make shapes.
_FUSED = {"Gemm", "Conv", "MatMul", "Add", "Softmax", "Sigmoid", "GlobalAveragePool", "Relu"}
_NOT_ARITHMETIC = {
    "CAST",
    "Cast",
    "Concat",
    "DEQUANTIZE",
    "DequantizeLinear",
    "Expand",
    "Flatten",
    "Gather",
    "Identity",
    "MaxPool",
    "QUANTIZE",
    "QuantizeLinear",
    "RESHAPE",
    "Reshape",
    "SLICE",
    "STRIDED_SLICE",
    "Shape",
    "Slice",
    "Squeeze",
    "TRANSPOSE",
    "Transpose",
    "Unsqueeze",
}

_NORM = "norms, with the sums before them: a variance does not fit 8 bits"
_MASK = "the attention mask becomes scores here"
_NO_KERNEL = "the runtime has no integer kernel for it"
_WHY = {
    "LayerNormalization": _NORM,
    "Add": _NORM,
    "ADD": _NORM,
    "MEAN": _NORM,
    "RSQRT": _NORM,
    "SUB": f"{_NORM}; {_MASK}",
    "MUL": f"{_NORM}; {_MASK}",
    "SQUARED_DIFFERENCE": _NORM,
    "Sub": _MASK,
    "Mul": _MASK,
}


def float_islands(path: Path, float_layers: Collection[str] = ()) -> list[dict[str, str | int]]:
    """Each kind of float operator, how often it is there, and why; most frequent first.

    float_layers: layers that were kept in float on purpose. Quantizing, dequantizing and moving
    numbers is no arithmetic and is not listed. Raises ModelError as ``read_contents`` does.
    """
    kinds = _of_onnx(path) if identify_format(path) == "onnx" else _of_tflite(path)
    kept = f"kept float: sensitive ({', '.join(float_layers)})" if float_layers else ""
    return [
        {"op": kind, "count": count, "why": _reason(kind, kept)}
        for kind, count in kinds.most_common()
    ]


def _reason(kind: str, kept: str) -> str:
    """Why an operator is float. kept: the reason of layers that were kept so, or nothing."""
    if kept and kind in _KERNELS:
        return kept
    known = _WHY.get(kind, _NO_KERNEL)
    return f"{known}; or {kept}" if kept and kind in _SUMS else known


def _of_onnx(path: Path) -> Counter[str]:
    from edgekit.contents.onnx import load_onnx

    graph = load_onnx(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    found: Counter[str] = Counter()
    for node in graph.node:
        if node.op_type in _NOT_ARITHMETIC:
            continue
        reads_integers = all(
            name in constants or not name or makers[name].op_type in ("DequantizeLinear", *_FUSED)
            for name in node.input
            if name in makers or name in constants or not name
        )
        leads_on = set(readers.get(node.output[0], ())) <= {"QuantizeLinear", "Relu"}
        if not (node.op_type in _FUSED and reads_integers and leads_on):
            found[node.op_type] += 1
    return found


def _of_tflite(path: Path) -> Counter[str]:
    from edgekit.export.tflite_file import read_program
    from edgekit.export.tflite_graph import type_name

    program = read_program(path.read_bytes(), str(path))
    return Counter(
        op.kernel.name
        for op in program.graphs[0].operators
        if op.kernel.name not in _NOT_ARITHMETIC
        and any(type_name(output.type) == "float32" for output in op.outputs)
    )
