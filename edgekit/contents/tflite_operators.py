"""The operators of a TFLite file, with the shapes of one inference."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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
from edgekit.errors import ModelError
from edgekit.export import tflite_graph as file
from edgekit.export.tflite_file import read_program

# Multiply in ways that are not counted here, so that a file with one has no count.
_UNCOUNTED = ("LSTM", "RNN", "SVDF", "WHILE", "IF", "CALL", "STABLEHLO", "FFT", "CONV_3D_TRANSPOSE")
_TABLE = {"EMBEDDING_LOOKUP": 1, "GATHER": 0, "GATHER_ND": 0, "SLICE": 0, "STRIDED_SLICE": 0}
_VIEWS = {"RESHAPE", "SQUEEZE", "EXPAND_DIMS"}
_SHAPES = Path(__file__).with_name("tflite_shapes.py")
_PATIENCE = 60  # seconds that LiteRT may take to prepare a graph

Shape = tuple[int, ...] | None


def read_tflite_graph(path: Path, length: int | None) -> Graph:
    """The graph that runs for one row of ``length`` tokens: the smallest that holds them.

    Without a length, the first. Raises ModelError for a damaged file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; give a model file") from error
    program = read_program(content, str(path))
    graph = _holding(program, length)
    shapes = _shapes(path, program, graph, length)
    values: dict[int, Value] = {}

    def value(tensor: file.Tensor) -> Value:
        if id(tensor) not in values:
            kind = file.type_name(tensor.type)
            constant = tensor.data is not None
            values[id(tensor)] = Value(
                name=tensor.name,
                dtype=kind,
                shape=tensor.shape if constant else shapes.get(id(tensor)),
                constant=constant,
                shared=id(tensor.data),
                weight=constant and (is_weight_type(kind) or _scaled(tensor)),
            )
        return values[id(tensor)]

    def operator(op: file.Operator) -> Operator:
        inputs = tuple(value(tensor) for tensor in op.inputs if tensor is not None)
        outputs = tuple(map(value, op.outputs))
        kind = op.kernel.name
        return Operator(
            kind=kind,
            name=outputs[0].name if outputs else kind,
            inputs=inputs,
            outputs=outputs,
            macs=_macs(op, inputs, outputs),
            table=_TABLE.get(kind),
            view=kind in _VIEWS,
        )

    return Graph(
        inputs=tuple(map(value, graph.inputs)),
        outputs=tuple(map(value, graph.outputs)),
        operators=tuple(map(operator, graph.operators)),
    )


def _holding(program: file.Program, length: int | None) -> file.Graph:
    graphs = [signature.graph for signature in program.signatures] or program.graphs[:1]
    if length is None or len(graphs) == 1:
        return graphs[0]

    def tokens(graph: file.Graph) -> int:
        return max((t.shape[1] for t in graph.inputs if len(t.shape) > 1), default=0)

    ordered = sorted(graphs, key=tokens)
    return next((graph for graph in ordered if tokens(graph) >= length), ordered[-1])


def _shapes(
    path: Path, program: file.Program, graph: file.Graph, length: int | None
) -> dict[int, Shape]:
    """Shapes of the values by the ids of their tensors; what is not there is not known."""
    values = [tensor for tensor in graph.tensors() if tensor.data is None]
    wanted = [input_shape(_dims(tensor), length) for tensor in graph.inputs]
    if not any(None in _dims(tensor) for tensor in values):
        return {id(tensor): tensor.shape for tensor in values}
    known: dict[int, Shape] = {id(t): shape for t, shape in zip(graph.inputs, wanted)}
    if graph is not program.graphs[0] or None in wanted:
        return known
    for op, shapes in zip(graph.operators, _ask_litert(path, wanted)):
        for tensor, shape in zip(op.outputs, shapes):
            known[id(tensor)] = None if shape is None else tuple(shape)
    return known


def _ask_litert(path: Path, inputs: list[Shape]) -> list[list[list[int] | None]]:
    """Shapes of each operator's outputs; nothing where LiteRT does not take the file."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory(prefix="edgekit-shapes-") as folder:
        result = Path(folder) / "shapes.json"
        command = [sys.executable, "-s", str(_SHAPES), str(path.absolute()), str(result)]
        try:
            subprocess.run(
                command,
                input=json.dumps(inputs).encode(),
                env={**os.environ, **quiet},
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
            )
            found: list[list[list[int] | None]] = json.loads(result.read_text())
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return []
        return found


def _dims(tensor: file.Tensor) -> list[int | None]:
    """A tensor's sizes; none where they vary."""
    signature = None if tensor.fields is None else tensor.fields.shapeSignature
    if signature is None or len(signature) != len(tensor.shape):
        return list(tensor.shape)
    return [None if free < 0 else size for size, free in zip(tensor.shape, signature)]


def _scaled(tensor: file.Tensor) -> bool:
    """Whether a constant says its scale, as the int32 biases of quantized operators do."""
    quantization = None if tensor.fields is None else tensor.fields.quantization
    return quantization is not None and quantization.scale is not None


def _macs(op: file.Operator, inputs: tuple[Value, ...], outputs: tuple[Value, ...]) -> int | None:
    kind, made = op.kernel.name, outputs[0].count if outputs else None
    options = None if op.fields is None else op.fields.builtinOptions
    if op.kernel.custom is not None or any(mark in kind for mark in _UNCOUNTED):
        return None
    if len(inputs) < 2:
        return 0
    weight = inputs[1]
    if kind == "FULLY_CONNECTED":
        return product(made, extent(weight, -1))
    if kind == "CONV_2D":
        return product(made, trailing(weight))
    if kind == "DEPTHWISE_CONV_2D":
        return product(made, extent(weight, 1, 2))
    if kind == "CONV_3D":
        return product(made, extent(weight, 0, 1, 2, 3))
    if kind == "TRANSPOSE_CONV" and len(inputs) > 2:
        return product(inputs[2].count, extent(weight, 0, 1, 2))
    if kind == "BATCH_MATMUL":
        return product(made, extent(inputs[0], -2 if getattr(options, "adjX", False) else -1))
    return 0
