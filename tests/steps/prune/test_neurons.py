"""Neurons before the classifier: sliced as if masked, saved narrower, refused where inexact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgekit.contents import read_contents
from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.step import Context, apply_steps
from edgekit.steps.probe import representation
from edgekit.steps.prune.neurons import PruneNeurons, slice_neurons
from edgekit.structure import sharing_copy
from edgekit.workbench import encode
from tests.tiny import WORDS, tiny_checkpoint, tiny_texts
from tests.tiny_project import random_texts

FAMILIES = ["bert", "roberta", "distilbert", "albert", "xlnet", "electra", "mpnet"]


def model(folder: Path, family: str = "bert", **config: Any) -> Model:
    return load_model(identify(str(tiny_checkpoint(folder / "whole", family, **config))))


def labelled(of: Model, count: int = 400, neurons: Any = ([4], [15])) -> Rows:
    """Texts whose label is told by these neurons alone: which of the two sums, if any, is high."""
    texts = tuple(random_texts(count, 0, WORDS))
    states = representation(of, encode(of, Rows(texts=texts)))
    scored = (states - np.median(states, axis=0)) / states.std(0).clip(1e-6)
    scored = np.stack([scored[:, each].sum(1) for each in neurons], axis=1)
    scored = np.concatenate([np.full((count, 1), 0.4), scored], axis=1)
    return Rows(texts=texts, labels=tuple("abc"[n] for n in scored.argmax(1)))


def applied(step: PruneNeurons, to: Model, data: Rows, folder: Path) -> Model:
    return apply_steps([step], to, Context(data, seed=0, folder=folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_is_masked_and_loads_again(family: str, tmp_path: Path) -> None:
    whole = model(tmp_path, family)
    kept = [0, 3, 4, 9, 17]
    sliced = whole.with_module(slice_neurons(whole, kept), "by hand")
    masked = whole.with_module(sharing_copy(whole.module), "")
    assert masked.architecture is not None
    head = masked.architecture.task_head(masked.module, masked.task)
    assert head is not None
    gone = [n for n in range(24) if n not in kept]
    with torch.no_grad():
        weight = head.classifier.weight.detach().clone()
        weight[:, gone] = 0
        head.classifier.weight = torch.nn.Parameter(weight)
    save_model(sliced, tmp_path / "saved")
    loaded = load_model(identify(str(tmp_path / "saved")))
    rows = Rows(texts=tuple(tiny_texts(12)))
    expected = reference_outputs(masked, encode(masked, rows))
    np.testing.assert_allclose(reference_outputs(loaded, encode(loaded, rows)), expected, atol=1e-5)
    narrow = list(load_file(tmp_path / "saved" / "model.safetensors").values())
    assert sorted(t.shape for t in narrow if 5 in t.shape) == [(3, 5), (5,), (5, 24)]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["tflite", "torchscript"])
def test_an_exported_classifier_reads_fewer_neurons(format: Any, tmp_path: Path) -> None:
    whole = model(tmp_path)
    sliced = whole.with_module(slice_neurons(whole, [0, 3, 4, 9, 17]), "by hand")
    (tmp_path / "out").mkdir()
    artifact = export_artifact(sliced, tmp_path / "out", format, "fp32", any_length=True)
    rows = encode(sliced, Rows(texts=tuple(tiny_texts(12))))
    found = run_agent(artifact, rows, [Pass("all", "outputs")], threads=1)
    np.testing.assert_allclose(
        found["passes"]["all"]["outputs"], reference_outputs(sliced, rows), atol=1e-4
    )
    sizes = [sorted(t.shape) for t in read_contents(artifact.path).tensors]
    assert [3, 5] in sizes and [5, 24] in sizes and [3, 24] not in sizes


def test_neurons_that_tell_the_label_stay_and_answer(tmp_path: Path) -> None:
    whole = model(tmp_path, "distilbert")
    data = labelled(whole)
    made = applied(PruneNeurons(count=8), whole, data, tmp_path)
    before = whole.module.pre_classifier.weight  # type: ignore[union-attr]
    after = made.module.pre_classifier.weight  # type: ignore[union-attr]
    assert after.shape == (8, 24)
    found = [int((before == row).all(1).nonzero()) for row in after]  # type: ignore[operator,arg-type]
    assert found == sorted(found) and {4, 15} <= set(found)
    answers = reference_outputs(made, encode(made, data)).argmax(1)
    assert np.mean([whole.labels[a] == b for a, b in zip(answers, data.labels or ())]) > 0.8


@pytest.mark.slow
def test_within_takes_the_smallest_number_that_loses_no_more(tmp_path: Path) -> None:
    whole = model(tmp_path, "distilbert")
    data = labelled(whole, neurons=([1, 4, 7], [15, 18, 20]))
    loose, tight = (
        applied(PruneNeurons(within=w), whole, data, tmp_path).module.pre_classifier.weight.shape[0]  # type: ignore[union-attr]
        for w in (0.3, 0.0)
    )
    assert loose < tight <= 24


def test_shapes_on_the_meta_device(tmp_path: Path) -> None:
    source = identify(str(tiny_checkpoint(tmp_path / "whole", "bert")))
    real = load_model(source)
    data = labelled(real, 100)
    made = applied(PruneNeurons(count=6), real, data, tmp_path)
    outline = apply_steps(
        [PruneNeurons(count=6)], load_model(source, meta=True), Context(data, seed=0)
    )
    shapes = {name: t.shape for name, t in made.module.state_dict().items()}
    assert shapes == {name: t.shape for name, t in outline.module.state_dict().items()}


def test_what_it_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    whole = model(tmp_path / "c")
    tags = model(tmp_path / "t", task="token-classification")
    vectors = model(tmp_path / "v", task="sentence-embedding")
    data = labelled(whole, 100)
    cases: list[tuple[PruneNeurons, Model, Rows | None, str]] = [
        (PruneNeurons(), whole, data, "either count"),
        (PruneNeurons(count=25), whole, data, "from 1 to 24"),
        (PruneNeurons(within=1.0), whole, data, "shares"),
        (PruneNeurons(count=4), tags, data, "the last norm mixes"),
        (PruneNeurons(count=4), vectors, data, "no classifier"),
        (PruneNeurons(count=4), whole, None, "--data"),
        (PruneNeurons(count=4), whole, Rows(texts=data.texts), "labels"),
    ]
    for step, of, given, words in cases:
        with pytest.raises(RecipeError, match=words):
            apply_steps([step], of, Context(given, 0, tmp_path))


@pytest.mark.parametrize("redundant", [0.1, 0.9])
def test_a_count_is_met_whatever_is_redundant(redundant: float, tmp_path: Path) -> None:
    whole = model(tmp_path)
    made = applied(PruneNeurons(20, redundant=redundant), whole, labelled(whole), tmp_path)
    assert made.module.classifier.in_features == 20  # type: ignore[union-attr]
