"""Attention to the largest probabilities: against numpy, by the documented lines, in every file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgekit import hard_attention, structure
from edgekit.artifact import Artifact
from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.export import export_artifact
from edgekit.hard_attention import harden, largest
from edgekit.model import Model, export_forward, identify, load_model, reference_outputs, save_model
from edgekit.preprocess import Encoded
from edgekit.step import Context, apply_steps
from edgekit.steps.prune.drop_layers import DropLayers
from edgekit.steps.prune.heads import PruneHeads
from edgekit.steps.prune.slicing import own_layers
from edgekit.steps.quantize.static import fake_outputs, traced
from tests.documented import load_by_lines
from tests.static_cases import calibrated
from tests.tiny import tiny_checkpoint

# Of 20 words, one, and 7.
TEXTS = ("the my a card account bank is was lost stolen new old please can you help me i want to",)
TEXTS += ("card", "why has my card not arrived yet")
FAMILIES = ("bert", "roberta", "distilbert", "electra", "albert")
TOP = 3


def hardened(model: Model, top: int = TOP) -> Model:
    """The same, with that in every layer."""
    made = replace(model, module=structure.sharing_copy(model.module))
    for layer in own_layers(made):
        assert layer.attention is not None
        harden(made.module, layer.attention, top)
    return made


def tiny(folder: Path, family: str = "bert") -> Model:
    return load_model(identify(str(tiny_checkpoint(folder, family))))


def answers(model: Model) -> Any:
    """By transformers' own forward."""
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(Rows(texts=TEXTS)))


def exported(model: Model) -> Any:
    """By the clean forward, all rows in one batch."""
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(Rows(texts=TEXTS)).arrays
    with torch.inference_mode():
        return export_forward(model)(*(torch.from_numpy(rows[n]) for n in model.inputs)).numpy()


@given(
    arrays(np.float32, (4, 9), elements=st.sampled_from([0, 0.05, 0.1, 0.2, 0.7])),
    st.integers(1, 12),
)
def test_the_largest_stay_and_what_is_as_large(weights: Any, top: int) -> None:
    found = largest(torch.from_numpy(weights), top).numpy()
    for row, kept in zip(weights, found, strict=True):
        least = np.sort(row)[::-1][min(top, len(row)) - 1]
        np.testing.assert_array_equal(kept, np.where(row >= least, row, 0))


@pytest.mark.parametrize("family", FAMILIES)
def test_both_forwards_count_the_largest_and_texts_that_are_shorter_stay(
    family: str, tmp_path: Path
) -> None:
    model = tiny(tmp_path, family)
    hard = hardened(model)
    np.testing.assert_allclose(exported(hard), answers(hard), atol=1e-5)
    apart = np.abs(answers(hard) - answers(model)).max(1)
    assert apart[0] > 1e-3
    # "card" with its two marks: as many tokens as count.
    assert apart[1] <= 1e-6
    # As many as the longest text has: nothing changes.
    np.testing.assert_allclose(answers(hardened(model, 30)), answers(model), atol=1e-6)
    np.testing.assert_allclose(exported(hardened(model, 30)), answers(model), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert"])
def test_the_documented_lines_run_it_without_edgekit(family: str, tmp_path: Path) -> None:
    hard = hardened(tiny(tmp_path / "model", family))
    save_model(hard, tmp_path / "saved")
    again = load_model(identify(str(tmp_path / "saved")))
    np.testing.assert_array_equal(answers(again), answers(hard))
    assert hard_attention.describe(again.module) == hard_attention.describe(hard.module) != {}
    model = load_by_lines(tmp_path / "saved", structure, hard_attention)
    assert hard.preprocessor is not None
    rows = hard.preprocessor.encode(Rows(texts=TEXTS)).arrays
    with torch.no_grad():
        inputs = {name: torch.from_numpy(rows[name]).long() for name in hard.inputs}
        found = model(**inputs).logits.numpy()
    np.testing.assert_allclose(found, answers(hard), atol=1e-5)
    with torch.no_grad():
        transformers.AttentionInterface.register("hard", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # these lines are what ran
            model(**inputs)


def test_later_steps_keep_it(tmp_path: Path) -> None:
    """Of four layers the second and the last are hard; the first goes, and a third of the heads."""
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole", layers=4))))
    for number, top in ((1, 2), (3, 3)):
        attention = own_layers(model)[number].attention
        assert attention is not None
        harden(model.module, attention, top)
    steps = [DropLayers(count=1, strategy="bottom"), PruneHeads(ratio=0.34, importance="magnitude")]
    after = apply_steps(steps, model, Context(None, 0, folder=tmp_path))
    save_model(after, tmp_path / "saved")
    again = load_model(identify(str(tmp_path / "saved")))
    assert hard_attention.describe(again.module) == {
        "bert.encoder.layer.0.attention.self": 2,
        "bert.encoder.layer.2.attention.self": 3,
    }
    np.testing.assert_array_equal(answers(again), answers(after))
    np.testing.assert_allclose(exported(again), answers(after), atol=1e-5)


def test_a_model_that_becomes_hard_is_traced_anew(tmp_path: Path) -> None:
    model = tiny(tmp_path)

    def operators() -> str:
        return str(traced(model, "int8-dynamic").module.graph)

    assert "topk" not in operators()
    attention = own_layers(model)[0].attention
    assert attention is not None
    harden(model.module, attention, TOP)
    assert "topk" in operators()


def of_file(artifact: Artifact, rows: Encoded) -> Any:
    found = run_agent(artifact, rows, [Pass("all", "outputs")], threads=1)
    return found["passes"]["all"]["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
@pytest.mark.parametrize("kind", ["onnx", "tflite", "torchscript"])
def test_files_answer_as_the_model_does(kind: Any, scheme: Any, tmp_path: Path) -> None:
    model = tiny(tmp_path / "model")
    hard = hardened(model)
    assert hard.preprocessor is not None
    rows = hard.preprocessor.encode(Rows(texts=TEXTS))
    artifact = export_artifact(hard, tmp_path / "made", kind, scheme, any_length=True)
    far = np.abs(answers(hard) - answers(model)).max()
    apart = np.abs(of_file(artifact, rows) - answers(hard)).max()
    assert apart < (1e-5 if scheme == "fp32" else far / 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_static_files_answer_as_their_simulation(kind: Any, tmp_path: Path) -> None:
    hard = hardened(tiny(tmp_path / "model"))
    assert hard.preprocessor is not None
    rows = hard.preprocessor.encode(Rows(texts=TEXTS))
    model, _ = calibrated(hard, rows)
    artifact = export_artifact(model, tmp_path / "made", kind, "int8-static", any_length=True)
    found = of_file(artifact, rows)
    np.testing.assert_allclose(found, fake_outputs(model, rows), atol=0.1)
    np.testing.assert_allclose(found, answers(hard), atol=0.2)
