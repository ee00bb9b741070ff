"""What a student learns from: rows with the teacher's outputs, and the loss to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from edgekit.data import Rows
    from edgekit.examples import Batch, Examples
    from edgekit.model import Model


def check_labels(step: str, share: float, model: Model, rows: Rows | None) -> None:
    """Whether that share of the loss can be the gold labels'. Raises RecipeError."""
    if not 0 <= share <= 1:
        raise RecipeError(f"{step}: labels is a share from 0 to 1, is {share:g}")
    if share and (rows is None or rows.labels is None):
        raise RecipeError(
            f"{step}: labels is above 0 and the training rows have none; name their column with "
            "--label"
        )
    if share and model.problem != "single-label":
        raise RecipeError(
            f"{step}: labels is for single-label classification; leave it at 0 for other tasks"
        )


def taught_examples(
    student: Model, teacher: Model, rows: Rows, folder: Path, *, labels: bool
) -> Examples:
    """The rows as the student reads them, with the teacher's outputs (kept in ``folder``)."""
    from edgekit.data import label_ids
    from edgekit.examples import Examples, teacher_outputs
    from edgekit.workbench import encode

    folder.mkdir(parents=True, exist_ok=True)
    gold: Any = None
    if labels:
        gold = label_ids(
            rows,
            student.labels,
            task=student.task,
            problem=student.problem,
            source="the training rows",
        )
    return Examples(
        encode(student, rows),
        labels=gold,
        teacher=teacher_outputs(teacher, encode(teacher, rows), folder / "teacher.npy"),
        per_token=student.task == "token-classification",
    )


def answer_loss(student: Model, temperature: float, labels: float) -> Any:
    """T²·KL to the teacher's outputs, with the share ``labels`` of gold cross entropy instead.

    Regression and embeddings: the mean squared error to the teacher's outputs.
    """
    import torch.nn.functional as F

    from edgekit.steps.distill.losses import soft_cross_entropy

    classifies = student.problem == "single-label" or student.task == "token-classification"

    def loss(module: Any, batch: Batch) -> torch.Tensor:
        answer = batch.run(module)
        assert batch.teacher is not None
        if not classifies:
            return F.mse_loss(answer, batch.teacher)
        mask = batch.mask if student.task == "token-classification" else None
        soft = soft_cross_entropy(answer, batch.teacher, temperature, mask)
        if not labels:
            return soft
        assert batch.labels is not None
        return (1 - labels) * soft + labels * F.cross_entropy(answer, batch.labels)

    return loss
