"""What a student learns from: training rows, rows without labels, and augmented ones.

Rules:

1. First the training rows but for those that ``heldout`` sets aside, then the unlabelled rows
   that are none of these, then augmented copies of the training rows (``augment.py``).
2. Only training rows have labels. Terms of gold labels count for them alone; the teacher answers
   all rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context


def learning_rows(
    context: Context, copies: int = 0, guesser: Model | None = None
) -> tuple[Rows, Array]:
    """All training rows with those without labels behind them, and which of these to learn from.

    Labels are ``None`` for rows without. The places int64 [n] ascend. copies: augmented ones of
    each training row that is learned from. guesser: a masked language model for them.
    """
    from edgekit.data import together
    from edgekit.steps.distill.augment import augmented
    from edgekit.steps.heldout import places

    rows = context.rows
    assert rows is not None
    learned, judged = places(len(rows), context.seed)
    whole = rows
    if context.unlabeled is not None:
        aside = set(rows.take(judged).contents())
        new = [n for n, each in enumerate(context.unlabeled.contents()) if each not in aside]
        whole = together(whole, context.unlabeled.take(new))
    if copies:
        assert context.original is not None and context.folder is not None
        made = augmented(
            rows.take(learned),
            context.original,
            copies=copies,
            seed=context.seed,
            folder=context.folder,
            guesser=guesser,
            on_progress=context.on_progress,
        )
        whole = together(whole, made)
    return whole, np.concatenate([learned, np.arange(len(rows), len(whole))])


def gold_ids(student: Model, rows: Rows) -> Array:
    """int64 [N], the gold label of each row, and ``IGNORED`` for those without.

    Raises DataError for a label that the student does not know.
    """
    from edgekit.data import label_ids
    from edgekit.examples import IGNORED

    labels = rows.labels or (None,) * len(rows)
    labelled = [number for number, label in enumerate(labels) if label is not None]
    ids = np.full(len(rows), IGNORED, np.int64)
    ids[labelled] = label_ids(
        rows.take(labelled),
        student.labels,
        task=student.task,
        problem=student.problem,
        source="the training rows",
    )
    return ids
