"""A smaller model of the same family: layers that are the teacher's, or a shape of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.student import kept_layers
from edgekit.workbench import encode, probe_rows
from tests.tiny import tiny_checkpoint

NONE = Context(None, 0)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return load_model(identify(str(tiny_checkpoint(folder, "bert", num_hidden_layers=4))))


def _made(model: Model, options: str, seed: int = 0) -> Model:
    return apply_steps([parse_step(f"student:{options}").step], model, Context(None, seed))


def _weights(model: Model) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in model.module.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ("layers=2", [1, 3]),
        ("layers=1", [3]),
        ("layers=2,init=top", [2, 3]),
        ("layers=3,init=bottom", [0, 1, 2]),
        ("layers=3,init=1-2-4", [0, 1, 3]),
    ],
)
def test_layers_are_the_teachers_byte_for_byte(
    bert: Model, options: str, layers: list[int]
) -> None:
    made, whole = _weights(_made(bert, options)), _weights(bert)
    seen = set()
    for name, tensor in made.items():
        head, layer, rest = name.partition("encoder.layer.")
        if layer:
            number, _, rest = rest.partition(".")
            name = f"{head}{layer}{layers[int(number)]}.{rest}"
            seen.add(int(number))
        assert tensor.tobytes() == whole[name].tobytes(), name
    assert seen == set(range(len(layers)))


def test_the_lists_of_publications() -> None:
    assert kept_layers("distilbert", 6, 12) == [0, 2, 4, 7, 9, 11]
    assert kept_layers("1-3-5-7-9-11", 6, 12) == [0, 2, 4, 6, 8, 10]  # DistilBioBERT
    assert kept_layers("uniform", 6, 12) == [1, 3, 5, 7, 9, 11]  # CompactBioBERT


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_a_fresh_shape_saves_and_loads_as_any_other(tmp_path: Path, family: str) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole", family))))
    made = _made(model, "layers=1,hidden=12,ffn=20,heads=3")
    save_model(made, tmp_path / "made")
    assert "edgekit" not in (tmp_path / "made" / "config.json").read_text()
    again = load_model(identify(str(tmp_path / "made")))
    encoded = encode(again, probe_rows(again))
    assert all(np.array_equal(t, _weights(again)[name]) for name, t in _weights(made).items())
    answers = [reference_outputs(each, encoded) for each in (again, made)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)
    shapes = {tuple(t.shape) for name, t in made.module.state_dict().items() if "layer" in name}
    assert {(12, 12), (20, 12), (12, 20)} <= shapes
    outline = load_model(identify(str(tmp_path / "whole")), meta=True)
    planned = _made(outline, "layers=1,hidden=12,ffn=20,heads=3").module.state_dict()
    found = made.module.state_dict()
    assert {n: t.shape for n, t in planned.items()} == {n: t.shape for n, t in found.items()}


def test_fresh_layers_are_the_seeds_and_leave_chance_alone(bert: Model) -> None:
    state = torch.get_rng_state()
    first, again, other = (_weights(_made(bert, "layers=2,hidden=12", s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert np.array_equal(first[name], again[name])
    assert not np.array_equal(first[name], other[name])


def test_words_are_the_teachers_on_its_principal_directions(bert: Model) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    whole, made = _weights(bert)[name], _weights(_made(bert, "layers=2,hidden=12"))[name]
    centred = whole - whole.mean(0)
    kept = np.linalg.svd(centred, compute_uv=False)[:12]
    assert np.linalg.svd(made, compute_uv=False) == pytest.approx(kept, rel=1e-4)
    # Distances between words are what rank 12 leaves of them.
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert made @ made.T == pytest.approx((u[:, :12] * s[:12] ** 2) @ u[:, :12].T, abs=1e-4)
    random = _weights(_made(bert, "layers=2,hidden=12,words=random"))[name]
    assert not np.allclose(random, made)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("layers=4", "the model has 4 layers, so that 4 are no fewer"),
        ("layers=0", "at least 1"),
        ("layers=3", "3 does not divide 4"),
        ("layers=2,init=2-1", "in order, each once"),
        ("layers=2,init=2-9", "student: init: there is no layer 9"),
        ("layers=2,init=distilbert", "takes 6 of 12 layers"),
        ("layers=2,init=uniform,hidden=12", "those of another shape are fresh"),
        ("layers=2,hidden=13", "does not part into 4 heads"),
        ("layers=2,hidden=0", "hidden must be from 1"),
        ("layers=2,hidden=99999999999", "hidden must be from 1"),
        ("layers=2,heads=0", "heads must be from 1"),
        ("layers=2,hidden=48", "take words=random"),
    ],
)
def test_refusals(bert: Model, options: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        _made(bert, options)


def test_what_is_pruned_has_no_shape_that_a_config_builds(bert: Model) -> None:
    steps = [parse_step("prune-ffn:ratio=0.5,importance=magnitude").step]
    steps.append(parse_step("student:layers=2,hidden=12").step)
    with pytest.raises(RecipeError, match="shapes of its own already"):
        apply_steps(steps, bert, NONE)
