"""What a student learns from: rows with the teacher's outputs, and the loss to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from edgekit.data import Rows
    from edgekit.examples import Batch, Examples
    from edgekit.model import Model
    from edgekit.step import Context
    from edgekit.steps.distill.distill import Distill


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


def teach(
    how: Distill,
    student: Model,
    context: Context,
    module: nn.Module | None = None,
    after_step: Callable[[float], None] | None = None,
) -> list[str]:
    """Train the student in place on the original's answers; sentences that say how it went.

    The first has the metric on training rows set aside, before and after. module: the student's
    clean forward, where the caller has put something into it. after_step: as ``train`` takes it.
    """
    from edgekit.model import export_forward
    from edgekit.steps.heldout import metric_of, quality, set_aside
    from edgekit.train import Training, train

    original, folder = context.original, context.folder
    assert context.rows is not None and original is not None and folder is not None
    rows, judged = set_aside(context.rows, context.seed)
    context.on_progress(0.0, "running the original on the training rows")
    before = quality(student, judged, original)
    report = train(
        export_forward(student, learning=True) if module is None else module,
        taught_examples(student, original, rows, folder, labels=how.labels > 0),
        answer_loss(student, how.temperature, how.labels),
        Training(
            epochs=how.epochs,
            learning_rate=how.learning_rate,
            batch=how.batch,
            max_minutes=how.max_minutes,
            seed=context.seed,
        ),
        folder=folder / "training",
        on_progress=context.on_progress,
        after_step=after_step,
    )
    after = quality(student, judged, original)
    metric = metric_of(student) if judged.labels is not None else "agreement with the original"
    told = (
        f"{report.steps} steps, {report.epochs:.2f} epochs; on {len(judged)} training rows set "
        f"aside, {metric} {before:.2%} before, {after:.2%} after"
    )
    return [told] if report.note is None else [told, report.note]
