"""Standardised representations: the statistics, the fold, and what planting shows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from edgekit import structure, unit_length
from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.step import Context, apply_steps
from edgekit.steps.heldout import set_aside
from edgekit.steps.postprocess import Postprocess, all_but_the_top, fold, min_max, z_score
from edgekit.steps.probe import fit_classifier, gold, representation
from edgekit.steps.prune.neurons import PruneNeurons
from edgekit.workbench import encode
from tests.documented import load_by_lines
from tests.tiny import WORDS, tiny_checkpoint
from tests.tiny_project import random_texts


def rows(count: int = 80, seed: int = 0) -> Rows:
    texts = random_texts(count, seed, WORDS)
    return Rows(texts=tuple(texts), labels=tuple("abc"[len(text) % 3] for text in texts))


def model(folder: Path, family: str = "bert", task: str = "text-classification") -> Model:
    return load_model(identify(str(tiny_checkpoint(folder / "whole", family, task))))


def applied(step: Postprocess, to: Model, data: Rows, folder: Path) -> Model:
    return apply_steps([step], to, Context(data, seed=0, folder=folder))


def classifier(of: Model) -> Any:
    assert of.architecture is not None
    head = of.architecture.task_head(of.module, of.task)
    assert head is not None
    return head.classifier


def test_z_scores_have_mean_0_and_spread_1_and_still_neurons_stay_unscaled() -> None:
    states = np.random.default_rng(0).normal(3, [0.1, 5, 100, 0.0], (200, 4)).astype(np.float32)
    scored = z_score(states).of(states)
    assert np.abs(scored.mean(0)).max() <= 1e-5
    np.testing.assert_allclose(scored[:, :3].std(0), 1, atol=1e-4)
    np.testing.assert_allclose(scored[:, 3], 0, atol=1e-6)
    ranged = min_max(states).of(states)
    np.testing.assert_allclose([ranged.min(0), ranged.max(0)], [[0] * 4, [1, 1, 1, 0]], atol=1e-6)


def test_all_but_the_top_leaves_nothing_along_the_first_directions() -> None:
    states = np.random.default_rng(0).normal(size=(300, 12)) @ np.diag(np.arange(12, 0, -1))
    left = all_but_the_top(states, 3).of(states)
    centred = states - states.mean(0)
    vectors = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    assert np.abs(left @ vectors[:, :3]).max() <= 1e-5 * np.abs(states).max()
    assert np.linalg.matrix_rank(left, tol=1e-6) == 9
    np.testing.assert_allclose(left @ vectors[:, 3:], centred @ vectors[:, 3:], atol=1e-9)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "albert"])
@pytest.mark.parametrize("kind", ["z-score", "min-max", "all-but-the-top", "unit-length"])
def test_the_saved_classifier_is_the_fitted_one_behind_the_map(
    family: str, kind: Any, tmp_path: Path
) -> None:
    whole, data = model(tmp_path, family), rows()
    save_model(applied(Postprocess(kind), whole, data, tmp_path), tmp_path / "saved")
    loaded = load_model(identify(str(tmp_path / "saved")))
    learn, _ = set_aside(data, 0)
    states = representation(whole, encode(whole, learn)).astype(np.float64)
    # Saturated neurons are left unscaled: rule 2.
    still = states.std(0) <= 0.01 * np.abs(states).max(0)
    if kind == "z-score":
        mapped = (states - states.mean(0)) / np.where(still, 1, states.std(0))
    elif kind == "min-max":
        mapped = (states - states.min(0)) / np.where(still, 1, np.ptp(states, axis=0))
    elif kind == "unit-length":
        mapped = states / np.linalg.norm(states, axis=1, keepdims=True) * states.shape[1] ** 0.5
    else:
        centred = states - states.mean(0)
        top = np.linalg.eigh(centred.T @ centred)[1][:, -1:]
        mapped = centred - centred @ top @ top.T
    fitted = fit_classifier(mapped, gold(whole, learn, encode(whole, learn)), 3)
    unfolded = mapped @ fitted.weight.T + fitted.bias
    found = reference_outputs(loaded, encode(loaded, learn))
    np.testing.assert_allclose(found, unfolded, atol=2e-5 * max(1, np.abs(unfolded).max()))


def test_token_classifiers_are_fitted_to_the_first_tokens_of_words(tmp_path: Path) -> None:
    whole = model(tmp_path, "bert", "token-classification")
    texts = [tuple(text.split()) for text in random_texts(60, 0, WORDS)]
    tags = tuple(tuple("a" if word in WORDS[:20] else "b" for word in row) for row in texts)
    data = Rows(words=tuple(texts), labels=tags)
    made = applied(Postprocess(), whole, data, tmp_path)
    learn, _ = set_aside(data, 0)
    firsts = encode(whole, learn).word_starts or ()
    # The states of words' first tokens, once more, from transformers' own forward.
    states, wanted = [], []
    for number, words in enumerate(learn.words or ()):
        ids = encode(whole, learn).arrays["input_ids"][number]
        with torch.no_grad():
            inputs = torch.from_numpy(ids[ids > 0][None].astype(np.int64))
            found = whole.module.bert(inputs).last_hidden_state[0].numpy()  # type: ignore[union-attr,operator]
        states += [found[start] for start in firsts[number]]
        wanted += [0 if word in WORDS[:20] else 1 for word in words]
    scored = (np.array(states) - np.mean(states, axis=0)) / np.std(states, axis=0)
    theirs = LogisticRegression(C=100 / len(scored), tol=1e-10, max_iter=5000).fit(scored, wanted)
    answers = reference_outputs(made, encode(made, learn))
    ours = np.concatenate([row[start] for row, start in zip(answers, firsts)])
    certain = np.abs(theirs.decision_function(scored)) > 0.2
    assert certain.mean() > 0.5
    assert (ours.argmax(1) == theirs.predict(scored))[certain].all()
    assert made.lineage[-1].startswith("postprocess: z-score and a classifier fitted to it")


@pytest.mark.parametrize("family", ["bert", "xlnet", "mobilebert", "distilbert", "mpnet"])
def test_embeddings_are_those_of_the_changed_mean(family: str, tmp_path: Path) -> None:
    whole, data = model(tmp_path, family, "sentence-embedding"), rows()
    save_model(applied(Postprocess(), whole, data, tmp_path), tmp_path / "saved")
    loaded = load_model(identify(str(tmp_path / "saved")))
    states = representation(whole, encode(whole, data)).astype(np.float64)
    scored = (states - states.mean(0)) / states.std(0)
    expected = scored / np.linalg.norm(scored, axis=1, keepdims=True)
    found = reference_outputs(loaded, encode(loaded, data))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_z_scores_undo_a_rogue_dimension_for_retrieval() -> None:
    """The neighbour by cosine, where one dimension is 100 times as large and tells nothing."""
    chance = np.random.default_rng(0)
    statistics, texts = chance.normal(size=(500, 24)), chance.normal(size=(200, 24))
    queries = texts + 0.3 * chance.normal(size=texts.shape)
    for vectors in (statistics, texts, queries):
        vectors[:, 5] = 100 * (1 + chance.normal(size=len(vectors)))

    def hits(queries: Any, texts: Any) -> float:
        unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, texts)]
        return float(((unit[0] @ unit[1].T).argmax(1) == np.arange(len(texts))).mean())

    map_ = z_score(statistics)
    assert hits(queries, texts) < 0.6
    assert hits(map_.of(queries), map_.of(texts)) > 0.95


def test_neurons_that_hardly_change_do_not_spoil_the_fold() -> None:
    """Saturated neurons: scaled, their weights would be huge and float32 would not hold them."""
    chance = np.random.default_rng(0)
    states = np.tanh(chance.normal([0, 6, -9], 1, (200, 3))).astype(np.float32)
    map_, linear = z_score(states), torch.nn.Linear(3, 3)
    assert (map_.matrix > 1).tolist() == [True, False, False]
    fitted = fit_classifier(map_.of(states), chance.integers(0, 3, 200), 3)
    fold(map_, fitted, linear)
    found = linear(torch.from_numpy(states)).detach().numpy()
    np.testing.assert_allclose(found, map_.of(states) @ fitted.weight.T + fitted.bias, atol=1e-5)


def test_only_the_training_rows_count(tmp_path: Path) -> None:
    whole = model(tmp_path)
    first, again, other = (
        classifier(applied(Postprocess(), whole, rows(seed=s), tmp_path)).weight for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def without_the_top(whole: Model, data: Rows) -> Any:
    """Unit vectors without the 2 first directions of the rows' means, by an eigendecomposition."""
    states = representation(whole, encode(whole, data)).astype(np.float64)
    centred = states - states.mean(0)
    top = np.linalg.eigh(centred.T @ centred)[1][:, -2:]
    left = centred - centred @ top @ top.T
    return left / np.linalg.norm(left, axis=1, keepdims=True)


@pytest.mark.parametrize("family", ["bert", "albert", "xlnet", "mobilebert"])
def test_an_embedding_loses_its_first_directions_and_loads_again(
    family: str, tmp_path: Path
) -> None:
    whole, data = model(tmp_path, family, "sentence-embedding"), rows()
    step = Postprocess("all-but-the-top", 2)
    made = applied(step, whole, data, tmp_path)
    save_model(made, tmp_path / "saved")
    loaded = load_model(identify(str(tmp_path / "saved")))
    expected = without_the_top(whole, data)
    np.testing.assert_allclose(reference_outputs(loaded, encode(loaded, data)), expected, atol=1e-4)
    outline = apply_steps(
        [step], load_model(identify(str(tmp_path / "whole")), meta=True), Context(data, 0)
    )
    assert {name: t.shape for name, t in outline.module.state_dict().items()} == {
        name: t.shape for name, t in loaded.module.state_dict().items()
    }
    with pytest.raises(RecipeError, match="already"):
        applied(Postprocess(), loaded, data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_the_exported_file_gives_the_projected_answers(format: Any, tmp_path: Path) -> None:
    whole, data = model(tmp_path, "bert", "sentence-embedding"), rows()
    made = applied(Postprocess("all-but-the-top", 2), whole, data, tmp_path)
    (tmp_path / "out").mkdir()
    artifact = export_artifact(made, tmp_path / "out", format, "fp32", any_length=True)
    found = run_agent(artifact, encode(made, data), [Pass("all", "outputs")], threads=1)
    np.testing.assert_allclose(
        found["passes"]["all"]["outputs"], without_the_top(whole, data), atol=1e-4
    )


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_a_division_by_the_length_loads_by_the_documented_lines(
    family: str, tmp_path: Path
) -> None:
    data = rows()
    made = applied(Postprocess("unit-length"), model(tmp_path, family), data, tmp_path)
    save_model(made, tmp_path / "saved")
    found = load_by_lines(tmp_path / "saved", structure, unit_length)
    given = encode(made, data)
    mask = torch.from_numpy(given.arrays["attention_mask"])
    ids = torch.from_numpy(given.arrays["input_ids"])
    with torch.no_grad():
        logits = found(ids.long(), mask.long()).logits.numpy()
    np.testing.assert_allclose(logits, reference_outputs(made, given), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite", "torchscript"])
def test_files_divide_by_the_length(format: Any, tmp_path: Path) -> None:
    data = rows()
    made = applied(Postprocess("unit-length"), model(tmp_path), data, tmp_path)
    for scheme, limit in (("fp32", 1e-5), ("int8-dynamic", 0.25)):
        named: Any = scheme
        artifact = export_artifact(made, tmp_path / scheme, format, named, any_length=True)
        found = run_agent(artifact, encode(made, data), [Pass("all", "outputs")], threads=1)
        outputs = found["passes"]["all"]["outputs"]
        np.testing.assert_allclose(outputs, reference_outputs(made, encode(made, data)), atol=limit)


def test_fold_is_exact() -> None:
    chance = np.random.default_rng(0)
    states, labels = chance.normal(size=(100, 10)), chance.integers(0, 3, 100)
    for map_ in (z_score(states), min_max(states), all_but_the_top(states, 2)):
        fitted, linear = fit_classifier(map_.of(states), labels, 3), torch.nn.Linear(10, 3)
        fold(map_, fitted, linear)
        found = linear(torch.from_numpy(states).float()).detach().numpy()
        np.testing.assert_allclose(
            found, map_.of(states) @ fitted.weight.T + fitted.bias, atol=1e-5
        )


def test_what_it_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    whole, data = model(tmp_path / "c"), rows()
    embedding = model(tmp_path / "e", "albert", "sentence-embedding")
    bert = model(tmp_path / "b", "bert", "sentence-embedding")
    cases: list[tuple[Postprocess, Model, Rows | None, str]] = [
        (Postprocess(), applied(Postprocess("unit-length"), whole, data, tmp_path), data, "last"),
        (Postprocess("all-but-the-top", 24), bert, data, "from 1 to 23"),
        (Postprocess(), embedding, data, "every layer's"),
        (Postprocess(components=2), whole, data, "go with kind"),
        (Postprocess("all-but-the-top", 24), whole, data, "from 1 to 23"),
        (Postprocess(), whole, None, "--data"),
        (Postprocess(), whole, replace(data, labels=None), "labels"),
    ]
    for step, of, given, words in cases:
        with pytest.raises(RecipeError, match=words):
            apply_steps([step], of, Context(given, 0, tmp_path))
    with pytest.raises(RecipeError, match="of length 1"):
        apply_steps([Postprocess("unit-length"), PruneNeurons(3)], whole, Context(data, 0))
    kept = applied(Postprocess("unit-length"), bert, data, tmp_path)
    assert kept.module is bert.module and "already" in kept.lineage[-1]
