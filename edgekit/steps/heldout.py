"""Training rows that are set aside to judge a change by. Eval rows are never looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model
    from edgekit.preprocess import Array

_SHARE = 0.1
_MOST = 512


def places(count: int, seed: int) -> tuple[Array, Array]:
    """Of ``count`` rows those to learn from, and the tenth (at most 512) that is set aside."""
    order = np.random.default_rng([seed, count]).permutation(count)
    aside = max(1, min(_MOST, round(_SHARE * count)))
    return np.sort(order[aside:]), np.sort(order[:aside])


def set_aside(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """The rows to learn from, and those that are set aside; by the seed."""
    learned, judged = places(len(rows), seed)
    return rows.take(learned), rows.take(judged)


def metric_of(model: Model) -> str:
    """The name of what ``quality`` returns for labelled rows."""
    from edgekit.measure.accuracy import primary_metric

    return primary_metric(model.task, model.problem)


def quality(model: Model, rows: Rows, original: Model) -> float:
    """The task's metric on the rows; without labels, how often it answers as the original does."""
    from edgekit.data import label_ids
    from edgekit.measure import accuracy
    from edgekit.measure.expected import per_answer
    from edgekit.workbench import answers_of, encode

    encoded = encode(model, rows)
    outputs = answers_of(model, encoded)
    if rows.labels is None:
        # Of words: a student may split them into other tokens.
        whole = encode(original, rows)
        theirs = per_answer(answers_of(original, whole), whole)
        ours = per_answer(outputs, encoded)
        return accuracy.agreement(ours, theirs, model.task, model.problem)
    known = label_ids(
        rows, model.labels, task=model.task, problem=model.problem, source="the training rows"
    )
    scores = accuracy.score(
        outputs,
        known,
        task=model.task,
        problem=model.problem,
        labels=model.labels,
        encoded=encoded,
    )
    return scores[metric_of(model)]
