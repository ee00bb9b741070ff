"""Profiles by the real runtimes: every operator timed, and called as the model calls its layers."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact, Format, Tensor
from edgekit.contents.places import layer_of
from edgekit.data import Rows
from edgekit.devices import agent
from edgekit.export import export_artifact
from edgekit.export.tflite_file import write_program
from edgekit.export.tflite_graph import Graph, Program, Signature, constant, operator, schema
from edgekit.export.tflite_graph import Tensor as Value
from edgekit.measure.profile import BETWEEN, by_layer, name_layers, profile, top
from edgekit.model import identify, load_model
from edgekit.preprocess import Encoded
from tests.tiny import tiny_checkpoint, tiny_texts

WIDTH = 512
NAMES = ("bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense")


def weights() -> list[Any]:
    return [np.random.default_rng(n).normal(size=(WIDTH, WIDTH)).astype(np.float32) for n in (0, 1)]


def onnx_stack(folder: Path) -> Artifact:
    """Two products with a ReLU behind each, named after a checkpoint's weights."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = []
    for number, name in enumerate(NAMES):
        product = [f"x{number}", f"{name}.weight"], [f"p{number}"]
        nodes.append(helper.make_node("MatMul", *product, name=f"product_{number}"))
        ends = [f"p{number}"], [f"x{number + 1}"]
        nodes.append(helper.make_node("Sin", *ends, name=f"sine_{number}"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH])
        for name in ("x0", "x2")
    ]
    stored = [numpy_helper.from_array(w, f"{n}.weight") for w, n in zip(weights(), NAMES)]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    path = folder / "model.onnx"
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return described(path, "onnx", "x0")


def tflite_stack(folder: Path) -> Artifact:
    """Two products, and a sine that XNNPACK's delegate may leave to LiteRT's own kernel."""
    values = [Value(f"x{number}", 0, (1, WIDTH)) for number in range(4)]
    ops = [operator("SIN", values[:1], values[1:2])]
    for number, (name, weight) in enumerate(zip(NAMES, weights())):
        options = schema().FullyConnectedOptionsT()
        inputs = [values[number + 1], constant(f"{name}.weight", weight), None]
        ops.append(operator("FULLY_CONNECTED", inputs, [values[number + 2]], options=options))
    graph = Graph(values[:1], values[-1:], ops)
    signature = Signature("main", graph, {"x": values[0]}, {"y": values[-1]})
    path = folder / "model.tflite"
    write_program(Program([graph], [signature]), path)
    return described(path, "tflite", "x")


def described(path: Path, format: Format, name: str) -> Artifact:
    inputs = (Tensor(name, "float32", ("batch", WIDTH)),)
    return Artifact(path, format, "fp32", inputs, (Tensor("y", "float32", ("batch", WIDTH)),))


def rows(artifact: Artifact) -> Encoded:
    return Encoded({artifact.inputs[0].name: np.ones((3, WIDTH), np.float32)}, None)


@pytest.mark.parametrize("make", [onnx_stack, tflite_stack])
def test_every_operator_has_its_time_and_its_layer(tmp_path: Path, make: Any) -> None:
    artifact = make(tmp_path)
    found = profile(artifact, rows(artifact), [0, 2], threads=1, seconds=0.05)
    assert found["reason"] is None
    assert found["inferences"] >= 1
    assert all(op["calls"] == found["inferences"] for op in found["ops"])
    products = [op for op in found["ops"] if op["kind"] in ("MatMul", "Fully Connected")]
    assert [op["layer"] for op in products] == ["layer 0 attention", "layer 0 feed-forward"]
    assert all(op["seconds"] > 0 for op in products)
    assert {op["layer"] for op in found["ops"]} == {op["layer"] for op in products}
    assert sum(op["seconds"] for op in found["ops"]) <= found["total_seconds"]

    layers = by_layer(found)
    assert [each["layer"] for each in layers] == [
        "layer 0 attention",
        "layer 0 feed-forward",
        BETWEEN,
    ]
    assert sum(each["share"] for each in layers) == pytest.approx(1)
    times = [op["seconds"] for op in found["ops"]]
    assert [op["seconds"] for op in top(found, 2)] == sorted(times)[:-3:-1]


@pytest.mark.slow
def test_a_runtime_without_a_profiler_says_so(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "model.pt"
    module = torch.nn.Linear(WIDTH, 2).eval()
    torch.jit.trace(module, torch.ones(1, WIDTH)).save(str(path))
    artifact = described(path, "torchscript", "x")
    found = profile(artifact, rows(artifact), [0], threads=1, seconds=0.05)
    assert found["ops"] == [] and found["total_seconds"] is None
    assert found["reason"] == "the runtime of torchscript is not profiled"
    assert by_layer(found) == [] and top(found, 3) == []


def test_no_layer_is_made_up_when_a_delegate_runs_other_products(tmp_path: Path) -> None:
    """Three products where the file has two: their order does not tell which is which."""
    artifact = tflite_stack(tmp_path)
    op = {"name": "Fully Connected (NC, F32)", "kind": "Fully Connected", "index": None}
    seen = [op | {"seconds": 1e-3, "calls": 1} for _ in range(3)]
    found = {"ops": seen, "total_seconds": 4e-3, "inferences": 1, "reason": None}
    named = name_layers(found, artifact, None)
    assert [op["layer"] for op in named["ops"]] == [None, None, None]
    assert [each["layer"] for each in by_layer(named)] == ["Fully Connected", BETWEEN]


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("module.bert.embeddings.word_embeddings.weight.int8", "embeddings"),
        ("encoder.positions.scale", "embeddings"),
        ("bert.encoder.layer.11.attention.self.query.weight", "layer 11 attention"),
        ("bert.encoder.layer.3.attention.output.LayerNorm.bias", "layer 3 attention"),
        ("bert.encoder.layer.3.intermediate.dense.weight.scale", "layer 3 feed-forward"),
        ("bert.encoder.layer.3.output.LayerNorm.weight", "layer 3 feed-forward"),
        ("distilbert.transformer.layer.0.attention.q_lin.weight", "layer 0 attention"),
        ("distilbert.transformer.layer.0.sa_layer_norm.weight", "layer 0 attention"),
        ("distilbert.transformer.layer.0.ffn.lin1.weight", "layer 0 feed-forward"),
        ("transformer.layer.2.rel_attn.q", "layer 2 attention"),
        ("transformer.layer.2.ff.layer_1.weight", "layer 2 feed-forward"),
        ("bert.pooler.dense.weight", "head"),
        ("classifier.weight", "head"),
        ("mobilenet_v2.layer.3.expand_1x1.convolution.weight.int8",
         "mobilenet_v2.layer.3.expand_1x1.convolution"),
        ("model/conv2d_1/Conv2D;model/other", "model/conv2d_1/Conv2D"),
    ],
)  # fmt: skip
def test_weights_name_layers(weight: str, layer: str) -> None:
    assert layer_of(weight) == layer


def test_the_agent_is_python_3_9() -> None:
    ast.parse(Path(agent.__file__).read_text(), feature_version=(3, 9))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "any_length"), [("onnx", False), ("tflite", True), ("tflite", False)]
)
def test_the_layers_of_a_bert_are_all_there(
    tmp_path: Path, format: Format, any_length: bool
) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "checkpoint"))))
    artifact = export_artifact(
        model, tmp_path / "out", format, "int8-dynamic", any_length=any_length
    )
    encoded = model.preprocessor.encode(Rows(texts=tuple(tiny_texts(6))))
    found = profile(artifact, encoded, list(range(6)), threads=1, seconds=0.5)
    assert found["reason"] is None
    assert [each["layer"] for each in by_layer(found)] == [
        "embeddings",
        "layer 0 attention",
        "layer 0 feed-forward",
        "layer 1 attention",
        "layer 1 feed-forward",
        "head",
        BETWEEN,
    ]
