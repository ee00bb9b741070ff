"""The original's answers, and outputs as answers: one row for each."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.preprocess import Encoded


@dataclass(frozen=True)
class Expected:
    """The original's answers: what a file is held against.

    outputs: [N, …]; for token classification [words, classes], the words of all rows in a row.
    labels: gold labels aligned with outputs, or ``None`` when there are none.
    """

    task: str
    problem: str | None
    outputs: npt.NDArray[np.float32]
    labels: Any | None
    label_names: tuple[str, ...]
    scores: Mapping[str, float]


def per_answer(outputs: npt.NDArray[np.float32], encoded: Encoded) -> npt.NDArray[np.float32]:
    """One row per answer: token outputs [N, L, C] become the first sub-words' [words, C].

    A word that was cut off answers zeros, on every side of a comparison.
    """
    if encoded.word_starts is None:
        return outputs
    words = [
        np.where(starts[:, None] >= 0, row[starts], np.float32(0))
        for row, starts in zip(outputs, encoded.word_starts, strict=True)
    ]
    return np.concatenate(words)
