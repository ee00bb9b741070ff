"""Make most weights of the encoder zero. Zafrir et al. 2021, Prune Once For All, arXiv 2111.05754.

Zhu and Gupta 2017, arXiv 1710.01878, for the schedule. The teacher is the model as it was before
the first step of the recipe.

Rules:

1. Each matrix of the encoder's layers has the same share of zeros; embeddings, norms, biases and
   the head stay dense. A matrix of n numbers has round(sparsity * n) zeros.
2. The share rises with the share t of the training that is done, from 0 to the target at ``until``:
   s(t) = sparsity * (1 - (1 - t / until)^3).
3. Every ``every`` steps, and whenever ``until`` is reached, the smallest numbers of a matrix by
   magnitude become zero. Of equal ones those stay that come first, row by row.
4. What is zero has no gradient and is zero again after each step, so it never comes back; from
   ``until`` on the pattern is locked, and what is left learns.
5. The loss is that of ``distill``: T²·KL to the original, or in part gold labels.
6. With ``epochs=0`` nothing learns: the target is met at once.
7. The pattern survives later training only with ``keep-zeros``, which distill, finetune and
   quantize-aware-train have. Zero is on every grid, so integers keep it.

Files keep a sparse matrix as its numbers and their distances: ONNX Runtime expands it at load
(``export/onnx_sparse``), for TFLite the app does so once (``export/tflite_packed``). Either way
the runtime multiplies as before: the file is smaller, and no faster than a dense one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError
from edgekit.steps.needs import family_of, need_encoder, need_float, need_rows
from edgekit.steps.prune.zeros import matrices

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.model import Model
    from edgekit.step import Context


@dataclass(frozen=True)
class Sparsify:
    """Makes most of the encoder's weights zero while the original teaches the rest.

    sparsity: the share of zeros in each matrix. until: the share of the training in which it
    rises; every: steps from one pattern to the next. epochs: 0 for no training at all; batch,
    learning_rate, temperature, labels, max_minutes: as in distill.
    """

    sparsity: float = 0.85
    until: float = 0.5
    every: int = 10
    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch: int = 32
    temperature: float = 2.0
    labels: float = 0.0
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:

        need_float("sparsify", model)
        if not 0 < self.sparsity < 1:
            raise RecipeError(
                f"sparsify: sparsity is the share of zeros, between 0 and 1, is {self.sparsity:g}"
            )
        if not 0 < self.until <= 1 or self.every < 1:
            raise RecipeError(
                f"sparsify: until is a share of the training above 0 ({self.until:g} is given) and "
                f"every a number of steps from 1 on ({self.every} is given)"
            )
        described = need_encoder("sparsify", model)
        if not described.learns or _others(model):
            raise RecipeError(
                f"sparsify: {family_of(model)} has matrices in its layers that the step does not "
                "reach; leave the step out"
            )
        if self.epochs == 0:
            return
        need_rows("sparsify", context)
        try:
            self._training().requires(model, context)
        except RecipeError as error:
            raise RecipeError(str(error).replace("distill:", "sparsify:", 1)) from None

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            return replace(model, sparsity=self.sparsity)
        made = replace(model, module=copy.deepcopy(model.module), sparsity=self.sparsity)
        weights = list(matrices(made).values())
        notes = [
            f"sparsify: {self.sparsity:.0%} zeros in each of {len(weights)} matrices; ONNX and "
            "integer TFLite files are smaller for it, other files are not, and none is faster"
        ]
        if self.epochs:
            notes += self._learn(made, weights, context)
        for weight in weights:  # already so, but where nothing learned or the training diverged
            weight.data.mul_(kept_mask(weight, self.sparsity))
        return replace(made, lineage=(*model.lineage, *notes))

    def ensures(self, before: Model, after: Model) -> None:
        for name, weight in matrices(after).items():
            if not weight.is_meta and int((weight == 0).sum()) < zeros_of(
                weight.numel(), self.sparsity
            ):
                raise RecipeError(f"sparsify: {name} has too few zeros; a bug of edgekit")

    def _learn(self, made: Model, weights: list[nn.Parameter], context: Context) -> list[str]:
        from edgekit.model import export_forward
        from edgekit.steps.distill.teaching import teach

        module = export_forward(made)
        with pruned_gradually(module, weights, self.sparsity, self.until, self.every) as after_step:
            notes = teach(self._training(), made, context, module, after_step)
        return ["taught meanwhile: " + notes[0], *notes[1:]]

    def _training(self) -> Any:
        """The options that are distill's own, which knows what they need."""
        from edgekit.steps.distill.distill import Distill

        return Distill(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch=self.batch,
            temperature=self.temperature,
            labels=self.labels,
            max_minutes=self.max_minutes,
        )


@contextlib.contextmanager
def pruned_gradually(
    module: nn.Module, weights: Sequence[nn.Parameter], sparsity: float, until: float, every: int
) -> Iterator[Callable[[float], None]]:
    """Rules 2 to 4 while ``module`` is trained; gives what ``train`` calls after each step.

    The pattern and the count of steps are buffers of the module, so that a checkpoint keeps them.
    """
    import torch

    masks = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    steps = torch.zeros(1, dtype=torch.int64)
    for number, mask in enumerate(masks):
        module.register_buffer(f"kept_{number}", mask)
    module.register_buffer("steps", steps)

    def after_step(done: float) -> None:
        steps.add_(1)
        rising = done < until
        update = int(steps) % every == 0 if rising else not _met(masks, sparsity)
        for weight, mask in zip(weights, masks, strict=True):
            weight.data.mul_(mask)
            if update:
                mask.copy_(kept_mask(weight, scheduled(sparsity, done / until)))
                weight.data.mul_(mask)

    hooks = [
        weight.register_hook(lambda gradient, mask=mask: gradient * mask)
        for weight, mask in zip(weights, masks, strict=True)
    ]
    try:
        yield after_step
    finally:
        for hook in hooks:
            hook.remove()


def _others(model: Model) -> bool:
    """Whether there are matrices between the layers' own that ``matrices`` does not know."""
    from torch import nn

    assert model.architecture is not None
    if model.architecture.stack is None:
        return False
    module: Any = model.module
    known = {id(weight) for weight in matrices(model).values()}
    return any(
        isinstance(part, nn.Linear) and id(part.weight) not in known
        for part in model.architecture.stack(module.base_model).modules()
    )


def scheduled(target: float, share: float) -> float:
    """Rule 2: the share of zeros when this share of the rise is over."""
    return target * (1 - (1 - min(1.0, max(0.0, share))) ** 3)


def zeros_of(count: int, sparsity: float) -> int:
    """How many of ``count`` numbers are zero (rule 1)."""
    return round(sparsity * count)


def kept_mask(weight: Tensor, sparsity: float) -> Tensor:
    """bool, of the weight's shape: where its largest numbers are (rules 1 and 3)."""
    import torch

    size = weight.detach().abs().flatten()
    zeros = zeros_of(size.numel(), sparsity)
    if zeros == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    if zeros == size.numel():
        return torch.zeros_like(weight, dtype=torch.bool)
    least = size.kthvalue(zeros + 1).values
    above, equal = size > least, size == least
    wanted = size.numel() - zeros - int(above.sum())
    kept: Tensor = above | (equal & (equal.cumsum(0) <= wanted))
    return kept.view_as(weight)


def _met(masks: list[Tensor], sparsity: float) -> bool:
    return all(int((~mask).sum()) >= zeros_of(mask.numel(), sparsity) for mask in masks)
