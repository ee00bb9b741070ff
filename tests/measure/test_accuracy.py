"""Metrics against plain counting, and what counts as the same answer."""

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import ProofError
from edgekit.measure.accuracy import (
    agreement,
    chance,
    entities,
    interval,
    predict,
    primary_metric,
    refuse_vacuous,
    score,
)
from edgekit.preprocess import Encoded

TEXT = "text-classification"
ROWS = Encoded({}, None)


def scores(outputs: Any, truth: Any, task: str = TEXT, problem: str | None = None, **options: Any):
    known = {"labels": (), "encoded": ROWS, **options}
    return score(np.asarray(outputs), truth, task=task, problem=problem, **known)


def one_hot(classes: list[int], count: int) -> np.ndarray:
    return np.eye(count)[classes]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_single_label_scores_are_what_counting_gives(pairs: list[tuple[int, int]]) -> None:
    truth, guess = [t for t, _ in pairs], [g for _, g in pairs]
    found = scores(one_hot(guess, 4), np.array(truth), problem="single-label")
    assert found["accuracy"] == pytest.approx(sum(t == g for t, g in pairs) / len(pairs))
    each = []
    for c in set(truth) | set(guess):
        hits = sum(t == g == c for t, g in pairs)
        each.append(2 * hits / (truth.count(c) + guess.count(c)))
    assert found["macro_f1"] == pytest.approx(sum(each) / len(each))
    # Matthews in the form of Gorodkin 2004: a correlation of one-hot tables.
    t, g = one_hot(truth, 4), one_hot(guess, 4)
    t, g = t - t.mean(axis=0), g - g.mean(axis=0)
    size = math.sqrt((t * t).sum() * (g * g).sum())
    assert found["matthews"] == pytest.approx((t * g).sum() / size if size else 0, abs=1e-9)


@given(st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=30))
def test_multi_label_scores_are_what_counting_gives(rows: list[tuple[bool, ...]]) -> None:
    table = np.array(rows)
    truth, guess = table[:, :3], table[:, 3:]
    found = scores(np.where(guess, 0.1, -0.1), truth.astype(int), problem="multi-label")

    def f1(t: np.ndarray, g: np.ndarray) -> float:
        return 2 * (t & g).sum() / (t.sum() + g.sum()) if t.any() or g.any() else 0.0

    assert found["micro_f1"] == pytest.approx(f1(truth, guess))
    macro = np.mean([f1(truth[:, c], guess[:, c]) for c in range(3)])
    assert found["macro_f1"] == pytest.approx(macro)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean."""
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


@given(
    st.lists(
        st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=3, max_size=30, unique=True
    )
)
def test_correlations_are_those_of_values_and_of_ranks(pairs: list[tuple[int, int]]) -> None:
    guess, truth = np.array(pairs, float).T
    found = scores(guess[:, None], truth, problem="regression")
    if np.ptp(guess) == 0 or np.ptp(truth) == 0:
        assert found == {"spearman": 0.0, "pearson": 0.0}
        return
    assert found["pearson"] == pytest.approx(np.corrcoef(guess, truth)[0, 1], abs=1e-9)
    assert found["spearman"] == pytest.approx(
        np.corrcoef(ranks(guess), ranks(truth))[0, 1], abs=1e-9
    )


def test_embeddings_are_scored_by_the_cosine_of_their_pairs() -> None:
    angles = np.array([0.1, 0.5, 1.0, 2.0])
    first = np.tile([3.0, 0.0], (4, 1))
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 7
    outputs = np.concatenate([first, second])
    found = scores(outputs, np.array([5.0, 4, 3, 1]), task="sentence-embedding")
    assert found["spearman"] == pytest.approx(1)
    expected = np.corrcoef(np.cos(angles), [5, 4, 3, 1])[0, 1]
    assert found["pearson"] == pytest.approx(expected)


# Entities.


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-per I-per O B-loc", ["per 0 2", "loc 3 4"]),
        ("B-per B-per", ["per 0 1", "per 1 2"]),
        ("B-per I-loc", ["per 0 1", "loc 1 2"]),
        ("O I-per I-per", ["per 1 3"]),
        ("I-per B-per I-per", ["per 0 1", "per 1 3"]),
        ("B-creative-work I-creative-work", ["creative-work 0 2"]),
        ("B-per I-per E-per S-loc S-loc", ["per 0 3", "loc 3 4", "loc 4 5"]),
        ("B-per L-per U-per", ["per 0 2", "per 2 3"]),
        ("B-per E-per I-per", ["per 0 2", "per 2 3"]),
        ("per per O loc", ["per 0 2", "loc 3 4"]),
    ],
)
def test_entities_of_hand_made_sentences(tags: str, expected: list[str]) -> None:
    found = sorted(entities(tags.split()), key=lambda entity: entity[1])
    assert [" ".join(map(str, entity)) for entity in found] == expected


@given(st.lists(st.sampled_from(["O", "Bp", "Ip", "Bl", "Il"]), max_size=12))
def test_entities_of_any_sentence_are_those_of_a_pattern(short: list[str]) -> None:
    """An independent reader: make every I that continues nothing a B, then match a pattern."""
    text, last = "", "O"
    for tag in short:
        text += tag if tag[0] != "I" or last[1:] == tag[1:] else "B" + tag[1]
        last = tag
    text = text.replace("O", "O ")
    pattern = re.compile(r"B(.)(?:I\1)*")
    expected = {(m[1], m.start() // 2, m.end() // 2) for m in pattern.finditer(text)}
    assert entities(["O" if tag == "O" else f"{tag[0]}-{tag[1]}" for tag in short]) == expected


def test_tags_are_scored_at_first_sub_words_and_lost_words_are_outside() -> None:
    labels = ("O", "B-per", "I-per")
    starts = (np.array([1, 3, 4]), np.array([1, -1, 2, -1]))
    truth = (np.array([1, 2, 0]), np.array([0, 0, 1, 2]))
    predicted = np.full((2, 6), 2)  # what stands between first sub-words must not count
    predicted[0, [1, 3, 4]] = [1, 2, 0]
    predicted[1, [1, 2]] = [0, 1]
    encoded = Encoded({}, None, starts)
    outputs = np.eye(3)[predicted]
    found = scores(outputs, truth, task="token-classification", labels=labels, encoded=encoded)
    # Row 1 is right; in row 2 the entity of two words is found with one, its second was cut off.
    assert found["entity_f1"] == pytest.approx(0.5)
    assert found["word_accuracy"] == pytest.approx(6 / 7)


# Chance, and refusing it.


@settings(max_examples=20)
@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=12))
def test_multi_label_chance_is_the_best_of_all_constant_answers(rows: list[tuple[bool]]) -> None:
    truth = np.array(rows).astype(int)
    best = 0.0
    for constant in itertools.product([-1, 1], repeat=4):
        outputs = np.tile(constant, (len(truth), 1))
        best = max(best, scores(outputs, truth, problem="multi-label")["micro_f1"])
    assert chance(truth, TEXT, "multi-label") == pytest.approx(best)


def test_chance_is_the_commonest_class_or_no_correlation() -> None:
    assert chance(np.array([2, 2, 2, 0]), TEXT, "single-label") == 0.75
    assert chance(np.array([1.0, 2.0]), TEXT, "regression") == 0
    assert chance(np.array([1.0, 2.0]), "sentence-embedding", None) == 0
    assert chance((np.array([0, 1]),), "token-classification", None) == 0


@pytest.mark.parametrize(
    ("task", "problem", "truth", "at_chance", "above"),
    [
        (TEXT, "single-label", np.array([0, 0, 1]), {"accuracy": 2 / 3}, {"accuracy": 0.7}),
        (TEXT, "multi-label", np.array([[1, 0], [1, 0]]), {"micro_f1": 1.0}, None),
        (TEXT, "regression", np.array([1.0, 2]), {"spearman": 0.0}, {"spearman": 0.4}),
        (TEXT, "regression", np.array([1.0, 2]), {"spearman": math.nan}, {"spearman": 0.4}),
        ("token-classification", None, (np.array([0]),), {"entity_f1": 0.0}, {"entity_f1": 0.1}),
        ("image-classification", None, np.array([0, 1]), {"accuracy": 0.5}, {"accuracy": 0.6}),
    ],
)
def test_a_score_at_chance_is_refused_as_proof(
    task: str, problem: str | None, truth: Any, at_chance: dict, above: dict | None
) -> None:
    with pytest.raises(ProofError, match="no better than") as error:
        refuse_vacuous(at_chance, truth, task=task, problem=problem)
    assert "\n" not in str(error.value)
    if above is not None:
        refuse_vacuous(above, truth, task=task, problem=problem)


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (TEXT, "single-label"),
        (TEXT, "multi-label"),
        (TEXT, "regression"),
        ("image-classification", "single-label"),
        ("module", None),
    ],
)
def test_the_primary_metric_is_one_of_the_scores(task: str, problem: str | None) -> None:
    outputs = np.random.default_rng(0).normal(size=(6, 1 if problem == "regression" else 2))
    truth = np.arange(12).reshape(6, 2) % 2 if problem == "multi-label" else np.arange(6) % 2
    assert primary_metric(task, problem) in scores(outputs, truth, task, problem)


# Agreement.


def test_agreement_counts_equal_answers() -> None:
    a, b = one_hot([0, 1, 2, 2], 3), one_hot([0, 1, 1, 2], 3)
    assert agreement(a, b, TEXT, "single-label") == 0.75
    assert agreement(a, b, "token-classification", None) == 0.75
    many = np.array([[1.0, -1], [1, 1]])
    assert agreement(many, many * [[1, 1], [1, -1]], TEXT, "multi-label") == 0.5
    reference = np.array([[0.0], [10], [20], [30]])
    off = reference + np.array([[0.0], [0.5], [0.6], [-0.5]])  # 5 % of the deviation is 0.559
    assert agreement(off, reference, TEXT, "regression") == 0.75
    assert agreement(np.array([2.0]), np.array([2.05]), TEXT, "regression") == 1
    angles = np.array([0.0, 0.3, 0.4])  # cosines 1, 0.955, 0.921
    turned = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 3
    assert agreement(turned, np.tile([1.0, 0], (3, 1)), "sentence-embedding", None) == 2 / 3


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (TEXT, "single-label"),
        (TEXT, "multi-label"),
        (TEXT, "regression"),
        ("token-classification", None),
        ("sentence-embedding", None),
    ],
)
@pytest.mark.filterwarnings("error")
def test_outputs_that_are_not_finite_agree_with_nothing_and_score_nothing(
    task: str, problem: str | None
) -> None:
    outputs = np.ones((4, 1 if problem == "regression" else 3), np.float32)
    outputs[0, 0] = 2
    assert agreement(outputs, outputs, task, problem) == 1
    broken = outputs.copy()
    broken[1, 0] = math.nan
    assert agreement(broken, outputs, task, problem) == 0.75
    assert agreement(broken, broken, task, problem) < 1


def test_an_output_that_is_not_finite_is_a_wrong_answer() -> None:
    outputs = np.array([[1.0, 0], [math.nan, 0], [1, 0]])
    truth = np.array([0, 0, 1])
    assert predict(outputs, TEXT, "single-label").tolist() == [0, -1, 0]
    assert scores(outputs, truth, problem="single-label")["accuracy"] == pytest.approx(1 / 3)
    values = np.array([1.0, math.nan, 3])
    assert scores(values, np.array([1.0, 2, 3]), problem="regression")["spearman"] == 0


# The interval.


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_ends_where_the_share_is_1_96_deviations_away(n: int, share: float) -> None:
    found = round(share * n) / n
    low, high = interval(found, n)
    assert 0 <= low <= found + 1e-12
    assert found - 1e-12 <= high <= 1
    for end in (low, high):
        deviation = math.sqrt(end * (1 - end) / n)
        assert abs(found - end) == pytest.approx(1.959964 * deviation, abs=1e-7)


def test_nothing_measured_says_nothing() -> None:
    assert interval(1.0, 0) == (0.0, 1.0)
