"""A changed model learns the original's answers: from the teacher, and from nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit.data import Rows, together
from edgekit.errors import RecipeError
from edgekit.examples import IGNORED
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.rows import gold_ids
from edgekit.steps.heldout import set_aside
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts

LABELS = ("a", "b", "c")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return load_model(identify(str(tiny_checkpoint(folder, "bert", num_hidden_layers=4))))


def _rows(model: Model, count: int, seed: int) -> Rows:
    """Texts, each labelled by the class that the original likes better than on average."""
    rows = Rows(texts=tuple(tiny_texts(count, seed)))
    answers = reference_outputs(model, encode(model, rows))
    chosen = (answers - answers.mean(0)).argmax(-1)
    return replace(rows, labels=tuple(LABELS[number] for number in chosen))


def _shallow(model: Model, folder: Path, options: str, seed: int = 0, count: int = 320) -> Model:
    """Half of the layers, recovered."""
    steps = [parse_step("drop-layers:count=2").step, parse_step(f"distill:{options}").step]
    return apply_steps(steps, model, Context(_rows(model, count, 100 + seed), seed, folder))


@pytest.mark.slow
def test_the_teacher_is_what_a_student_learns_by(bert: Model, tmp_path: Path) -> None:
    """Three arms from the same start over as many steps, three seeds: the teacher on all texts,
    the few that have labels alone, and the teacher's answers to other texts.
    """
    few = 40
    arms: dict[str, list[float]] = {"teacher": [], "labels": [], "permuted": []}
    for seed in range(3):
        rows = _rows(bert, 320, 100 + seed)
        unlabelled = replace(rows, labels=None)
        answers = reference_outputs(bert, encode(bert, rows))
        turned = tmp_path / f"{seed}.npy"
        np.save(turned, answers[np.random.default_rng(seed).permutation(len(answers))])
        # 36 of 40 rows are 2 batches, 288 of 320 are 9: as many steps in 4.5 times the epochs.
        for arm, known, options in (
            ("teacher", unlabelled, "losses=kl,epochs=10"),
            ("labels", rows.take(range(few)), "losses=labels,epochs=45"),
            ("permuted", unlabelled, f"losses=kl,teachers={turned},epochs=10"),
        ):
            steps = ("student:layers=2,init=bottom", f"distill:{options},learning-rate=0.004")
            context = Context(known, seed, tmp_path / f"{arm}{seed}")
            made = apply_steps([parse_step(step).step for step in steps], bert, context)
            assert " 90 steps of " in " " + made.lineage[-1].partition(": ")[2], made.lineage
            arms[arm].append(_agreement(made, bert))
    means = {arm: float(np.mean(errors)) for arm, errors in arms.items()}
    assert means["teacher"] > means["labels"] + 0.1, means
    assert means["labels"] > means["permuted"] - 0.05, means
    assert means["teacher"] > means["permuted"] + 0.1, means


def _agreement(student: Model, original: Model) -> float:
    """How often both like the same class better than on average, on texts that nobody learned."""
    encoded = encode(original, _rows(original, 512, 7))
    answers = [reference_outputs(each, encoded) for each in (student, original)]
    mine, theirs = ((each - each.mean(0)).argmax(-1) for each in answers)
    return float(np.mean(mine == theirs))


def _none() -> Context:
    return Context(None, 0)


@pytest.mark.slow
def test_the_lineage_tells_the_metric_before_and_after(bert: Model, tmp_path: Path) -> None:
    rows = _rows(bert, 320, 100)
    made = _shallow(bert, tmp_path, "epochs=1")
    judged = set_aside(rows, 0)[1]
    answers = reference_outputs(made, encode(made, judged)).argmax(-1)
    right = np.mean([LABELS[a] == label for a, label in zip(answers, judged.labels or ())])
    assert len(judged) == 32
    assert "on 32 training rows set aside, accuracy" in made.lineage[-1]
    assert "kl+hidden of each layer, since 2 of 4 layers are left" in made.lineage[-1]
    assert made.lineage[-1].endswith(f"{right:.2%} after")


def test_rows_set_aside_are_never_learned_from() -> None:
    rows = Rows(texts=tuple(f"text {n}" for n in range(100)))
    learned, judged = set_aside(rows, 3)
    assert (len(learned.texts or ()), len(judged.texts or ())) == (90, 10)
    assert set(learned.texts or ()) | set(judged.texts or ()) == set(rows.texts or ())
    assert set_aside(rows, 3) == (learned, judged) != set_aside(rows, 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("epochs=0", "epochs must be above 0"),
        ("labels=1.5", "a share from 0 to 1"),
        ("temperature=-1", "temperature must be above 0"),
    ],
)
def test_refusals(bert: Model, tmp_path: Path, options: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        _shallow(bert, tmp_path / "scratch", options)


def test_gold_labels_of_words_are_at_their_first_tokens(tmp_path: Path) -> None:
    tagger = load_model(
        identify(str(tiny_checkpoint(tmp_path / "tagger", task="token-classification")))
    )
    known = Rows(words=(("the", "theatre", "fox"), ("fox",)), labels=(("a", "c", "b"), ("b",)))
    rows = together(known, Rows(words=(("the", "fox"),)))
    encoded = encode(tagger, rows)
    ids = gold_ids(tagger, rows, encoded)
    assert ids.shape == encoded.arrays["input_ids"].shape
    assert encoded.word_starts is not None
    assert ids[0, encoded.word_starts[0]].tolist() == [0, 2, 1]
    assert ids[1, encoded.word_starts[1]].tolist() == [1]
    assert (ids != IGNORED).sum(1).tolist() == [3, 1, 0]


@pytest.mark.slow
def test_a_tagger_learns_gold_labels(tmp_path: Path) -> None:
    """Labels that the original does not know: of each word, by its first letter."""
    checkpoint = tiny_checkpoint(tmp_path / "tagger", task="token-classification", layers=1)
    tagger = load_model(identify(str(checkpoint)))
    words = tuple(tuple(text.split()) or ("x",) for text in tiny_texts(64))
    labels = tuple(tuple(LABELS[ord(word[0]) % 3] for word in row) for row in words)
    rows = Rows(words=words, labels=labels)
    step = parse_step("distill:losses=labels,epochs=30,learning-rate=0.01").step
    made = apply_steps([step], tagger, Context(rows, 0, tmp_path / "made"))
    # The grid has the same loss, and its own proof that it learns.
    parse_step("quantize-aware-train:labels=0.5").step.requires(tagger, Context(rows, 0))
    encoded = encode(tagger, rows)
    gold = gold_ids(tagger, rows, encoded)
    before, after = (
        float((reference_outputs(model, encoded).argmax(-1) == gold)[gold != IGNORED].mean())
        for model in (tagger, made)
    )
    assert before < 0.6 < 0.9 < after


def test_without_rows_there_is_nothing_to_learn_from(bert: Model) -> None:
    with pytest.raises(RecipeError, match="give --data"):
        apply_steps([parse_step("distill").step], bert, _none())


@pytest.mark.slow
def test_a_model_on_its_grid_does_not_learn_any_more(bert: Model, tmp_path: Path) -> None:
    steps = [parse_step("calibrate").step, parse_step("distill").step]
    with pytest.raises(RecipeError, match="on a grid of integers already"):
        apply_steps(steps, bert, Context(_rows(bert, 64, 1), 0, tmp_path))


def test_a_family_that_runs_on_copies_is_refused(tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path, "xlnet"))))
    with pytest.raises(RecipeError, match="copies of its weights"):
        apply_steps([parse_step("distill").step], model, Context(_rows(model, 64, 1), 0, tmp_path))
