"""Changed answers and their classes, counted again by plain loops."""

import numpy as np
import pytest

from edgekit.data import Rows
from edgekit.measure.changes import changes
from edgekit.measure.evidence import lengths_of
from edgekit.measure.expected import Expected, per_answer
from edgekit.preprocess import Encoded

NAMES = tuple("abcdefghijklmn")


def _rows(count: int) -> Rows:
    return Rows(texts=tuple(f"text {number}" for number in range(count)))


def _encoded(count: int) -> Encoded:
    return Encoded({"input_ids": np.zeros((count, 2), np.int32)}, np.full(count, 2, np.int32))


def _single(count: int = 200) -> tuple[np.ndarray, Expected]:
    chance = np.random.default_rng(1)
    truth = chance.integers(0, len(NAMES), count)
    before = np.eye(len(NAMES), dtype=np.float32)[truth] * 2
    before += chance.normal(0, 0.7, before.shape).astype(np.float32)
    after = before + chance.normal(0, 0.7, before.shape).astype(np.float32)
    before[3] = 9 * np.eye(len(NAMES))[truth[3]]
    after[3] = np.nan
    return after, Expected("text-classification", "single-label", before, truth, NAMES, {})


def test_lost_and_won_answers_are_what_counting_gives() -> None:
    after, expected = _single()
    found = changes(after, expected, _rows(200), _encoded(200))
    lost = won = changed = 0
    for old, new, true in zip(expected.outputs, after, expected.labels, strict=True):
        ours = -1 if np.isnan(new).any() else int(new.argmax())
        changed += ours != old.argmax()
        lost += old.argmax() == true and ours != true
        won += old.argmax() != true and ours == true
    assert (found.answers, found.changed, found.lost, found.won) == (200, changed, lost, won)
    assert lost > 3 and won > 3
    kinds = [example.kind for example in found.examples]
    assert kinds == sorted(kinds, key=("lost", "won", "other").index) and len(kinds) == 24
    for example in found.examples:
        old, true = expected.outputs[example.row], expected.labels[example.row]
        assert example.original == NAMES[int(old.argmax())] and example.truth == NAMES[int(true)]
        powers = np.exp(old.astype(float))
        assert example.original_share == pytest.approx((powers / powers.sum()).max())
    assert next(e for e in found.examples if e.row == 3).file == "not a number"


def test_the_confusion_counts_every_row_of_its_classes() -> None:
    after, expected = _single()
    found = changes(after, expected, _rows(200), _encoded(200))
    assert found.confusion is not None and len(found.confusion.labels) == 10
    changed = [each.changed for each in found.classes]
    assert changed == sorted(changed, reverse=True)
    assert found.confusion.labels == [each.label for each in found.classes[:10]]
    shown = [NAMES.index(label) for label in found.confusion.labels]
    for side, outputs in (("original", expected.outputs), ("file", after)):
        table = getattr(found.confusion, side)
        for place, true in enumerate(shown):
            mine = [int(o.argmax()) if np.isfinite(o).all() else -1 for o in outputs]
            given = [a for a, t in zip(mine, expected.labels, strict=True) if t == true]
            assert table[place] == [
                *(given.count(c) for c in shown),
                sum(a not in shown for a in given),
            ]
            count = next(each for each in found.classes if each.label == NAMES[true])
            assert getattr(count, side) == given.count(true) and count.rows == len(given)


def test_a_changed_tag_is_shown_with_its_word() -> None:
    words = (("anna", "smith"), ("in", "berlin"), ("no",))
    starts = (np.array([1, 2]), np.array([1, -1]), np.array([1]))
    encoded = Encoded({"input_ids": np.zeros((3, 4), np.int32)}, np.array([4, 4, 3]), starts)
    outputs = np.zeros((3, 4, 2), np.float32)
    outputs[..., 0] = 1
    before = per_answer(outputs, encoded)
    outputs[2, 1] = (0, 5)
    labels = (np.array([0, 0]), np.array([0, 0]), np.array([1]))
    expected = Expected("token-classification", None, before, labels, ("O", "PER"), {})
    found = changes(per_answer(outputs, encoded), expected, Rows(words=words), encoded)
    assert (found.answers, found.changed, found.lost, found.won) == (5, 1, 0, 1)
    (example,) = found.examples
    assert (example.row, example.word, example.text) == (2, "no", "no")
    assert (example.original, example.file, example.truth) == ("O", "PER", "PER")


def test_the_other_tasks() -> None:
    before = np.array([[1, -1], [1, 1], [-1, -1]], np.float32)
    after = np.array([[1, -1], [1, -1], [-1, -1]], np.float32)
    several = Expected(
        "text-classification",
        "multi-label",
        before,
        np.array([[1, 0], [1, 1], [0, 0]]),
        ("a", "b"),
        {},
    )
    found = changes(after, several, _rows(3), _encoded(3))
    assert (found.changed, found.lost, found.won) == (1, 1, 0)
    assert [(e.original, e.file) for e in found.examples] == [("a, b", "a")]

    numbers = np.array([[1.0], [2.0], [3.0]], np.float32)
    moved = numbers + np.array([[0.0], [0.5], [0.01]], np.float32)
    scores = Expected("text-classification", "regression", numbers, None, (), {})
    found = changes(moved, scores, _rows(3), _encoded(3))
    assert (found.changed, found.lost, found.confusion) == (1, None, None)
    assert [(e.original, e.file, e.truth) for e in found.examples] == [("2", "2.5", None)]

    vectors = np.eye(4, dtype=np.float32)
    turned = vectors.copy()
    turned[3] = (0, 0, 0.9, 0.5)
    pairs = Rows(texts=("one", "two"), pairs=("three", "four"))
    embedding = Expected("sentence-embedding", None, vectors, np.array([0.1, 0.9]), (), {})
    found = changes(turned, embedding, pairs, _encoded(4))
    assert [(e.row, e.text) for e in found.examples] == [(1, "four")]


def test_a_changed_picture_comes_as_a_thumbnail() -> None:
    images = np.full((2, 200, 100, 3), 128, np.uint8)
    before = np.array([[0, 1], [0, 1]], np.float32)
    after = np.array([[0, 1], [1, 0]], np.float32)
    expected = Expected("image-classification", "single-label", before, None, ("a", "b"), {})
    encoded = Encoded({"pixel_values": np.zeros((2, 3, 4, 4), np.float32)}, None)
    found = changes(after, expected, Rows(images=images, places=("x.png", "y.png")), encoded)
    (example,) = found.examples
    assert example.place == "y.png" and found.lost is None
    assert example.picture is not None and example.picture.startswith("data:image/png;base64,")


@pytest.mark.parametrize("widths", [range(3, 90), (16, 32, 64), (0,)])
def test_every_call_is_in_one_group_of_lengths(widths: range | tuple[int, ...]) -> None:
    chance = np.random.default_rng(0)
    drawn = chance.choice(np.asarray(widths), 500)
    samples = chance.random(500)
    groups = lengths_of({"samples": samples.tolist(), "widths": drawn.tolist()})
    assert sum(group.samples for group in groups) == 500
    for group in groups:
        inside = np.ones(500, bool)
        if group.longest is not None and group.above is not None:
            inside = (drawn > group.above) & (drawn <= group.longest)
        assert group.samples == inside.sum()
        assert group.quantiles[2] == pytest.approx(np.median(samples[inside]))
