"""What a student learns from: training rows, rows without labels, and augmented ones.

Rules:

1. First the training rows but for those that ``heldout`` sets aside, then the unlabelled rows
   that are none of these. Augmented copies of the former (``augment.py``) are unlabelled rows.
2. Only training rows have labels. Terms of gold labels count for them alone; the teacher answers
   all rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded
    from edgekit.step import Context

# The paper makes 30 at most.
_MOST_COPIES = 100


def learning_rows(context: Context) -> tuple[Rows, Array]:
    """All training rows with the unlabelled behind them, and the places of those to learn from.

    Labels are ``None`` for rows without. The places, int64 [n], ascend.
    """
    from edgekit.data import apart, together
    from edgekit.steps.heldout import places

    rows = context.rows
    assert rows is not None
    learned, judged = places(len(rows), context.seed)
    if context.unlabeled is None:
        return rows, learned
    held = rows.take(judged)
    aside = {*held.contents(), *apart(held).contents()}
    new = [n for n, each in enumerate(context.unlabeled.contents()) if each not in aside]
    extra = context.unlabeled.take(new)
    if (rows.pairs is None) != (extra.pairs is None):
        # An embedding reads pairs apart, so that they are single texts beside others.
        whole = together(rows.take(learned), extra)
        return whole, np.arange(len(whole))
    whole = together(rows, extra)
    return whole, np.concatenate([learned, np.arange(len(rows), len(whole))])


def check_copies(step: str, copies: int, guesser: Path | None, rows: Rows | None) -> None:
    """Whether rows can be augmented so. Raises RecipeError."""
    from edgekit.steps.distill.augment import need_words
    from edgekit.steps.distill.masked import Mask, load_guesser

    if not 0 <= copies <= _MOST_COPIES:
        raise RecipeError(
            f"{step}: augment is how many copies of each text, 0 to {_MOST_COPIES}, is {copies}"
        )
    if guesser is not None and not copies:
        raise RecipeError(f"{step}: augment-with is for augmented copies; add augment=10")
    if copies and rows is not None:
        need_words(rows)
    if guesser is not None:
        Mask(load_guesser(guesser))


def with_copies(context: Context, copies: int, guesser: Path | None) -> Context:
    """The context with that many augmented copies of each row to learn from as unlabelled rows.

    guesser: the checkpoint of a masked language model for them, or ``None``.
    """
    from edgekit.data import together
    from edgekit.steps.distill.augment import augmented
    from edgekit.steps.distill.masked import load_guesser
    from edgekit.steps.heldout import set_aside

    if not copies:
        return context
    assert context.rows is not None and context.original is not None
    assert context.folder is not None
    made = augmented(
        set_aside(context.rows, context.seed)[0],
        context.original,
        copies=copies,
        seed=context.seed,
        folder=context.folder,
        guesser=None if guesser is None else load_guesser(guesser),
        on_progress=context.on_progress,
    )
    known = context.unlabeled
    return replace(context, unlabeled=made if known is None else together(known, made))


def gold_ids(student: Model, rows: Rows, encoded: Encoded) -> Array:
    """int64 [N], the gold label of each row, and ``IGNORED`` for those without.

    encoded: the rows as the student reads them. For tokens int64 [N, L]: at each word's first
    token its label. Raises DataError for a label that the student does not know.
    """
    from edgekit.data import label_ids
    from edgekit.examples import IGNORED, token_labels

    labels = rows.labels or (None,) * len(rows)
    labelled = [number for number, label in enumerate(labels) if label is not None]
    known: Any = label_ids(
        rows.take(labelled),
        student.labels,
        task=student.task,
        problem=student.problem,
        source="the training rows",
    )
    if student.task == "token-classification":
        ids = np.full(next(iter(encoded.arrays.values())).shape[:2], IGNORED, np.int64)
        places = np.array(labelled, np.int64)
        ids[places] = token_labels(encoded.rows(places), known)
    else:
        ids = np.full(len(rows), IGNORED, np.int64)
        ids[labelled] = known
    return ids
