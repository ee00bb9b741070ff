"""Train a model on labelled rows: all of it, its head, or its biases.

Devlin et al. 2018, arXiv 1810.04805, section 4 (``full``). Ben Zaken, Goldberg, Ravfogel. BitFit:
simple parameter-efficient fine-tuning for transformer-based masked language-models. ACL 2022,
arXiv 2106.10199 (``bias``).

Rules:

1. ``full``: every parameter learns.
2. ``head``: what makes the answer of an encoder's states, the pooler before the classifier too.
3. ``bias``: every parameter whose name ends in "bias" and all that is no part of the encoder (the
   classifier); in BERT with L layers of width D and feed-forward width F those are L (7 D + F)
   + 2 D biases. Every other tensor stays as it is, byte for byte: what changed is a ``delta``.
4. The loss of a row is the task's own: cross entropy, its binary form for several labels, the
   squared error for regression, the mean over its labelled tokens for tagging.
5. Dropout is as in the model's config. Norms over batches (ResNet, MobileNet) keep their running
   figures, unless everything learns.
6. The tenth of the training rows (at most 512) that ``heldout`` sets aside is not learned from:
   the metric on it is told in the lineage, and is what ``patience`` watches after each epoch.
7. Weights that are zero stay zero with ``keep-zeros``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import RecipeError
from edgekit.steps.gold import gold_examples, need_gold, row_losses
from edgekit.steps.needs import need_float

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.examples import Batch
    from edgekit.model import Model
    from edgekit.step import Context

What = Literal["full", "head", "bias"]

# Few parameters bear, and need, a larger rate (arXiv 2106.10199, appendix A).
_RATES: dict[What, float] = {"full": 5e-5, "head": 1e-3, "bias": 1e-3}


@dataclass(frozen=True)
class Finetune:
    """Trains the model on labelled rows: all of it, its head, or its biases (BitFit).

    what: learns. epochs, batch, gradient_accumulation, learning_rate: as usual (5e-5 for all,
    1e-3 for head and biases). precision: bf16 where the device has it. patience: epochs without
    a better metric on rows set aside, after which to stop with the best. keep_zeros: weights that
    are zero stay zero. max_minutes: stop by then.
    """

    what: What = "full"
    epochs: float = 3.0
    learning_rate: float | None = None
    batch: int = 32
    gradient_accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    patience: int | None = None
    keep_zeros: bool = False
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        if model.architecture is None:
            raise RecipeError("finetune: a plain module is trained where it is made; leave it out")
        need_float("finetune", model)
        need_gold("finetune", model, context)
        self._training(0).check()

    def apply(self, model: Model, context: Context) -> Model:
        sparse = self.keep_zeros or self.what != "full"
        sparsity = model.sparsity if sparse else 0.0
        if context.folder is None:
            return replace(model, sparsity=sparsity)
        from edgekit.steps.heldout import metric_of, quality, set_aside
        from edgekit.steps.prune.zeros import kept_zero
        from edgekit.train import train

        made = replace(model, module=copy.deepcopy(model.module), sparsity=sparsity)
        module: Any = made.module
        count = choose_parameters(made, self.what)
        assert context.rows is not None
        rows, judged = set_aside(context.rows, context.seed)
        metric = metric_of(model)
        before = quality(model, judged, model)

        def evaluate() -> dict[str, float]:
            learning_mode(module, False)
            found = {metric: quality(made, judged, made)}
            learning_mode(module, True, norms=self.what == "full")
            return found

        def loss(module: Any, batch: Batch) -> Tensor:
            assert batch.labels is not None
            return row_losses(made, module(**batch.inputs).logits, batch.labels).mean()

        learning_mode(module, True, norms=self.what == "full")
        with kept_zero(module.parameters() if self.keep_zeros else ()):
            report = train(
                module,
                gold_examples(made, rows),
                loss,
                self._training(context.seed),
                folder=context.folder / "training",
                on_progress=context.on_progress,
                evaluate=None if self.patience is None else evaluate,
            )
        learning_mode(module, False)
        module.requires_grad_(True)
        after = quality(made, judged, made)
        total = sum(each.numel() for each in module.parameters())
        told = (
            f"fine-tuned {self.what}: {count:,} of {total:,} parameters, {report.steps} steps, "
            f"{report.epochs:.2f} epochs; on {len(judged)} training rows set aside, {metric} "
            f"{before:.2%} before, {after:.2%} after"
        )
        notes = (told,) if report.note is None else (told, report.note)
        return replace(made, lineage=(*model.lineage, *notes))

    def ensures(self, before: Model, after: Model) -> None:
        kept = after.module.state_dict()
        free = set(kept) if self.what == "full" else learning_names(after, self.what)
        for name, tensor in before.module.state_dict().items():
            if tensor.shape != kept[name].shape or (
                name not in free and not tensor.is_meta and not tensor.equal(kept[name])
            ):
                raise RecipeError(f"finetune: changed {name}; this is a bug of edgekit")

    def _training(self, seed: int) -> Any:
        from edgekit.train import Training

        return Training(
            epochs=self.epochs,
            learning_rate=self.learning_rate or _RATES[self.what],
            batch=self.batch,
            gradient_accumulation=self.gradient_accumulation,
            precision=self.precision,
            patience=self.patience,
            max_minutes=self.max_minutes,
            seed=seed,
        )


def learning_names(model: Model, what: What) -> set[str]:
    """Names of the parameters that learn (rules 1 to 3); tied ones by all of their names."""
    module: Any = model.module
    named = dict(module.named_parameters(remove_duplicate=False))
    if what == "full":
        return set(named)
    inside = {id(each) for each in module.base_model.parameters()}
    chosen = {name for name, each in named.items() if id(each) not in inside}
    if what == "bias":
        return chosen | {name for name in named if name.rpartition(".")[2].endswith("bias")}
    assert model.architecture is not None
    head = model.architecture.task_head(module, model.task)
    if head is not None and head.hidden is not None:
        between = {id(each) for each in head.hidden.parameters()}
        chosen |= {name for name, each in named.items() if id(each) in between}
    return chosen


def choose_parameters(model: Model, what: What) -> int:
    """Let these parameters alone learn; how many numbers they are."""
    names = learning_names(model, what)
    for name, each in model.module.named_parameters(remove_duplicate=False):
        each.requires_grad_(name in names)
    return sum(each.numel() for each in model.module.parameters() if each.requires_grad)


def learning_mode(module: nn.Module, on: bool, *, norms: bool = False) -> None:
    """Dropout on or off; with ``norms`` those over batches learn their figures too (rule 5)."""
    from torch.nn.modules.batchnorm import _NormBase

    module.train(on)
    for part in module.modules():
        if isinstance(part, _NormBase) and not norms:
            part.eval()
