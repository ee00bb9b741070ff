"""Give an encoder several heads, and each a teacher of its own. Matsubara et al. 2022, CERBERUS:
Ensemble Transformer for Efficient and Accurate Ranking Tasks, arXiv 2201.05767.

Rules:

1. The embeddings and the first ``body-layers`` layers are shared. Each head is a copy of the last
   ``head-layers`` layers and of the classifier, one head for each of ``teachers``; without a
   number the body is all that is not a head's. Parameters: body + k · h · layer + k · classifier.
2. Head i learns from teacher i alone: the loss is the sum over heads of T²·KL to its teacher. So a
   teacher has no gradient in another's head, and all have one in the body.
3. The model answers the logarithm of the mean of the heads' probabilities, so that a softmax of it
   is that mean; with ``combine=logits`` the mean of their logits.
4. Teachers are checkpoints, exported files or files of logits (``teachers.py``); the answers of
   each are computed once. Unlabelled and augmented rows are as in ``distill``.
5. A training of ``max-minutes``, its held-out rows and its seed are as in ``distill``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.distill.rows import check_copies
from edgekit.steps.needs import need_encoder, need_float, need_rows

if TYPE_CHECKING:
    import torch

    from edgekit.examples import Batch, Examples
    from edgekit.model import Model
    from edgekit.step import Context
    from edgekit.steps.distill.teachers import Teacher


@dataclass(frozen=True)
class Cerberus:
    """Gives the model a head for each of several teachers, on a shared body, and teaches them.

    teachers: checkpoints, exported files or files of logits, one a head. head_layers: of each
    head. body_layers: shared; all others when left out. combine: the mean of probabilities or of
    logits. epochs, batch, learning_rate, temperature, augment, augment_with, max_minutes: as in
    distill.
    """

    teachers: tuple[Path, ...]
    head_layers: int = 1
    body_layers: int | None = None
    combine: Literal["probabilities", "logits"] = "probabilities"
    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch: int = 32
    temperature: float = 2.0
    augment: int = 0
    augment_with: Path | None = None
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.architectures.cerberus import BODIES
        from edgekit.steps.distill.teachers import find_teachers

        need_float("cerberus", model)
        need_rows("cerberus", context)
        described = need_encoder("cerberus", model)
        assert context.rows is not None
        if (model.task, model.problem) != ("text-classification", "single-label"):
            raise RecipeError(
                f"cerberus: heads are combined by their probabilities, and this model does "
                f"{model.problem or model.task}; it is for single-label text classification"
            )
        family = _family(model)
        if described.branches or family not in BODIES:
            raise RecipeError(
                f"cerberus: a {family} cannot be the body; give one of {', '.join(BODIES)}"
            )
        for name in ("epochs", "learning_rate", "batch", "temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RecipeError(f"cerberus: {name.replace('_', '-')} must be above 0")
        if not self.teachers:
            raise RecipeError("cerberus: each head wants a teacher; give teachers=ONE;TWO")
        self._body(model)
        check_copies("cerberus", self.augment, self.augment_with, context.rows)
        find_teachers(self.teachers, model, None, context.rows, meta=True)

    def apply(self, model: Model, context: Context) -> Model:
        from edgekit.architectures import architecture
        from edgekit.architectures.cerberus import CerberusConfig, cerberus

        heads, body = len(self.teachers), self._body(model)
        module = cerberus(model, body, self.head_layers, heads, self.combine)
        note = (
            f"cerberus: {body} shared layers and {heads} heads of {self.head_layers}, which answer "
            f"the mean of their {self.combine}"
        )
        made = replace(
            model.with_module(module, note), architecture=architecture(CerberusConfig.model_type)
        )
        if context.folder is None:
            return made
        return replace(made, lineage=(*made.lineage, *self._teach(made, context)))

    def ensures(self, before: Model, after: Model) -> None:
        kept = self._body(before)
        described, module = before.architecture, after.module
        assert described is not None and described.layers is not None
        shapes = [tuple(p.shape) for p in after.module.parameters()]
        layers: Any = described.layers(module.base_model)
        if len(layers) != kept + len(self.teachers) * self.head_layers or not shapes:
            raise RecipeError("cerberus: another number of layers is left; a bug of edgekit")

    def _body(self, model: Model) -> int:
        """How many layers are shared. Raises RecipeError."""
        from edgekit.steps.prune.drop_layers import depth_of

        depth = depth_of(model)
        if not 1 <= self.head_layers < depth:
            raise RecipeError(
                f"cerberus: head-layers must be from 1 to {depth - 1} of {depth} layers, is "
                f"{self.head_layers}"
            )
        most = depth - self.head_layers
        body = most if self.body_layers is None else self.body_layers
        if not 1 <= body <= most:
            raise RecipeError(
                f"cerberus: body-layers must be from 1 to {most} beside heads of "
                f"{self.head_layers} of {depth} layers, is {body}"
            )
        return body

    def _teach(self, student: Model, context: Context) -> list[str]:
        """Train the heads in place; sentences that say how it went."""
        from edgekit.architectures.cerberus import EachHead
        from edgekit.model import export_forward
        from edgekit.steps.distill.rows import with_copies
        from edgekit.steps.distill.teachers import find_teachers
        from edgekit.steps.heldout import metric_of, quality, set_aside
        from edgekit.train import Training, train

        assert context.rows is not None and context.original is not None
        assert context.folder is not None
        _, judged = set_aside(context.rows, context.seed)
        context.on_progress(0.0, "running the teachers on the training rows")
        teachers = find_teachers(self.teachers, student, None, context.rows, meta=False)
        before = quality(student, judged, context.original)
        forward: Any = export_forward(student, learning=True)
        report = train(
            EachHead(forward),
            head_examples(student, teachers, with_copies(context, self.augment, self.augment_with)),
            heads_loss(self.temperature),
            Training(
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                batch=self.batch,
                max_minutes=self.max_minutes,
                seed=context.seed,
            ),
            folder=context.folder / "training",
            on_progress=context.on_progress,
        )
        after = quality(student, judged, context.original)
        metric = metric_of(student) if judged.labels is not None else "agreement with the original"
        told = (
            f"each head learned from its teacher: {report.steps} steps, {report.epochs:.2f} "
            f"epochs; on {len(judged)} training rows set aside, {metric} {before:.2%} before, "
            f"{after:.2%} after"
        )
        return [told] if report.note is None else [told, report.note]


def head_examples(student: Model, teachers: list[Teacher], context: Context) -> Examples:
    """The rows to learn from with the teachers' answers, float32 [N, k, C]."""
    from edgekit.examples import Examples
    from edgekit.steps.distill.rows import learning_rows
    from edgekit.steps.distill.teachers import answers
    from edgekit.workbench import encode

    assert context.folder is not None
    whole, chosen = learning_rows(context)
    each = [
        answers([teacher], student, whole, chosen, context.folder / f"teacher-{number}", 1.0)
        for number, teacher in enumerate(teachers)
    ]
    return Examples(encode(student, whole.take(chosen)), teacher=np.stack(each, 1))


def heads_loss(temperature: float) -> Any:
    """Rule 2, of answers and teachers' answers [B, k, C]."""
    from edgekit.steps.distill.losses import soft_cross_entropy

    def loss(module: Any, batch: Batch) -> torch.Tensor:
        answer = batch.run(module)
        assert batch.teacher is not None
        # The mean over rows and heads, times their number: the sum over heads.
        return answer.shape[1] * soft_cross_entropy(answer, batch.teacher, temperature)

    return loss


def _family(model: Model) -> str:
    module: Any = model.module
    return str(module.config.model_type)
