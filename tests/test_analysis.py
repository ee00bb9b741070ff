"""``edgekit.analyze``: the scores, recomputed from the weights, and the picture of them."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgekit
from edgekit.errors import ModelError, OutputError, UsageError
from edgekit.model import identify, load_model, save_model
from edgekit.steps.prune.slicing import cut, everything
from tests.tiny import tiny_checkpoint
from tests.tiny_project import TinyProject, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny_project(tmp_path_factory.mktemp("project"), layers=2)


def test_scores_of_layers_heads_and_neurons(project: TinyProject) -> None:
    found = edgekit.analyze(project.checkpoint, data=project.train)
    scores = {(each.part, each.score): each.rows for each in found.found}
    assert found.notes == ()
    layers = scores["layers", "contribution"]
    assert list(layers) == ["layer 1", "layer 2"]
    assert all(0 < values[0] < 2 for values in layers.values())
    weights = load_file(project.checkpoint / "model.safetensors")
    prefix = "bert.encoder.layer.1.attention."
    value = weights[prefix + "self.value.weight"].astype(np.float64)
    output = weights[prefix + "output.dense.weight"].astype(np.float64)
    bias = weights[prefix + "self.value.bias"].astype(np.float64)
    value = np.hstack([value, bias[:, None]])
    expected = [
        np.linalg.norm(output[:, at : at + 6] @ value[at : at + 6]) for at in range(0, 24, 6)
    ]
    np.testing.assert_allclose(scores["heads", "magnitude"]["layer 2"], expected, rtol=1e-6)
    assert scores["neurons", "probe"]["classifier"].shape == (24,)


def test_without_data_what_needs_none_is_there_and_the_rest_says_why(project: TinyProject) -> None:
    found = edgekit.analyze(project.checkpoint)
    assert [(e.part, e.score) for e in found.found] == [
        ("heads", "magnitude"),
        ("neurons", "magnitude"),
    ]
    assert len(found.notes) == 6 and all("--data" in note for note in found.notes)


def test_the_picture_has_a_shape_for_each_unit(project: TinyProject, tmp_path: Path) -> None:
    found = edgekit.analyze(project.checkpoint, data=project.train, plot=tmp_path / "plot.svg")
    tree = ElementTree.parse(tmp_path / "plot.svg")
    space = "{http://www.w3.org/2000/svg}"
    units = sum(len(values) for each in found.found for values in each.rows.values())
    assert len(tree.findall(f"{space}rect")) == 1 + units
    texts = [each.text for each in tree.findall(f"{space}text")]
    assert "heads by magnitude" in texts and "layer 2" in texts
    with pytest.raises(OutputError, match="cannot write"):
        edgekit.analyze(project.checkpoint, plot=tmp_path / "none" / "plot.svg")


def test_what_a_family_has_no_score_of_is_said(tmp_path: Path) -> None:
    for family, heads, neurons in (("albert", 1, 1), ("xlnet", 0, 2), ("mobilebert", 2, 0)):
        found = edgekit.analyze(tiny_checkpoint(tmp_path / family, family))
        rows = {each.part: len(each.rows) for each in found.found}
        assert rows == {part: n for part, n in (("heads", heads), ("neurons", neurons)) if n}
        missing = [part for part in ("heads", "neurons") if part not in rows]
        assert all(any(f"magnitude of {part}" in note for note in found.notes) for part in missing)


def test_what_it_does_not_read(tmp_path: Path) -> None:
    pictures = tiny_checkpoint(tmp_path, "vit", task="image-classification")
    with pytest.raises(ModelError, match="reads pictures"):
        edgekit.analyze(pictures)


def test_a_wrong_seed_is_one_sentence(project: TinyProject) -> None:
    with pytest.raises(UsageError, match="a seed is a whole number from 0"):
        edgekit.analyze(project.checkpoint, data=project.train, seed=-1)


def test_a_model_without_attention_has_neurons_that_matter(
    project: TinyProject, tmp_path: Path
) -> None:
    model = load_model(identify(str(project.checkpoint)))
    kept = [replace(each, heads=[]) for each in everything(model)]
    save_model(model.with_module(cut(model, kept), "by hand"), tmp_path / "pruned")
    found = edgekit.analyze(tmp_path / "pruned", data=project.train)
    assert {each.part for each in found.found} == {"layers", "neurons"}
    assert sum("of heads" in note and "has any left" in note for note in found.notes) == 3
    assert not any(np.isnan(v).any() for each in found.found for v in each.rows.values())
