"""Smoothing changes no answer, and evens out what it says it does."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.prune.slicing import cut, everything
from edgekit.steps.quantize.smooth_activations import SmoothActivations
from tests.export.cases import case, layers_of
from tests.tiny import TEXT_FAMILIES, tiny_texts

torch.set_num_threads(1)

TEXTS = Rows(texts=tuple(tiny_texts(40)))
PICTURES = Rows(images=np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8))


def smoothed(model: Model, folder: Path, rows: Rows = TEXTS, **options: Any) -> Model:
    return apply_steps([SmoothActivations(**options)], model, Context(rows, 0, folder))


def peaks(model: Model, part: Any) -> np.ndarray[Any, Any]:
    """The largest magnitude of each channel that a part of the model gives for the texts."""
    found = []
    hook = part.register_forward_hook(lambda *call: found.append(call[2].abs().flatten(0, -2)))
    assert model.preprocessor is not None
    reference_outputs(model, model.preprocessor.encode(TEXTS))  # type: ignore[arg-type]
    hook.remove()
    return torch.cat(found).amax(0).numpy()


def nearly_equal(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """In most channels: in some, padding gives the largest value, which ``peaks`` does not see."""
    return float(np.mean(np.abs(one / other - 1) < 1e-3)) > 0.8


def unevenness(values: np.ndarray[Any, Any]) -> float:
    return float(values.max() / values.mean())


@pytest.mark.parametrize("alpha", [0.5, 0.8])
@pytest.mark.parametrize("family", [*(f for f in TEXT_FAMILIES if f != "xlnet"), "vit"])
def test_no_answer_changes(family: str, alpha: float, tmp_path: Path) -> None:
    made = case(family)
    before = copy.deepcopy(made.model.module.state_dict())
    rows = PICTURES if family == "vit" else TEXTS
    found = smoothed(made.model, tmp_path, rows, alpha=alpha)
    after = found.module.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    # Each layer's values, queries, keys and the products behind them, weights and biases.
    layers = 1 if family == "albert" else layers_of(family)
    assert len(moved) >= 7 * layers
    assert all(torch.equal(v, before[k]) for k, v in made.model.module.state_dict().items())
    assert np.abs(reference_outputs(found, made.rows) - made.expected).max() < 1e-5
    assert found.lineage[-1].startswith("smoothed ")


def test_a_planted_channel_of_the_values_is_evened_out(tmp_path: Path) -> None:
    model = case("bert").model
    layer: Any = model.module.bert.encoder.layer[1].attention  # type: ignore[union-attr]
    with torch.no_grad():
        layer.self.value.weight[5] *= 100
        layer.self.value.bias[5] *= 100
        layer.output.dense.weight[:, 5] /= 100
    found = smoothed(model, tmp_path)
    after: Any = found.module.bert.encoder.layer[1].attention  # type: ignore[union-attr]
    was = peaks(model, layer.self.value)
    now = peaks(found, after.self.value)
    assert unevenness(was) > 15 and unevenness(now) < 2.5
    # Section 4 of the paper, with what the weight was.
    weight = np.abs(layer.output.dense.weight.detach().numpy()).max(0)
    assert nearly_equal(now, np.sqrt(was * weight))


def test_queries_and_keys_meet_in_the_middle(tmp_path: Path) -> None:
    model = case("bert").model
    layer: Any = model.module.bert.encoder.layer[0].attention.self  # type: ignore[union-attr]
    with torch.no_grad():
        for part, factor in ((layer.query, 50), (layer.key, 1 / 50)):
            part.weight[7] *= factor
            part.bias[7] *= factor
    found = smoothed(model, tmp_path)
    after: Any = found.module.bert.encoder.layer[0].attention.self  # type: ignore[union-attr]
    assert nearly_equal(peaks(found, after.query), peaks(found, after.key))
    assert unevenness(peaks(model, layer.query)) > 10 * unevenness(peaks(found, after.query)) / 2


def test_norms_that_only_products_read_are_evened_out(tmp_path: Path) -> None:
    model = case("vit").model
    layer: Any = model.module.vit.layers[0]  # type: ignore[union-attr]
    with torch.no_grad():
        layer.layernorm_before.weight[3] = 60.0
        for part in ("q_proj", "k_proj", "v_proj"):
            getattr(layer.attention, part).weight[:, 3] /= 60
    found = smoothed(model, tmp_path, PICTURES)
    after: Any = found.module.vit.layers[0]  # type: ignore[union-attr]
    assert abs(float(after.layernorm_before.weight.detach()[3])) < 6
    rows = case("vit").rows
    answers = reference_outputs(found, rows), reference_outputs(model, rows)
    assert np.abs(answers[0] - answers[1]).max() < 1e-5


def test_a_smoothed_model_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    made = case("bert")
    found = smoothed(made.model, tmp_path)
    save_model(found, tmp_path / "saved")
    again = load_model(identify(str(tmp_path / "saved")))
    answers = reference_outputs(again, made.rows), reference_outputs(found, made.rows)
    np.testing.assert_allclose(*answers, rtol=0, atol=1e-6)
    assert again.lineage == found.lineage


@pytest.mark.parametrize(
    ("family", "step", "rows", "said"),
    [
        ("bert", "smooth-activations", None, "needs training rows .* give --data"),
        ("bert", "smooth-activations:alpha=1.5", TEXTS, "alpha is from 0 to 1, is 1.5"),
        ("bert", "smooth-activations:rows=8", TEXTS, "rows must be at least 32, is 8"),
        ("resnet", "smooth-activations", PICTURES, "has no encoder layers; leave it out"),
        ("xlnet", "smooth-activations", TEXTS, "projections as plain tensors .* leave it out"),
    ],
)
def test_what_cannot_be_smoothed_is_refused(
    family: str, step: str, rows: Rows | None, said: str
) -> None:
    with pytest.raises(RecipeError, match=f"^smooth-activations: .*{said}"):
        parse_step(step).step.requires(case(family).model, Context(rows, 0))


def test_blocks_that_are_gone_are_passed_over(tmp_path: Path) -> None:
    model = case("bert").model
    kept = everything(model)
    kept = [replace(kept[0], heads=[]), replace(kept[1], neurons=[]), *kept[2:]]
    pruned = model.with_module(cut(model, kept), "by hand")
    made = smoothed(pruned, tmp_path)
    assert made.preprocessor is not None
    encoded = made.preprocessor.encode(TEXTS)  # type: ignore[arg-type]
    np.testing.assert_allclose(
        reference_outputs(made, encoded), reference_outputs(pruned, encoded), atol=1e-4
    )
