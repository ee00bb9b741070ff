"""Training on the grid: what it promises of any model, and that it learns from its teacher."""

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgekit.examples
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.distill import teaching
from edgekit.steps.quantize.grid import dequantize, quantize
from edgekit.steps.quantize.static import fake_outputs
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(identify(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert"))))


def _rows(model: Model, count: int, seed: int) -> Rows:
    """Texts, each labelled by the class that the float model likes better than on average."""
    rows = Rows(texts=tuple(tiny_texts(count, seed)))
    answers = reference_outputs(model, encode(model, rows))
    chosen = (answers - answers.mean(0)).argmax(-1)
    return replace(rows, labels=tuple(LABELS[number] for number in chosen))


def _train(model: Model, folder: Path, step: str, count: int = 96, seed: int = 0) -> Model:
    context = Context(_rows(model, count, 100 + seed), seed, folder)
    return apply_steps([parse_step(f"quantize-aware-train:{step}").step], model, context)


def _error(rounded: Model, original: Model, *, static: bool) -> float:
    """How far the rounded model is from the float one on texts that it never saw."""
    encoded = encode(original, _rows(original, 128, 7))
    answer = fake_outputs if static else reference_outputs
    found, wanted = answer(rounded, encoded), reference_outputs(original, encoded)
    # The loss does not see what all classes have in common.
    found, wanted = (each - each.mean(-1, keepdims=True) for each in (found, wanted))
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std())


def _on_grid(weight: Any, largest: int) -> bool:
    """Whether each row is integers up to ``largest`` times one scale."""
    rows = weight.detach().numpy().reshape(len(weight), -1).astype(np.float64)
    scale = np.abs(rows).max(1, keepdims=True) / largest
    steps = rows / np.where(scale == 0, 1, scale)
    return bool(np.abs(steps - np.rint(steps)).max() < 1e-3)


@pytest.mark.slow
def test_weights_end_on_the_grid_and_tables_and_the_original_stay(
    bert: Model, tmp_path: Path
) -> None:
    before = copy.deepcopy(bert.module.state_dict())
    made = _train(bert, tmp_path, "scheme=int4-weights,epochs=1,learning-rate=0.001")
    for name, tensor in bert.module.state_dict().items():
        assert tensor.equal(before[name])
    for name, module in made.module.named_modules():
        if isinstance(module, nn.Linear):
            assert _on_grid(module.weight, 7), name
            assert not module.weight.equal(before[f"{name}.weight"])
        if isinstance(module, nn.Embedding):
            assert module.weight.equal(before[f"{name}.weight"])
    assert made.quantized is not None and made.quantized.scheme == "int4-weights"
    assert "trained on the grid of int4-weights" in made.lineage[-1]


@pytest.mark.slow
def test_two_bits_are_trained_on_the_grid_that_files_find_again(
    bert: Model, tmp_path: Path
) -> None:
    made = _train(bert, tmp_path, "scheme=int2-weights,block=8,epochs=0.5,learning-rate=0.001")
    shares = []
    for module in made.module.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach().numpy()
            integers, scales = quantize(weight, 2, block=8)
            assert np.array_equal(dequantize(integers, scales, block=8), weight)
            shares.append(np.mean(integers == 0))
    # Of normally distributed numbers, 45 % are below half of 1.5 mean magnitudes.
    assert np.mean(shares) == pytest.approx(0.45, abs=0.1)
    assert made.quantized is not None
    assert (made.quantized.scheme, made.quantized.block) == ("int2-weights", 8)


@pytest.mark.slow
def test_a_saved_model_rounds_as_it_did_when_trained(bert: Model, tmp_path: Path) -> None:
    made = _train(bert, tmp_path / "scratch", "epochs=0.5")
    save_model(made, tmp_path / "checkpoint")
    loaded = load_model(identify(str(tmp_path / "checkpoint")))
    assert loaded.quantized == made.quantized
    encoded = encode(bert, _rows(bert, 16, 3))
    assert np.array_equal(fake_outputs(loaded, encoded), fake_outputs(made, encoded))


@pytest.mark.slow
def test_zeros_stay_zero_when_asked_and_are_written_as_zero(bert: Model, tmp_path: Path) -> None:
    pruned = replace(bert, module=copy.deepcopy(bert.module))
    weight = pruned.module.base_model.encoder.layer[0].intermediate.dense.weight
    with torch.no_grad():
        weight[::2] *= torch.arange(weight.shape[1]) % 3 == 0
    zeros = weight == 0
    kept = _train(pruned, tmp_path / "kept", "epochs=1,learning-rate=0.001,keep-zeros=true")
    lost = _train(pruned, tmp_path / "lost", "epochs=1,learning-rate=0.001")

    def after(model: Model) -> torch.Tensor:
        found: torch.Tensor = model.module.base_model.encoder.layer[0].intermediate.dense.weight
        return found

    assert (after(kept)[zeros] == 0).all()
    assert (after(lost)[zeros] != 0).any()


@pytest.mark.slow
def test_training_brings_a_static_model_nearer_to_its_float_form(
    bert: Model, tmp_path: Path
) -> None:
    ratios = []
    for seed in range(2):
        context = Context(_rows(bert, 256, 100 + seed), seed, tmp_path / f"c{seed}")
        calibrated = apply_steps([parse_step("calibrate").step], bert, context)
        step = "epochs=6,learning-rate=0.0003"
        trained = _train(bert, tmp_path / f"t{seed}", step, 256, seed)
        errors = [_error(each, bert, static=True) for each in (trained, calibrated)]
        ratios.append(errors[0] / errors[1])
    assert np.mean(ratios) < 0.9


@pytest.mark.slow
def test_a_training_that_diverges_keeps_the_last_good_state_and_says_so(
    bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = teaching.answer_loss
    steps = itertools.count(1)

    def diverging(*options: Any) -> Any:
        loss = honest(*options)
        return lambda *given: loss(*given) * (math.inf if next(steps) > 20 else 1)

    monkeypatch.setattr(teaching, "answer_loss", diverging)
    made = _train(bert, tmp_path, "epochs=8,batch=8", 64)
    assert any("the training diverged at step 21 of 64" in note for note in made.lineage)
    assert made.lineage[-1].endswith("was put back")
    assert np.isfinite(fake_outputs(made, encode(made, _rows(bert, 8, 0)))).all()


@pytest.mark.slow
def test_the_teacher_is_what_the_model_learns_from(
    bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three arms from the same start over the same batches, three seeds."""
    step = "scheme=int4-weights,epochs=6,learning-rate=0.001"
    arms: dict[str, list[float]] = {"teacher": [], "labels": [], "permuted": []}
    honest = edgekit.examples.teacher_outputs

    def permuted(*args: Any, **kwargs: Any) -> Any:
        outputs = np.array(honest(*args, **kwargs))
        return outputs[np.random.default_rng(0).permutation(len(outputs))]

    for seed in range(3):
        made = _train(bert, tmp_path / f"teacher{seed}", step, 256, seed)
        arms["teacher"].append(_error(made, bert, static=False))
        made = _train(bert, tmp_path / f"labels{seed}", f"{step},labels=1", 256, seed)
        arms["labels"].append(_error(made, bert, static=False))
        with monkeypatch.context() as patch:
            patch.setattr(edgekit.examples, "teacher_outputs", permuted)
            made = _train(bert, tmp_path / f"permuted{seed}", step, 256, seed)
        arms["permuted"].append(_error(made, bert, static=False))
    means = {arm: float(np.mean(errors)) for arm, errors in arms.items()}
    assert means["teacher"] < 0.8 * means["labels"], means
    assert means["teacher"] < 0.5 * means["permuted"], means


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("epochs=0", "epochs must be above 0"),
        ("labels=2", "a share from 0 to 1"),
        ("temperature=-1", "temperature must be above 0"),
        ("block=32", "block is for int4-weights"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_before_work(
    bert: Model, tmp_path: Path, step: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        _train(bert, tmp_path / "scratch", step)
    assert not (tmp_path / "scratch").exists()


@pytest.mark.slow
def test_a_model_on_a_grid_is_not_put_on_another(bert: Model, tmp_path: Path) -> None:
    made = _train(bert, tmp_path / "one", "epochs=0.5")
    with pytest.raises(RecipeError, match="on a grid of integers already"):
        _train(made, tmp_path / "two", "epochs=0.5")


def test_labels_are_needed_where_they_are_asked_for(bert: Model, tmp_path: Path) -> None:
    context = Context(Rows(texts=tuple(tiny_texts(64))), 0, tmp_path)
    with pytest.raises(RecipeError, match="name their column with --label"):
        apply_steps([parse_step("quantize-aware-train:labels=0.5").step], bert, context)
