"""Which answers of a file are not the original's, and what that means for its classes.

Rules 1 to 3 of ``edgekit.measure.evidence``.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.data import Rows
from edgekit.measure import accuracy
from edgekit.measure.evidence import Changes, ClassCount, Confusion, Example, Kind
from edgekit.measure.expected import Expected
from edgekit.preprocess import Encoded

Array = npt.NDArray[Any]

_EXAMPLES = 24
_CLASSES = 10
# Classes whose counts are kept; a model may have thousands.
_MOST_COUNTED = 200
# Characters of a text that are kept, and pixels of a picture's longer side.
_TEXT = 600
_PIXELS = 56
_NOT_FINITE = "not a number"
_ORDER: dict[Kind, int] = {"lost": 0, "won": 1, "other": 2}


@dataclass(frozen=True)
class _Answers:
    """Both sides' answers, one for each row or word, in words. ``right``: of both, with labels.

    sure: how sure the original is, the surest highest.
    """

    right: tuple[Array, Array] | None
    sure: Array
    original: Callable[[int], tuple[str, float | None]]
    file: Callable[[int], tuple[str, float | None]]
    truth: Callable[[int], str | None]


def changes(
    outputs: npt.NDArray[np.float32], expected: Expected, rows: Rows, encoded: Encoded
) -> Changes:
    """The file's outputs [M, …], one for each answer, against the original's."""
    answers = _answers(outputs, expected)
    changed = ~accuracy.same(outputs, expected.outputs, expected.task, expected.problem)
    lost = won = None
    kinds: dict[int, Kind] = {int(index): "other" for index in np.flatnonzero(changed)}
    if answers.right is not None:
        before, after = answers.right
        lost, won = int((before & ~after).sum()), int((~before & after).sum())
        for index in kinds:
            if before[index] != after[index]:
                kinds[index] = "lost" if before[index] else "won"
    order = sorted(kinds, key=lambda i: (_ORDER[kinds[i]], -float(answers.sure[i]), i))
    places = _places(rows, encoded)
    return Changes(
        answers=len(changed),
        changed=len(kinds),
        lost=lost,
        won=won,
        examples=[
            _example(answers, index, kinds[index], rows, *places(index))
            for index in _shared(order, kinds)
        ],
        **_classes(outputs, expected, changed),
    )


def _shared(order: Sequence[int], kinds: Mapping[int, Kind]) -> list[int]:
    """At most ``_EXAMPLES``: half of them lost ones, where the others are as many."""
    rest = [index for index in order if kinds[index] != "lost"]
    room = max(_EXAMPLES // 2, _EXAMPLES - len(rest))
    kept = [index for index in order if kinds[index] == "lost"][:room]
    return [*kept, *rest[: _EXAMPLES - len(kept)]]


def _answers(outputs: Array, expected: Expected) -> _Answers:
    task, problem, names = expected.task, expected.problem, expected.label_names
    ours = accuracy.predict(outputs, task, problem)
    theirs = accuracy.predict(expected.outputs, task, problem)
    truth = _truth(expected)
    if task == "sentence-embedding":
        cosines = (ours * theirs).sum(axis=-1)
        return _Answers(
            None,
            -np.nan_to_num(cosines, nan=-1.0),
            lambda i: ("its embedding", None),
            lambda i: (f"one of cosine {cosines[i]:.3f} to it", None),
            lambda i: None,
        )
    if problem == "regression":
        return _Answers(
            None,
            np.nan_to_num(np.abs(ours - theirs), nan=np.inf),
            lambda i: (f"{theirs[i]:.4g}", None),
            lambda i: (f"{ours[i]:.4g}", None),
            lambda i: None if truth is None else f"{truth[i]:.4g}",
        )
    if problem == "multi-label":

        def listed(chosen: Array) -> str:
            return ", ".join(names[place] for place in np.flatnonzero(chosen)) or "no label"

        return _Answers(
            None
            if truth is None
            else ((theirs == truth).all(axis=-1), (ours == truth).all(axis=-1)),
            np.abs(expected.outputs).min(axis=-1),
            lambda i: (listed(theirs[i]), None),
            lambda i: (listed(ours[i]), None),
            lambda i: None if truth is None else listed(truth[i]),
        )

    def named(answer: Array, shares: Array, index: int) -> tuple[str, float | None]:
        chosen = int(answer[index])
        if chosen < 0:
            return _NOT_FINITE, None
        return _name(names, chosen), float(shares[index][chosen])

    before, after = _softmax(expected.outputs), _softmax(outputs)
    return _Answers(
        None if truth is None else (theirs == truth, ours == truth),
        np.nan_to_num(before.max(axis=-1)),
        lambda i: named(theirs, before, i),
        lambda i: named(ours, after, i),
        lambda i: None if truth is None else _name(names, int(truth[i])),
    )


def _truth(expected: Expected) -> Array | None:
    """Gold labels, one for each answer."""
    if expected.labels is None:
        return None
    if expected.task == "token-classification":
        return np.concatenate([np.asarray(tags) for tags in expected.labels])
    return np.asarray(expected.labels)


def _classes(outputs: Array, expected: Expected, changed: Array) -> dict[str, Any]:
    """Counts of each class with a changed answer, and the confusion of the first (rule 3)."""
    truth = _truth(expected)
    single = expected.problem not in ("multi-label", "regression")
    if truth is None or not single or expected.task == "sentence-embedding":
        return {"classes": [], "confusion": None}
    ours = accuracy.predict(outputs, expected.task, expected.problem)
    theirs = accuracy.predict(expected.outputs, expected.task, expected.problem)
    count = outputs.shape[-1]
    touched = np.zeros(count, dtype=np.int64)
    for index in np.flatnonzero(changed):
        touched[
            sorted({int(side[index]) for side in (truth, theirs, ours) if side[index] >= 0})
        ] += 1
    most = [int(c) for c in np.argsort(-touched, kind="stable") if touched[c]][:_MOST_COUNTED]
    classes = [
        ClassCount(
            label=_name(expected.label_names, each),
            rows=int((truth == each).sum()),
            original=int(((truth == each) & (theirs == each)).sum()),
            file=int(((truth == each) & (ours == each)).sum()),
            changed=int(touched[each]),
        )
        for each in most
    ]
    shown = most[:_CLASSES]
    if not shown:
        return {"classes": classes, "confusion": None}
    return {
        "classes": classes,
        "confusion": Confusion(
            labels=[_name(expected.label_names, each) for each in shown],
            original=_confusion(truth, theirs, shown),
            file=_confusion(truth, ours, shown),
        ),
    }


def _confusion(truth: Array, answers: Array, shown: Sequence[int]) -> list[list[int]]:
    """Counts [true class][answer], with every other answer in the last column."""
    rows = []
    for true in shown:
        given = answers[truth == true]
        inside = [int((given == each).sum()) for each in shown]
        rows.append([*inside, len(given) - sum(inside)])
    return rows


def _places(rows: Rows, encoded: Encoded) -> Callable[[int], tuple[int, int | None]]:
    """From an answer to its row, and in token classification to the word in it."""
    if encoded.word_starts is None:
        return lambda index: (index, None)
    ends = np.cumsum([len(starts) for starts in encoded.word_starts])

    def word(index: int) -> tuple[int, int | None]:
        row = int(np.searchsorted(ends, index, side="right"))
        assert encoded.word_starts is not None
        return row, index - int(ends[row]) + len(encoded.word_starts[row])

    return word


def _example(
    answers: _Answers, index: int, kind: Kind, rows: Rows, row: int, word: int | None
) -> Example:
    text = pair = shown_word = picture = None
    if rows.texts is not None:
        # Pairs of an embedding are two rows: all first texts, then all second ones.
        second = row >= len(rows.texts)
        row = row - len(rows.texts) if second else row
        text = rows.pairs[row] if second and rows.pairs else rows.texts[row]
        pair = rows.pairs[row] if rows.pairs and not second else None
    elif rows.words is not None:
        text = " ".join(rows.words[row])
        shown_word = None if word is None else rows.words[row][word]
    elif rows.images is not None:
        picture = _thumbnail(rows.images[row])
    original, original_share = answers.original(index)
    file, file_share = answers.file(index)
    return Example(
        row=row,
        place=rows.places[row] if rows.places else None,
        text=_cut(text),
        text_pair=_cut(pair),
        word=_cut(shown_word),
        picture=picture,
        truth=_cut(answers.truth(index)),
        original=original[:_TEXT],
        original_share=original_share,
        file=file[:_TEXT],
        file_share=file_share,
        kind=kind,
    )


def _cut(text: str | None) -> str | None:
    """The beginning of a long text, with how much more there is."""
    if text is None or len(text) <= _TEXT:
        return text
    return f"{text[:_TEXT]}… ({len(text) - _TEXT} more characters)"


def _thumbnail(image: Array) -> str | None:
    """A small PNG as a data URI; ``None`` for pixels that no picture has."""
    from PIL import Image

    pixels = np.asarray(image)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    if pixels.dtype != np.uint8 or (pixels.ndim == 3 and pixels.shape[-1] != 3):
        return None
    picture = Image.fromarray(pixels)
    picture.thumbnail((_PIXELS, _PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _name(names: Sequence[str], label: int) -> str:
    """A class by its name, or by its number where it has none."""
    return names[label] if 0 <= label < len(names) else str(label)


def _softmax(outputs: Array) -> Array:
    values = np.asarray(outputs, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        shares: Array = powers / powers.sum(axis=-1, keepdims=True)
    return shares
