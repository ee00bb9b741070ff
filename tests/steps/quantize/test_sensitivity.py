"""A layer that int8 ruins is found, and alone stays float: in the model and in both files."""

import copy
import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgekit.contents import read_contents
from edgekit.contents.islands import float_islands
from edgekit.data import Rows
from edgekit.errors import ModelError, RecipeError
from edgekit.events import unwatched
from edgekit.export import export_artifact
from edgekit.measure.integers import check_integers
from edgekit.measure.size import check_scheme
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.step import Context
from edgekit.steps.quantize.calibrate import Calibrate
from edgekit.steps.quantize.sensitivity import scan_layers, worst_block
from edgekit.steps.quantize.static import (
    fake_outputs,
    integer_weights,
    outputs_of,
    traced,
)
from edgekit.workbench import encode
from tests.export.cases import case
from tests.export.test_onnx import run
from tests.export.test_tflite import raw_model, run_all
from tests.static_cases import holds, static_case, wide_matrices
from tests.tiny import tiny_checkpoint, tiny_texts

torch.set_num_threads(1)

TEXTS = Rows(texts=tuple(tiny_texts(160)))
LAYER = "bert.encoder.layer."


@functools.cache
def three_layers() -> Model:
    folder = Path(tempfile.mkdtemp()) / "checkpoint"
    return load_model(identify(str(tiny_checkpoint(folder, "bert", num_hidden_layers=3))))


def planted(*layers: int) -> Model:
    """A model with one huge activation in these layers, that nothing weighs."""
    model = three_layers()
    model = replace(model, module=copy.deepcopy(model.module))
    for number in layers:
        layer: Any = model.module.bert.encoder.layer[number]  # type: ignore[union-attr]
        with torch.no_grad():
            layer.intermediate.dense.bias[4] = 2000.0
            layer.output.dense.weight[:, 4] = 0.0
    return model


@functools.cache
def kept() -> Model:
    folder = Path(tempfile.mkdtemp())
    return Calibrate(accuracy_drop=0.03).apply(planted(1), Context(TEXTS, 0, folder))


def agreement(model: Model, original: Model) -> float:
    rows = encode(model, TEXTS)
    ours, theirs = fake_outputs(model, rows), reference_outputs(original, rows)
    return float((ours.argmax(1) == theirs.argmax(1)).mean())


@pytest.mark.slow
def test_the_planted_layer_is_found_and_told() -> None:
    model = kept()
    assert model.quantized is not None
    assert model.quantized.float_layers == (f"{LAYER}1",)
    said = model.lineage[-1]
    assert said.startswith(f"error that each layer in int8 adds alone: {LAYER}1 ")
    assert f"; kept float: {LAYER}1; lost on training rows held out: " in said
    found = traced(model)
    assert set(model.quantized.ranges) == set(found.points)
    inside = {name for name in found.points if name.startswith(f"{LAYER}1.")}
    # What the last layer reads of it (of all rows, and of the first), and no more.
    assert inside == {f"{LAYER}1.output.LayerNorm", f"{LAYER}1.slice"}
    plainly = Calibrate().apply(planted(1), Context(TEXTS, 0, Path(tempfile.mkdtemp())))
    assert agreement(model, planted(1)) > 0.96 > 0.9 > agreement(plainly, planted(1))


@pytest.mark.slow
def test_layers_apart_are_kept_as_one_block(tmp_path: Path) -> None:
    told: list[str] = []
    context = Context(TEXTS, 0, tmp_path, lambda _, text: told.append(text))
    model = Calibrate(accuracy_drop=0.03, bias_correction=True).apply(planted(0, 2), context)
    assert model.quantized is not None
    assert model.quantized.float_layers == tuple(f"{LAYER}{number}" for number in range(3))
    assert told[0] == f"rounding {LAYER}0 alone" and told[-1].startswith("trying ")


@pytest.mark.slow
def test_a_model_that_holds_keeps_no_layer(tmp_path: Path) -> None:
    """Judged by labels: those of a model that is always right."""
    model = case("bert").model
    model = replace(model, module=copy.deepcopy(model.module))
    logits = reference_outputs(model, encode(model, TEXTS))
    # A random model answers nearly everything alike; centred, it gives each label its share.
    centre = np.median(logits, axis=0)
    with torch.no_grad():
        model.module.classifier.bias -= torch.from_numpy(centre)  # type: ignore[union-attr]
    answers = (logits - centre).argmax(1)
    rows = replace(TEXTS, labels=tuple(model.labels[answer] for answer in answers))
    made = Calibrate(accuracy_drop=0.1).apply(model, Context(rows, 0, tmp_path))
    assert made.quantized is not None and made.quantized.float_layers == ()
    assert "kept float: none; lost on training rows held out: " in made.lineage[-1]


@pytest.mark.slow
def test_onnx_multiplies_floats_in_that_layer_alone(tmp_path: Path) -> None:
    model = kept()
    artifact = export_artifact(model, tmp_path, "onnx", "int8-static")
    graph = onnx.load(artifact.path).graph
    onnx.checker.check_model(onnx.load(artifact.path), full_check=True)
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name for tensor in graph.initializer}

    def weight(node: Any) -> str | None:
        """The constant that a product's second factor is widened from."""
        name = node.input[1]
        while name not in constants:
            if makers[name].op_type not in ("Mul", "Cast", "DequantizeLinear"):
                return None
            name = makers[name].input[0]
        return name

    products = [n for n in graph.node if n.op_type in ("MatMul", "Gemm") and weight(n)]
    assert [node.op_type for node in products] == ["Gemm"] * 6 + ["MatMul"] * 6 + ["Gemm"] * 8
    for node in products:
        integer = makers[node.input[0]].op_type == "DequantizeLinear"
        assert integer == (node.op_type == "Gemm")
        assert integer == (f"{LAYER}1." not in str(weight(node)))
    _hold(artifact, model)
    rows = encode(model, TEXTS).rows(slice(20))
    feeds = {name: array.astype(np.int64) for name, array in rows.arrays.items()}
    _near(model, run(artifact.path, feeds), fake_outputs(model, rows))


@pytest.mark.slow
def test_tflite_multiplies_floats_in_that_layer_alone(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    model = kept()
    artifact = export_artifact(model, tmp_path, "tflite", "int8-static", any_length=True)
    raw = raw_model(artifact.path)
    tensors = raw.subgraphs[0].tensors
    makers = {name: op for op in raw.subgraphs[0].operators for name in op.outputs}
    codes = [code.builtinCode for code in raw.operatorCodes]
    products = []
    for op in raw.subgraphs[0].operators:
        if codes[op.opcodeIndex] == schema.BuiltinOperator.FULLY_CONNECTED:
            widened = makers[op.inputs[1]]
            assert codes[widened.opcodeIndex] == schema.BuiltinOperator.DEQUANTIZE
            assert tensors[op.outputs[0]].type == schema.TensorType.FLOAT32
            products.append(("float", tensors[widened.inputs[0]].name.decode()))
        elif codes[op.opcodeIndex] == schema.BuiltinOperator.CONV_2D:
            assert tensors[op.outputs[0]].type == schema.TensorType.INT8
            products.append(("int8", tensors[op.inputs[1]].name.decode()))
    assert [kind for kind, _ in products] == ["int8"] * 6 + ["float"] * 6 + ["int8"] * 8
    # The converter has folded the scale into the queries' weights, and has no names for them.
    named = [(kind, name) for kind, name in products if LAYER in name]
    assert len(named) == 3 * 5
    assert all((kind == "float") == (f"{LAYER}1." in name) for kind, name in named)
    _hold(artifact, model)
    rows = encode(model, TEXTS).rows(slice(20))
    answers = np.concatenate(run_all(artifact.path, rows, model.inputs, 0)).reshape(20, -1)
    _near(model, answers, fake_outputs(model, rows))


def _hold(artifact: Any, model: Model) -> None:
    """What holds for any static file: integers, bytes; and what is said of the float layer."""
    expected = integer_weights(traced(model))
    assert all(holds(artifact.path, *each) for each in expected.values())
    assert wide_matrices(artifact.path) == []
    record = check_integers(artifact, model)
    assert record is not None and record["tensors"] == len(expected)
    check_scheme(artifact, read_contents(artifact.path))
    assert model.quantized is not None
    islands = float_islands(artifact.path, model.quantized.float_layers)
    reasons = {str(each["op"]): each["why"] for each in islands}
    product = "MatMul" if artifact.format == "onnx" else "FULLY_CONNECTED"
    assert reasons[product] == f"kept float: sensitive ({LAYER}1)"


def _near(model: Model, outputs: Any, fake: Any) -> None:
    step = list(traced(model).points.values())[-1].grid.scale
    assert np.abs(outputs - fake).max() <= 12 * step


@pytest.mark.slow
def test_a_checkpoint_keeps_its_float_layers_and_old_ones_have_none(tmp_path: Path) -> None:
    model = kept()
    save_model(model, tmp_path)
    again = load_model(identify(str(tmp_path)))
    assert again.quantized == model.quantized
    rows = encode(model, TEXTS).rows(slice(8))
    np.testing.assert_allclose(fake_outputs(again, rows), fake_outputs(model, rows), atol=1e-6)
    record = json.loads((tmp_path / "edgekit.json").read_text())
    del record["quantized"]["float_layers"]
    (tmp_path / "edgekit.json").write_text(json.dumps(record))
    old = load_model(identify(str(tmp_path))).quantized
    assert old is not None and old.float_layers == ()


@pytest.mark.slow
def test_when_no_block_is_enough_that_is_said() -> None:
    made = static_case("bert")
    with pytest.raises(ModelError, match=r"with 2 of 3 layers in float .* train on the grid"):
        scan_layers(traced(made.model), made.model, made.case.rows, lambda _: 0.5, 0.1, unwatched)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "vit"])
def test_what_is_scanned_is_what_is_kept(family: str) -> None:
    """Points that pass numbers in a scan, and points that are not there."""
    made = static_case(family)
    assert made.model.quantized is not None
    found = traced(made.model)
    for layers in (found.layers[:1], found.layers[-2:], found.layers):
        found.round_without(layers)
        quantized = replace(made.model.quantized, float_layers=layers)
        model = replace(made.model, quantized=quantized)
        np.testing.assert_array_equal(
            outputs_of(found, model, made.case.rows), fake_outputs(model, made.case.rows)
        )


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.data())
def test_the_worst_block_is_contiguous_and_no_other_loses_more(
    losses: list[float], data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(losses)))
    names = [str(number) for number in range(len(losses))]
    block = worst_block(dict(zip(names, losses)), size)
    assert len(block) == size and "".join(block) in "".join(names)
    total = sum(losses[int(name)] for name in block)
    assert all(sum(losses[s : s + size]) <= total + 1e-9 for s in range(len(losses) - size + 1))


@pytest.mark.parametrize(
    ("family", "drop", "rows", "said"),
    [
        ("bert", 0.01, None, "calibrate: needs training rows"),
        ("bert", 0.01, 100, "judged on a quarter of the training rows, and that of 100 says too"),
        ("bert", 1.0, 160, "is a share between 0 and 1, such as 0.01, is 1"),
        ("bert", 0.0, 160, "is a share between 0 and 1, such as 0.01, is 0"),
        ("resnet", 0.01, 160, "accuracy-drop: this model has no encoder layers"),
        ("xlnet", 0.01, 160, "accuracy-drop: this family keeps its projections as plain tensors"),
    ],
)
def test_what_cannot_be_scanned_is_refused(
    family: str, drop: float, rows: int | None, said: str
) -> None:
    given_rows = None if rows is None else Rows(texts=tuple(tiny_texts(rows)))
    with pytest.raises(RecipeError, match=said):
        Calibrate(accuracy_drop=drop).requires(case(family).model, Context(given_rows, 0))
