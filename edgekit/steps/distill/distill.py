"""Teach a changed model the answers of the original: how a lossy step is made good.

Hinton et al. 2015, arXiv 1503.02531. The teacher is the model as it was before the first step of
the recipe, in float32.

Rules:

1. The loss is T²·KL to the teacher's outputs; with ``labels`` above 0 and gold labels at hand,
   that share of it is their cross entropy. Regression and embeddings: the mean squared error.
2. All weights learn. The tenth of the training rows (at most 512) that ``heldout`` sets aside is
   not learned from; the metric on it, before and after, is told in the lineage.
3. Weights that are zero stay zero with ``keep-zeros``: a sparse model stays sparse.
4. There is no dropout: the teacher's answers are what keeps a student from learning by heart.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edgekit.errors import RecipeError
from edgekit.steps.needs import need_float, need_rows

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.step import Context


@dataclass(frozen=True)
class Distill:
    """Teaches the model the answers of the original: recovers what other steps have cost.

    epochs, batch, learning_rate: as usual; max_minutes: stop by then. temperature: of the
    distillation. labels: the share of the loss that is for gold labels. keep_zeros: weights that
    are zero stay zero.
    """

    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch: int = 32
    temperature: float = 2.0
    labels: float = 0.0
    keep_zeros: bool = False
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.distill.teaching import check_labels

        need_float("distill", model)
        need_rows("distill", context)
        for name, value in (
            ("epochs", self.epochs),
            ("learning-rate", self.learning_rate),
            ("batch", self.batch),
            ("temperature", self.temperature),
        ):
            if not value > 0:
                raise RecipeError(f"distill: {name} must be above 0, is {value:g}")
        check_labels("distill", self.labels, model, context.rows)
        if model.architecture is not None and not model.architecture.learns:
            raise RecipeError(
                "distill: this family runs on copies of its weights, which cannot learn; leave "
                "the step out"
            )
        original = context.original
        if (
            model.task == "token-classification"
            and original is not None
            and original.preprocessor != model.preprocessor
        ):
            raise RecipeError(
                "distill: the original splits words into other tokens now; put trim-vocabulary "
                "behind distill"
            )

    def apply(self, model: Model, context: Context) -> Model:
        sparsity = model.sparsity if self.keep_zeros else 0.0
        if context.folder is None:
            return replace(model, sparsity=sparsity)
        from edgekit.steps.distill.teaching import teach
        from edgekit.steps.prune.zeros import kept_zero

        made = replace(model, module=copy.deepcopy(model.module), sparsity=sparsity)
        with kept_zero(made.module.parameters() if self.keep_zeros else ()):
            notes = teach(self, made, context)
        return replace(made, lineage=(*model.lineage, "distilled: " + notes[0], *notes[1:]))

    def ensures(self, before: Model, after: Model) -> None:
        shapes = {name: t.shape for name, t in before.module.state_dict().items()}
        if shapes != {name: t.shape for name, t in after.module.state_dict().items()}:
            raise RecipeError("distill: changed a shape; this is a bug of edgekit")
