"""Layers that share weights: stored once, in the checkpoint and in files; equal ones exactly."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as tflite
from safetensors.numpy import load_file

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.distill import Distill
from edgekit.steps.factorize.tie_layers import TieLayers
from edgekit.steps.prune.drop_layers import DropLayers
from tests.static_cases import calibrated
from tests.steps.prune.test_drop_layers import model_of
from tests.tiny import tiny_texts

ROWS = Rows(texts=tuple(tiny_texts(40)))


def tied(model: Model, groups: int = 1) -> Model:
    return apply_steps([TieLayers(groups)], model, Context(ROWS, 0))


def answers(model: Model) -> Any:
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(ROWS))


def layers_of(folder: Path) -> set[int]:
    names = load_file(folder / "model.safetensors")
    return {int(n.split(".layer.")[1].split(".")[0]) for n in names if ".layer." in n}


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "xlnet"])
def test_equal_layers_are_stored_once_and_answer_the_same(family: str, tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", family, 3)
    assert model.architecture is not None and model.architecture.stack is not None
    stack = model.architecture.stack(model.module.base_model)
    for number in (1, 2):
        stack[number].load_state_dict(copy.deepcopy(stack[0].state_dict()))
    after = tied(model)
    np.testing.assert_allclose(answers(after), answers(model), atol=1e-5)
    save_model(after, tmp_path / "tied")
    assert layers_of(tmp_path / "tied") == {0}
    loaded = load_model(identify(str(tmp_path / "tied")))
    np.testing.assert_allclose(answers(loaded), answers(model), atol=1e-5)


@pytest.mark.parametrize(
    ("depth", "groups", "first"),
    [(6, 1, [0] * 6), (6, 2, [0, 0, 0, 3, 3, 3]), (6, 4, [0, 0, 2, 3, 3, 5])],
)
def test_groups_are_runs_as_in_albert(
    depth: int, groups: int, first: list[int], tmp_path: Path
) -> None:
    assert [layer * groups // depth for layer in first] == sorted(
        layer * groups // depth for layer in range(depth)
    )
    model = model_of(tmp_path / "whole", depth=depth)
    expected = copy.deepcopy(model.module)
    layers = expected.bert.encoder.layer  # type: ignore[attr-defined]
    for layer, source in enumerate(first):
        layers[layer].load_state_dict(copy.deepcopy(layers[source].state_dict()))
    after = tied(model, groups)
    expected_ = answers(model.with_module(expected, ""))
    np.testing.assert_allclose(answers(after), expected_, atol=1e-5)
    save_model(after, tmp_path / "tied")
    assert layers_of(tmp_path / "tied") == set(first)


@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_files_store_one_copy_too(format: Any, tmp_path: Path) -> None:
    one_copy_in_a_file(format, tmp_path)


@pytest.mark.slow
def test_tflite_stores_one_copy_too(tmp_path: Path) -> None:
    one_copy_in_a_file("tflite", tmp_path)


def one_copy_in_a_file(format: Any, folder: Path) -> None:
    model = model_of(folder / "whole", depth=3, hidden_size=96, intermediate_size=384)
    layer = sum(p.numel() for p in model.module.bert.encoder.layer[0].parameters())  # type: ignore[attr-defined]
    assert model.preprocessor is not None
    for scheme, width in {"fp32": 4, "int8-dynamic": 1}.items():
        models = [model, tied(model)]
        named: Any = scheme
        whole, less = (
            export_artifact(each, folder / f"{scheme}-{n}", format, named, any_length=True).bytes
            for n, each in enumerate(models)
        )
        # Scales and packed forms are on top of the numbers themselves.
        assert whole - less >= 0.95 * 2 * layer * width


@pytest.mark.slow
def test_a_static_file_holds_one_copy_as_integers(tmp_path: Path) -> None:
    """Layers that share a weight read it transposed, which torch does not fold if large."""
    model = tied(model_of(tmp_path / "whole", depth=2, hidden_size=96))
    static, _ = calibrated(model, model.preprocessor.encode(ROWS))  # type: ignore[union-attr]
    file = export_artifact(static, tmp_path, "onnx", "int8-static")
    matrices = [t for t in onnx.load(file.path).graph.initializer if len(t.dims) == 2]
    assert {t.data_type for t in matrices} == {onnx.TensorProto.INT8}
    names = [t.name for t in matrices if ".layer." in t.name]
    assert len(names) == 6 and len({name.split(".layer.")[1][0] for name in names}) == 1
    path = export_artifact(static, tmp_path, "tflite", "int8-static", any_length=True).path
    buffers = tflite.ModelT.InitFromPackedBuf(path.read_bytes(), 0).buffers
    sizes = [len(each.data) for each in buffers if each.data is not None]
    layer = model.module.bert.encoder.layer[0]  # type: ignore[attr-defined]
    # Attention's four and the head's own, as large; then the feed-forward's two.
    assert sizes.count(layer.attention.self.query.weight.numel()) == 5
    assert sizes.count(layer.intermediate.dense.weight.numel()) == 2


@pytest.mark.slow
def test_later_steps_take_it(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", depth=4)
    context = Context(ROWS, 0, folder=tmp_path)
    taught = apply_steps([TieLayers(2), Distill(epochs=3, learning_rate=3e-3)], model, context)
    assert np.abs(answers(taught) - answers(model)).mean() < (
        np.abs(answers(tied(model, 2)) - answers(model)).mean()
    )
    fewer = apply_steps([DropLayers("symmetric", count=2)], taught, context)
    save_model(fewer, tmp_path / "fewer")
    loaded = load_model(identify(str(tmp_path / "fewer")))
    np.testing.assert_allclose(answers(loaded), answers(fewer), atol=1e-5)


@pytest.mark.slow
def test_refusals(tmp_path: Path) -> None:
    model = model_of(tmp_path / "bert", depth=3)
    for groups in (0, 3):
        with pytest.raises(RecipeError, match=f"from 1 to 2 of 3 different layers, is {groups}"):
            tied(model, groups)
    with pytest.raises(RecipeError, match="share their weights already"):
        tied(model_of(tmp_path / "albert", "albert"))
    assert model.preprocessor is not None
    static, _ = calibrated(model, model.preprocessor.encode(ROWS))
    with pytest.raises(RecipeError, match="grid of integers"):
        tied(static)


def test_the_original_keeps_its_layers(tmp_path: Path) -> None:
    model = model_of(tmp_path, depth=3)
    before = [p.clone() for p in model.module.parameters()]
    tied(model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.module.parameters(), strict=True))


def test_what_is_tied_can_be_tied_further(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", depth=6)
    once = tied(model, 4)
    np.testing.assert_array_equal(answers(tied(once, 1)), answers(tied(model, 1)))
    with pytest.raises(RecipeError, match="from 1 to 3 of 4 different layers, is 4"):
        tied(once, 4)
    stack = model.module.bert.encoder.layer  # type: ignore[union-attr]
    for number in (1, 2, 3):
        stack[number] = stack[0]  # type: ignore[index, operator]
    with pytest.raises(RecipeError, match="2 runs would begin with 1 different ones; give fewer"):
        tied(model, 2)
