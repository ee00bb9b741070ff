"""``edgekit.analyze``: the scores, recomputed from the weights, and the picture of them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import edgekit
from edgekit.errors import ModelError, OutputError
from tests.tiny import tiny_checkpoint
from tests.tiny_project import TinyProject, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny_project(tmp_path_factory.mktemp("project"))


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
    expected = [
        np.sqrt((value[at : at + 6] ** 2).sum()) * np.sqrt((output[:, at : at + 6] ** 2).sum())
        for at in range(0, 24, 6)
    ]
    np.testing.assert_allclose(scores["heads", "magnitude"]["layer 2"], expected, rtol=1e-6)
    assert scores["neurons", "probe"]["classifier"].shape == (24,)


def test_without_data_what_needs_none_is_there_and_the_rest_says_why(project: TinyProject) -> None:
    found = edgekit.analyze(project.checkpoint)
    assert [each.part for each in found.found] == ["heads"]
    assert len(found.notes) == 2 and all("--data" in note for note in found.notes)


def test_the_picture_has_a_shape_for_each_unit(project: TinyProject, tmp_path: Path) -> None:
    edgekit.analyze(project.checkpoint, data=project.train, plot=tmp_path / "plot.svg")
    tree = ElementTree.parse(tmp_path / "plot.svg")
    space = "{http://www.w3.org/2000/svg}"
    # Its background, two layers, two times four heads, 24 neurons.
    assert len(tree.findall(f"{space}rect")) == 1 + 2 + 8 + 24
    texts = [each.text for each in tree.findall(f"{space}text")]
    assert "heads by magnitude" in texts and "layer 2" in texts
    with pytest.raises(OutputError, match="cannot write"):
        edgekit.analyze(project.checkpoint, plot=tmp_path / "none" / "plot.svg")


def test_families_with_shared_or_stacked_projections(tmp_path: Path) -> None:
    for family in ("albert", "xlnet", "mobilebert"):
        found = edgekit.analyze(tiny_checkpoint(tmp_path / family, family))
        assert [list(each.rows) for each in found.found] == [["layer 1", "layer 2"]]


def test_what_it_does_not_read(tmp_path: Path) -> None:
    pictures = tiny_checkpoint(tmp_path, "vit", task="image-classification")
    with pytest.raises(ModelError, match="reads pictures"):
        edgekit.analyze(pictures)
