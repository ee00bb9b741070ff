"""Take heads and neurons out step by step, contrasting: Xu et al. 2022, CAP, arXiv 2112.07198.

From Dense to Sparse: Contrastive Pruning for Better Pre-trained Language Model Compression; the
structured form, CAP-f.

Rules:

1. The share that is gone rises by ``step`` to ``ratio``; at each share p, of the H heads of all
   layers floor(H p) are gone, and so for the neurons, of which what a layer keeps is a multiple
   of 8. Heads and neurons are ranked apart, each by its first-order importance divided by its
   layer's norm, over all layers (``pruning``, ``importance``); a layer keeps one of each at least.
   What goes is really taken out (``slicing``). A share at which nothing more goes is passed over.
2. After each the model learns for ``epochs``, all weights, from
   0.1 CE + 0.9 KL(original) + the sum over banks of their contrastive loss (``banks``).
3. The banks, which know what the model should not forget: of the encoder before it was fine-tuned
   (``pretrained``), or else of the model that came in; of the original, which is the model before
   the first step of the recipe; and, in one, of the model at the end of each earlier share. Two
   banks of the same model are one.
4. Learned from are the training rows but for the tenth that ``heldout`` sets aside.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, RecipeError
from edgekit.steps.gold import need_gold
from edgekit.steps.needs import need_float
from edgekit.steps.prune.banks import Bank, contrast, summaries, summary_states
from edgekit.steps.prune.importance import Part, importances
from edgekit.steps.prune.pruning import Amount, alike, widths_of
from edgekit.steps.prune.slicing import cut, everything, need_cuts

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.data import Rows
    from edgekit.examples import Batch, Examples
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context

_STEP = "prune-contrastive"
_MULTIPLES: dict[Part, int] = {"heads": 1, "neurons": 8}
_GOLD, _TAUGHT = 0.1, 0.9
_LEAST_STEP = 0.01


@dataclass(frozen=True)
class PruneContrastive:
    """Takes heads and neurons out a share at a time, and teaches the model in between.

    ratio: the share that goes in all; step: the share at a time. pretrained: the checkpoint that
    the model was fine-tuned from. supervised, unsupervised: weights of the contrastive losses.
    epochs, learning_rate, batch: of the training after each share; max_minutes: of all of them.
    """

    ratio: float = 0.5
    step: float = 0.1
    pretrained: Path | None = None
    supervised: float = 3.0
    unsupervised: float = 0.3
    epochs: float = 2.0
    learning_rate: float = 1e-4
    batch: int = 32
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        need_float(_STEP, model)
        need_cuts(_STEP, model, "heads", "neurons")
        if model.task != "text-classification" or model.problem != "single-label":
            raise RecipeError(
                f"{_STEP}: it contrasts texts of one label with those of others, which only "
                "single-label text classification has; use prune-heads and prune-ffn"
            )
        for name, share in (("ratio", self.ratio), ("step", self.step)):
            if not 0 < share < 1:
                raise RecipeError(f"{_STEP}: {name} is a share between 0 and 1, is {share:g}")
        for name, weight in (
            ("supervised", self.supervised),
            ("unsupervised", self.unsupervised),
        ):
            if not 0 <= weight < float("inf"):
                raise RecipeError(f"{_STEP}: {name} is a weight from 0 on, is {weight:g}")
        for name, value in (
            ("epochs", self.epochs),
            ("learning-rate", self.learning_rate),
            ("batch", self.batch),
            ("max-minutes", self.max_minutes),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise RecipeError(f"{_STEP}: {name} must be above 0, is {value:g}")
        if self.step < _LEAST_STEP:
            raise RecipeError(
                f"{_STEP}: step must be at least {_LEAST_STEP:g}, since the model learns anew "
                f"after each, is {self.step:g}"
            )
        for part, multiple in _MULTIPLES.items():
            _check_ratio(self.ratio, part, widths_of(model, part), multiple)
        need_gold(_STEP, model, context)
        self._pretrained(model, meta=True)

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            module = _without(model, self.ratio, model, None)
            return replace(model, module=module, sparsity=0.0)
        from edgekit.steps.distill.teaching import taught_examples
        from edgekit.steps.heldout import metric_of, quality, set_aside

        assert context.rows is not None and context.original is not None
        rows, judged = set_aside(context.rows, context.seed)
        folder = context.folder
        context.on_progress(0.0, "running the models of the banks on the training rows")
        examples = taught_examples(model, context.original, rows, folder, labels=True)
        assert examples.labels is not None
        known = self._known(model, context, rows)
        banks = [Bank.of([each], examples.labels) for each in known]
        snapshots: list[Array] = []
        made, notes = model, []
        shares = _stages(model, schedule(self.ratio, self.step))
        for number, share in enumerate(shares):
            # A copy, since what is not cut is shared with the model that came in.
            left = copy.deepcopy(_without(made, share, model, replace(context, rows=rows)))
            made = replace(made, module=left)
            cut_score = quality(made, judged, context.original)
            here = banks + ([Bank.of(snapshots, examples.labels)] if snapshots else [])
            told = self._learn(made, examples, here, context, number, len(shares))
            score = quality(made, judged, context.original)
            notes.append(
                f"{_STEP} at {share:.0%}: {_left(made)}; {told}; on {len(judged)} training rows "
                f"set aside, {metric_of(made)} {cut_score:.2%} before, {score:.2%} after"
            )
            if share != shares[-1]:
                path = folder / f"snapshot-{number}.npy"
                snapshots.append(summaries(made, examples.encoded, path))
        # What learns here fills zeros.
        return replace(made, lineage=(*model.lineage, *notes), sparsity=0.0)

    def ensures(self, before: Model, after: Model) -> None:
        for part, multiple in _MULTIPLES.items():
            gone = sum(widths_of(before, part)) - sum(widths_of(after, part))
            off = abs(_budget(before, part, self.ratio) - gone)
            if off > (multiple - 1) * len(widths_of(before, part)):
                raise RecipeError(f"{_STEP}: another number is left; this is a bug of edgekit")

    def _learn(
        self,
        made: Model,
        examples: Examples,
        banks: Sequence[Bank],
        context: Context,
        number: int,
        of: int,
    ) -> str:
        """Rule 2, in place; how it went."""
        from edgekit.model import export_forward
        from edgekit.train import Training, train

        assert context.folder is not None
        minutes = None if self.max_minutes is None else self.max_minutes / of
        report = train(
            export_forward(made, learning=True),
            examples,
            self._loss(banks),
            Training(
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                batch=self.batch,
                max_minutes=minutes,
                seed=context.seed,
            ),
            folder=context.folder / f"training-{number}",
            on_progress=lambda done, text: context.on_progress(
                (number + done) / of, f"share {number + 1} of {of}, {text}"
            ),
        )
        told = f"{report.steps} steps, {report.epochs:.2f} epochs"
        return told if report.note is None else f"{told} ({report.note})"

    def _loss(self, banks: Sequence[Bank]) -> Any:
        import torch.nn.functional as F

        from edgekit.steps.distill.losses import soft_cross_entropy

        def loss(module: Any, batch: Batch) -> Tensor:
            states, entire = summary_states(module, batch)
            answer = module.finish(module, entire, batch.mask)
            assert batch.labels is not None and batch.teacher is not None
            total: Tensor = _GOLD * F.cross_entropy(answer, batch.labels)
            total = total + _TAUGHT * soft_cross_entropy(answer, batch.teacher)
            for bank in banks:
                total = total + contrast(
                    states, batch.rows, bank, self.supervised, self.unsupervised
                )
            return total

        return loss

    def _known(self, model: Model, context: Context, rows: Rows) -> list[Array]:
        """The summaries by the models that were there before (rule 3), each model once."""
        from edgekit.workbench import encode

        assert context.folder is not None and context.original is not None
        before = self._pretrained(model) or model
        found = []
        for name, each in (("before", before), ("original", context.original)):
            if name == "before" and before.module is context.original.module:
                continue
            path = context.folder / f"{name}.npy"
            found.append(summaries(each, encode(each, rows), path))
        return found

    def _pretrained(self, model: Model, meta: bool = False) -> Model | None:
        """The encoder before it was fine-tuned. Raises RecipeError unless it can be compared."""
        from edgekit.model import identify, load_model

        if self.pretrained is None:
            return None
        if not self.pretrained.is_dir():
            raise RecipeError(f"{_STEP}: pretrained: {self.pretrained} is no checkpoint folder")
        try:
            source = identify(str(self.pretrained))
            found = load_model(source, task="sentence-embedding", meta=meta)
        except ModelError as error:
            raise RecipeError(f"{_STEP}: pretrained: {error}") from None
        if found.architecture is not model.architecture or _width(found) != _width(model):
            raise RecipeError(
                f"{_STEP}: pretrained: {self.pretrained} is of another family or width; give the "
                "checkpoint that the model was fine-tuned from"
            )
        return found


def schedule(ratio: float, step: float) -> tuple[float, ...]:
    """Rule 1: the shares that are gone after each pruning, rising to ``ratio``."""
    whole = [number * step for number in range(1, int(ratio / step + 1e-9) + 1)]
    shares = [round(share, 9) for share in whole if share < ratio - 1e-9]
    return (*shares, ratio)


def _stages(whole: Model, shares: Sequence[float]) -> list[float]:
    """The shares at which more is gone than at the one before: the others need no training."""
    found, gone = [], [0] * len(_MULTIPLES)
    for share in shares:
        now = [_budget(whole, part, share) // each for part, each in _MULTIPLES.items()]
        if now != gone:
            found.append(share)
        gone = now
    return found


def _without(made: Model, share: float, whole: Model, context: Context | None) -> Any:
    """The module of ``made`` without as many heads and neurons as are gone of ``whole`` at this
    share; without a context from shapes alone.
    """
    kept = everything(made)
    for part, multiple in _MULTIPLES.items():
        widths = widths_of(made, part)
        more = _budget(whole, part, share) - (sum(widths_of(whole, part)) - sum(widths))
        if more < multiple:
            continue
        found = alike(widths) if context is None else importances(made, context, part, "taylor")
        chosen = Amount(more, None, None, even=False, multiple=multiple).choose(found)
        kept = [replace(each, **{part: units}) for each, units in zip(kept, chosen, strict=True)]
    return cut(made, kept)


def _budget(whole: Model, part: Part, share: float) -> int:
    """How many heads or neurons are gone at this share (rule 1)."""
    return int(sum(widths_of(whole, part)) * share + 1e-9)


def _check_ratio(ratio: float, part: Part, widths: Sequence[int], multiple: int) -> None:
    total = sum(widths)
    least = sum(min(multiple, width) for width in widths)
    gone = int(total * ratio + 1e-9)
    if gone > total - least:
        raise RecipeError(
            f"{_STEP}: ratio {ratio:g} leaves {total - gone} of {total} {part}, and each layer "
            f"keeps {multiple}; give at most {(total - least) / total:.2f}"
        )
    if gone < multiple:
        raise RecipeError(f"{_STEP}: ratio {ratio:g} of {total} {part} rounds to nothing")


def _left(model: Model) -> str:
    parts = []
    for part in _MULTIPLES:
        widths = widths_of(model, part)
        parts.append(f"{sum(widths)} {part} left, by layer {' '.join(map(str, widths))}")
    return ", ".join(parts)


def _width(model: Model) -> int:
    described, module = model.architecture, model.module
    assert described is not None and described.layers is not None
    base: Any = module.base_model
    norm: Any = described.layers(base)[0].output_norm
    return int(norm.weight.shape[0])
