"""The nouns of data: rows, the columns they come from, and the two splits."""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rows:
    """N rows of one kind: texts (with or without pairs), words, images or arrays.

    images: uint8 [N, H, W, C], or where sizes differ an object array [N] of uint8 [H, W, C].
    arrays: [N, ...] each, by input name.
    labels: ``str``; ``float`` for regression and similarity scores; a tuple of ``str`` for the tags
        of a row's words or the labels of a multi-label row; ``None`` for a row without, among
        rows that ``together`` has joined.
    places: where each row stands in its file, for messages: ``line 7``.
    """

    texts: tuple[str, ...] | None = None
    pairs: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    images: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] | None = None
    labels: tuple[Any, ...] | None = None
    places: tuple[str, ...] | None = None

    def __len__(self) -> int:
        for column in (self.texts, self.words, self.images):
            if column is not None:
                return len(column)
        return len(next(iter(self.arrays.values()))) if self.arrays else 0

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """The rows at ``indices``, in that order."""
        chosen = [int(index) for index in indices]

        def some(column: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if column is None else tuple(column[index] for index in chosen)

        return Rows(
            texts=some(self.texts),
            pairs=some(self.pairs),
            words=some(self.words),
            images=None if self.images is None else self.images[chosen],
            arrays=self.arrays and {name: array[chosen] for name, array in self.arrays.items()},
            labels=some(self.labels),
            places=some(self.places),
        )

    def contents(self) -> Iterator[Hashable]:
        """What a model sees of each row: equal for rows that are the same."""
        if self.texts is not None:
            yield from zip(self.texts, self.pairs, strict=True) if self.pairs else self.texts
        elif self.words is not None:
            yield from self.words
        elif self.images is not None:
            yield from ((image.shape, image.tobytes()) for image in self.images)
        else:
            for number in range(len(self)):
                yield tuple(array[number].tobytes() for array in (self.arrays or {}).values())

    def digest(self) -> str:
        """Hex digest of the rows with their labels, in their order, wherever they came from."""
        found = hashlib.sha256(repr(self.labels).encode())
        for content in self.contents():
            for part in content if isinstance(content, tuple) else (content,):
                found.update(part if isinstance(part, bytes) else repr(part).encode())
                found.update(b"\n")
        return found.hexdigest()


def together(first: Rows, second: Rows) -> Rows:
    """All rows of both, which are of one kind. Where only one has labels, the others' are ``None``.

    Where only one holds pairs, which an embedding reads apart, the pairs become single texts.
    """
    if (first.pairs is None) != (second.pairs is None):
        first, second = apart(first), apart(second)
    labels: tuple[Any, ...] | None = None
    if first.labels is not None or second.labels is not None:
        labels = tuple(
            label for rows in (first, second) for label in rows.labels or (None,) * len(rows)
        )

    def both(name: str) -> Any:
        one, other = getattr(first, name), getattr(second, name)
        return None if one is None or other is None else (*one, *other)

    arrays = None
    if first.arrays is not None and second.arrays is not None:
        others = second.arrays
        arrays = {
            name: np.concatenate([array, others[name]])
            for name, array in first.arrays.items()
            if name in others
        }
    return Rows(
        texts=both("texts"),
        pairs=both("pairs"),
        words=both("words"),
        images=_pictures(first.images, second.images),
        arrays=arrays,
        labels=labels,
        places=both("places"),
    )


def apart(rows: Rows) -> Rows:
    """Rows of pairs as single texts, all first ones before all second ones, without labels."""
    if rows.texts is None or rows.pairs is None:
        return rows
    return Rows(texts=(*rows.texts, *rows.pairs))


def _pictures(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    if first is None or second is None:
        return None
    if first.shape[1:] == second.shape[1:]:
        return np.concatenate([first, second])
    found = np.empty(len(first) + len(second), object)
    for place, picture in enumerate((*first, *second)):
        found[place] = picture
    return found


@dataclass(frozen=True)
class Columns:
    """The columns that the caller named; ``None`` leaves the choice to us."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Data:
    """Training and eval rows, the columns they came from, and sentences to show the caller.

    columns: by role (``text``, ``text_pair``, ``label``), those of ``train`` if there is one.
    unlabeled: rows for a teacher to answer, without labels and without any eval row.
    """

    train: Rows | None
    eval: Rows | None
    columns: Mapping[str, str]
    notes: tuple[str, ...]
    unlabeled: Rows | None = None
