"""What is looked at inside an encoder, beside what transformers returns of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.examples import Batch
from edgekit.model import Model, identify, load_model
from edgekit.steps.distill.inside import (
    Mentor,
    distances,
    heads_of,
    need_inside,
    watched,
    whole_forward,
)
from edgekit.steps.distill.losses import attention_scores
from edgekit.steps.distill.pupil import _scores
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts

FAMILIES = ("bert", "roberta", "distilbert", "electra", "albert", "mpnet")
ALL = {("embeddings", 0)} | {
    (kind, layer) for kind in ("hidden", "query", "key", "value") for layer in (1, 2)
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    return load_model(identify(str(tiny_checkpoint(folder, request.param))))


def _text(model: Model) -> dict[str, torch.Tensor]:
    encoded = encode(model, Rows(texts=("please cancel my transfer from paris",)))
    return {name: torch.tensor(array).long() for name, array in encoded.arrays.items()}


def test_views_are_what_transformers_returns(model: Model) -> None:
    inputs = _text(model)
    module: Any = model.module
    with torch.inference_mode():
        theirs = module.base_model(**inputs, output_hidden_states=True, output_attentions=True)
        with watched(model, ALL) as seen:
            whole_forward(model)(*inputs.values())
    assert set(seen) == ALL
    states = [seen["embeddings", 0], seen["hidden", 1], seen["hidden", 2]]
    for mine, expected in zip(states, theirs.hidden_states, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)
    for layer, attention in enumerate(theirs.attentions, 1):
        scores = _scores(dict(seen), layer, heads_of(model, layer), distances(model))
        torch.testing.assert_close(scores.softmax(-1), attention, atol=1e-5, rtol=1e-4)


def test_nothing_is_left_on_the_model(model: Model) -> None:
    with watched(model, ALL) as seen:
        pass
    whole_forward(model)(*_text(model).values())
    assert not seen


@pytest.mark.parametrize("family", ["mobilebert", "xlnet", "vit"])
def test_other_families_are_refused_by_name(tmp_path: Path, family: str) -> None:
    task = "image-classification" if family == "vit" else "text-classification"
    model = load_model(identify(str(tiny_checkpoint(tmp_path, family, task))))
    with pytest.raises(RecipeError, match="losses=kl") as refused:
        need_inside("distill", "the teacher", model)
    assert family == "vit" or f"is a {family}" in str(refused.value)


def test_what_is_kept_is_what_the_teacher_gives_beside(tmp_path: Path) -> None:
    """Every row of a shuffled batch, without padding; and it is not computed again."""
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "bert"))))
    encoded = encode(model, Rows(texts=tuple(tiny_texts(20))))
    wanted = {("hidden", 2), ("query", 1)}
    mentor = Mentor(model, whole_forward(model), encoded, wanted, tmp_path / "kept")
    rows = np.array([7, 3, 19])
    assert encoded.lengths is not None
    length = int(encoded.lengths[rows].max())
    inputs = {
        name: torch.tensor(array[rows, :length]).long() for name, array in encoded.arrays.items()
    }
    batch = Batch(inputs, torch.tensor(rows))
    beside = mentor.look(batch)
    assert mentor.fits()
    mentor.keep(lambda fraction, text: None)
    kept = mentor.look(batch)
    real = inputs["attention_mask"] == 1
    for view in wanted:
        torch.testing.assert_close(kept[view][real], beside[view][real], atol=4e-3, rtol=2e-3)
        assert (kept[view][~real] == 0).all()
    again = Mentor(replace(model), None, encoded, wanted, tmp_path / "kept")
    again.keep(lambda fraction, text: None)
    assert torch.equal(again.look(batch)["query", 1], kept["query", 1])


def test_a_bias_by_distance_is_added() -> None:
    q, bias = torch.randn(1, 3, 4), torch.randn(1, 2, 3, 3)
    assert torch.allclose(attention_scores(q, q, 2, bias) - attention_scores(q, q, 2), bias)
