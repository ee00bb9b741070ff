"""How many units go and which: what pruning heads and pruning neurons have in common.

Rules:

1. ``count`` units go in all, or the share ``ratio`` of them (rounded down), or each whose
   importance, divided by its layer's Euclidean norm, is below ``threshold``.
2. ``even`` takes the same number, or share, from each layer. Otherwise all are ranked together by
   their importance divided by their layer's norm (Xu et al. 2022, arXiv 2112.07198).
3. What a layer keeps is rounded up to a multiple, and is at least one multiple. A layer whose
   width is no multiple may stay whole.
4. From shapes alone all units matter alike, so that the layers share evenly what goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.needs import need_float
from edgekit.steps.prune.importance import Importance, Part, importances, need_data
from edgekit.steps.prune.slicing import cut, everything, need_cuts, own_layers
from edgekit.steps.prune.zeros import as_sparse_as_it_is

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context


@dataclass(frozen=True)
class Amount:
    """How much goes (rules 1 to 3); one of count, ratio and threshold is set."""

    count: int | None
    ratio: float | None
    threshold: float | None
    even: bool
    multiple: int = 1

    def check(self, step: str, widths: Sequence[int]) -> None:
        """Raise RecipeError unless this can go from layers of these widths."""
        present = [width for width in widths if width]
        if [self.count, self.ratio, self.threshold].count(None) != 2:
            raise RecipeError(f"{step}: give one of count, ratio and threshold")
        if not present:
            raise RecipeError(f"{step}: no layer has any left; leave the step out")
        if self.multiple < 1:
            raise RecipeError(f"{step}: multiple must be at least 1, is {self.multiple}")
        if self.threshold is not None:
            if not 0 < self.threshold < 1:
                raise RecipeError(
                    f"{step}: threshold is a share of a layer's importance between 0 and 1, is "
                    f"{self.threshold:g}"
                )
            if self.even:
                raise RecipeError(
                    f"{step}: with threshold the outcome of each layer is its own; leave even out"
                )
            return
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise RecipeError(f"{step}: ratio is a share between 0 and 1, is {self.ratio:g}")
        most = sum(present) - self.multiple * len(present)
        if self.count is not None and not 1 <= self.count <= most:
            raise RecipeError(
                f"{step}: count must be from 1 to {most} of {sum(present)}, since each layer "
                f"keeps at least {self.multiple}; is {self.count}"
            )
        if self.even and self.count is not None and self.count % len(present):
            raise RecipeError(
                f"{step}: {self.count} cannot be taken evenly from {len(present)} layers; give a "
                f"count that {len(present)} divides, or leave even out"
            )
        if self.even and self.count is not None and self.count // len(present) >= min(present):
            raise RecipeError(
                f"{step}: {self.count // len(present)} cannot go from a layer of {min(present)}; "
                "give a smaller count, or leave even out"
            )
        if sum(map(len, self.choose(alike(widths)))) == sum(present):
            raise RecipeError(
                f"{step}: that rounds to nothing; give more, or a multiple below {self.multiple}"
            )

    def choose(self, importances: Sequence[Array]) -> list[list[int]]:
        """The units that each layer keeps, ascending; a layer without any keeps none."""
        scores = [each / (np.linalg.norm(each) or 1.0) for each in importances]
        orders = [np.argsort(-each, kind="stable") for each in scores]
        counts = self._counts([each[order] for each, order in zip(scores, orders, strict=True)])
        return [sorted(order[:count].tolist()) for order, count in zip(orders, counts, strict=True)]

    def _counts(self, falling: Sequence[Array]) -> list[int]:
        """How many units each layer keeps; its scores are given from the largest down."""
        widths = [len(each) for each in falling]
        if self.threshold is not None:
            return [
                self._rounded(int((each >= self.threshold).sum()), len(each)) for each in falling
            ]
        if self.even:
            present = sum(width > 0 for width in widths)
            return [
                self._rounded(w - (_share(self.ratio, w) or (self.count or 0) // present), w)
                for w in widths
            ]
        total = sum(widths)
        kept = total - (self.count or _share(self.ratio, total))
        blocks = [
            (-float(each[start : start + self.multiple].mean()), start, layer)
            for layer, each in enumerate(falling)
            for start in range(0, len(each), self.multiple)
        ]
        # The first block of each layer stays, whatever its rank.
        blocks.sort(key=lambda block: (block[1] > 0, block))
        counts = [0] * len(widths)
        for _, _, layer in blocks[: max(-(-kept // self.multiple), sum(w > 0 for w in widths))]:
            counts[layer] += self.multiple
        return [min(count, width) for count, width in zip(counts, widths, strict=True)]

    def blocks(self, widths: Sequence[int]) -> int:
        """How many multiples these widths hold, begun ones too."""
        return sum(-(-width // self.multiple) for width in widths)

    def _rounded(self, kept: int, width: int) -> int:
        return min(width, max(1, -(-kept // self.multiple)) * self.multiple)


def require(
    step: str, part: Part, amount: Amount, by: Importance, model: Model, context: Context
) -> None:
    """What both steps need. Raises RecipeError."""
    need_float(step, model)
    need_cuts(step, model, part)
    amount.check(step, widths_of(model, part))
    need_data(step, by, model, context)


def prune(
    step: str, part: Part, amount: Amount, by: Importance, model: Model, context: Context
) -> Model:
    """The model without its least important heads or neurons."""
    widths = widths_of(model, part)
    if context.folder is not None:
        found = importances(model, context, part, by)
    elif amount.threshold is None:
        found = alike(widths)
    else:
        return model  # not known from shapes
    chosen = amount.choose(found)
    left = [len(each) for each in chosen]
    if left == widths:
        return replace(model, lineage=(*model.lineage, f"{step}: none is below the threshold"))
    kept = [
        replace(each, **{part: units})
        for each, units in zip(everything(model), chosen, strict=True)
    ]
    split = ", ".join(map(str, left))
    note = f"{step} ({by}): kept {sum(left)} of {sum(widths)}, by layer {split}"
    return as_sparse_as_it_is(model.with_module(cut(model, kept), note))


def hold(step: str, part: Part, amount: Amount, before: Model, after: Model) -> None:
    """Raise RecipeError unless as many went as shapes alone say."""
    if amount.threshold is not None:
        return
    wanted = [len(each) for each in amount.choose(alike(widths_of(before, part)))]
    if amount.blocks(wanted) != amount.blocks(widths_of(after, part)):
        raise RecipeError(f"{step}: another number is left; this is a bug of edgekit")


def widths_of(model: Model, part: Part) -> list[int]:
    layers = own_layers(model)
    return [layer.heads if part == "heads" else layer.neurons for layer in layers]


def alike(widths: Sequence[int]) -> list[Array]:
    """Rule 4: importances that are the same in all layers of one width."""
    return [np.arange(width, 0, -1.0) for width in widths]


def _share(ratio: float | None, of: int) -> int:
    """The share rounded down; what is a whole number but for its last bit counts as whole."""
    return int((ratio or 0.0) * of + 1e-9)
