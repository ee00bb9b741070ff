"""Rows with gold labels, and the loss of each: what is judged by how wrong the model is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.needs import ENOUGH, need_labels, need_rows

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.data import Rows
    from edgekit.examples import Examples
    from edgekit.model import Model
    from edgekit.step import Context


def need_gold(step: str, model: Model, context: Context, least: int = ENOUGH) -> None:
    """There are training rows with labels, and a task whose labels make a loss."""
    if model.task == "sentence-embedding":
        raise RecipeError(f"{step}: it needs gold labels, and sentence embeddings have none")
    need_rows(step, context, least)
    need_labels(step, context)


def gold_examples(model: Model, rows: Rows) -> Examples:
    """The rows as inputs with their gold labels.

    Raises DataError for a label that the model does not know.
    """
    from edgekit.data import label_ids
    from edgekit.examples import Examples, token_labels
    from edgekit.workbench import encode

    encoded = encode(model, rows)
    labels: Any = label_ids(
        rows, model.labels, task=model.task, problem=model.problem, source="the training rows"
    )
    per_token = model.task == "token-classification"
    if per_token:
        labels = token_labels(encoded, labels)
    return Examples(encoded, labels=labels, per_token=per_token)


def row_losses(model: Model, answer: Tensor, labels: Tensor) -> Tensor:
    """The task's own loss of each row, [B].

    Cross entropy; for several labels a row its binary form, for regression the squared error,
    and for tokens the mean over the row's labelled ones.
    """
    from torch.nn import functional as F

    if model.task == "token-classification":
        each = F.cross_entropy(answer.transpose(1, 2), labels, reduction="none")
        return each.sum(1) / (labels >= 0).sum(1).clamp_min(1)
    if model.problem == "multi-label":
        return F.binary_cross_entropy_with_logits(answer, labels.float(), reduction="none").mean(1)
    if model.problem == "regression":
        return (answer[:, 0] - labels) ** 2
    return F.cross_entropy(answer, labels, reduction="none")


def drawn(rows: Rows, count: int, seed: int) -> Rows:
    """That many of the rows, drawn by the seed, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows.take(np.sort(chosen))
