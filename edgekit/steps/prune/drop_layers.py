"""Leave whole layers out. Sajjad et al. 2020, Poor Man's BERT, arXiv 2004.03844.

Layers are numbered from 1 as in the paper; L of them, K dropped.

Rules:

1. ``top`` drops the last K, ``bottom`` the first K.
2. ``even`` and ``odd`` drop layers of even and of odd numbers, from the top down, at most L / 2.
3. ``symmetric`` keeps X layers at the bottom and X at the top, 2 X + K = L: an odd rest is an
   error, and is not rounded.
4. ``contribution`` drops each layer that hardly changes the summary token's state: the mean
   cosine of what goes in and what comes out, over training rows, is above ``threshold``. How many
   go is an outcome. The summary token is the first, in XLNet the last.
5. With ``within``, K is the largest (searched from 1 up, to the first that fails) whose loss of
   the metric stays in that limit, on training rows set aside (``heldout``); each K is judged
   after ``recovery_epochs`` of distillation. The model itself is dropped, not yet recovered.
6. What stays is byte for byte as it was, in order; embeddings and head stay. Where all layers
   share their weights (ALBERT) dropping K means K fewer runs of them: faster, not smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.needs import family_of, need_float, need_rows

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context

Strategy = Literal["top", "bottom", "even", "odd", "symmetric", "contribution"]

# Rows that a contribution is the mean of.
_ROWS = 512


@dataclass(frozen=True)
class DropLayers:
    """Leaves whole layers out; follow it with distill.

    strategy: which layers go. count: how many. threshold: for contribution, the mean cosine above
    which a layer goes. within: instead of count, the largest loss of the metric, such as 0.01;
    recovery_epochs: how long each count is distilled before it is judged by that.
    """

    strategy: Strategy = "top"
    count: int | None = None
    threshold: float = 0.95
    within: float | None = None
    recovery_epochs: float = 0.0

    def requires(self, model: Model, context: Context) -> None:
        need_float("drop-layers", model)
        depth = depth_of(model)
        if self.strategy == "contribution":
            if self.count is not None or self.within is not None:
                raise RecipeError(
                    "drop-layers: how many layers go is an outcome of contribution; leave count "
                    "and within out, or choose another strategy"
                )
            if not 0 < self.threshold < 1:
                raise RecipeError(
                    f"drop-layers: threshold is a cosine between 0 and 1, is {self.threshold:g}"
                )
            need_rows("drop-layers", context)
            return
        if (self.count is None) == (self.within is None):
            raise RecipeError(
                f"drop-layers: give either count (of {depth} layers) or within, the largest loss"
            )
        if self.count is not None:
            kept_layers(self.strategy, depth, self.count)
            return
        if not 0 <= (self.within or 0) < 1 or not 0 <= self.recovery_epochs < math.inf:
            raise RecipeError(
                "drop-layers: within is a share from 0 to 1, and recovery-epochs a number from 0 on"
            )
        need_rows("drop-layers", context)

    def apply(self, model: Model, context: Context) -> Model:
        depth = depth_of(model)
        found = ""
        if self.count is not None:
            kept = kept_layers(self.strategy, depth, self.count)
        elif context.folder is None:
            return model  # not known from shapes
        elif self.strategy == "contribution":
            cosines = contributions(model, context)
            kept = [layer for layer, cosine in enumerate(cosines) if cosine <= self.threshold]
            found = "; cosines " + ", ".join(f"{cosine:.3f}" for cosine in cosines)
            if not kept:
                raise RecipeError(
                    f"drop-layers: every layer's cosine is above {self.threshold:g}, the least is "
                    f"{min(cosines):.4f}; raise the threshold"
                )
        else:
            kept, found = self._search(model, context)
        if len(kept) == depth:
            return replace(model, lineage=(*model.lineage, f"drop-layers: none dropped{found}"))
        dropped = ", ".join(str(n + 1) for n in range(depth) if n not in kept)
        note = f"drop-layers ({self.strategy}): dropped {dropped} of {depth}{found}"
        return model.with_module(keep_layers(model, kept), note)

    def ensures(self, before: Model, after: Model) -> None:
        if self.count is not None and depth_of(before) - depth_of(after) != self.count:
            raise RecipeError("drop-layers: another number of layers is left; a bug of edgekit")

    def _search(self, model: Model, context: Context) -> tuple[list[int], str]:
        """Rule 5."""
        from edgekit.steps.heldout import quality, set_aside

        assert context.rows is not None and context.folder is not None
        assert self.within is not None and context.original is not None
        _, judged = set_aside(context.rows, context.seed)
        depth = depth_of(model)
        best, whole = list(range(depth)), quality(model, judged, context.original)
        told = [f"whole {whole:.2%}"]
        for count in _possible(self.strategy, depth):
            kept = kept_layers(self.strategy, depth, count)
            context.on_progress(count / depth, f"trying without {count} layers")
            tried = model.with_module(keep_layers(model, kept), "")
            score = quality(self._recovered(tried, context, count), judged, context.original)
            told.append(f"{count} dropped {score:.2%}")
            if whole - score > self.within:
                break
            best = kept
        return best, "; " + ", ".join(told)

    def _recovered(self, tried: Model, context: Context, count: int) -> Model:
        from edgekit.steps.distill.distill import Distill

        if not self.recovery_epochs:
            return tried
        assert context.folder is not None
        folder = context.folder / f"without-{count}"
        folder.mkdir(exist_ok=True)
        step = Distill(epochs=self.recovery_epochs)
        step.requires(tried, context)
        return step.apply(tried, replace(context, folder=folder))


def kept_layers(strategy: str, depth: int, count: int) -> list[int]:
    """Layers that stay when ``count`` of ``depth`` go (rules 1 to 3), from 0, ascending.

    Raises RecipeError for a count that the strategy cannot drop.
    """
    if not 1 <= count < depth:
        raise RecipeError(
            f"drop-layers: count must be from 1 to {depth - 1} of {depth} layers, is {count}"
        )
    if strategy == "top":
        gone = set(range(depth - count, depth))
    elif strategy == "bottom":
        gone = set(range(count))
    elif strategy == "symmetric":
        if (depth - count) % 2:
            raise RecipeError(
                f"drop-layers: symmetric keeps as many layers at the bottom as at the top, and "
                f"{depth} - {count} is odd; drop "
                + " or ".join(map(str, _possible(strategy, depth)))
            )
        rest = (depth - count) // 2
        gone = set(range(rest, depth - rest))
    else:
        if count > depth // 2:
            raise RecipeError(
                f"drop-layers: {strategy} drops at most {depth // 2} of {depth} layers, not {count}"
            )
        first = 1 if strategy == "even" else 0
        gone = set(list(range(first, depth, 2))[::-1][:count])
    return [layer for layer in range(depth) if layer not in gone]


def _possible(strategy: str, depth: int) -> list[int]:
    if strategy == "symmetric":
        return [count for count in range(1, depth) if (depth - count) % 2 == 0]
    return list(range(1, depth if strategy in ("top", "bottom") else depth // 2 + 1))


def depth_of(model: Model) -> int:
    """How many layers run. Raises RecipeError where layers are not known."""
    described, module = model.architecture, _module(model)
    if described is None or described.branches or described.layers is None:
        raise RecipeError(
            f"drop-layers: {family_of(model)} has no stack of layers that is known here"
        )
    if described.stack is not None:
        return len(described.stack(module.base_model))
    layers = described.layers(module.base_model)
    if len({id(layer.query) for layer in layers}) > 1:
        raise RecipeError(
            "drop-layers: its layers are of several groups that share weights; leave the step out"
        )
    return len(layers)


def keep_layers(model: Model, kept: Sequence[int]) -> Any:
    """A copy of the module with these layers only; it shares its weights with the original."""
    from torch import nn

    from edgekit.structure import sharing_copy

    described = model.architecture
    assert described is not None
    changed = sharing_copy(_module(model))
    if described.stack is not None:
        stack = described.stack(changed.base_model)
        chosen = [stack[layer] for layer in kept]
        del stack[:]
        stack.extend(nn.ModuleList(chosen))
    changed.config.num_hidden_layers = len(kept)
    return changed


def contributions(model: Model, context: Context) -> list[float]:
    """Rule 4: of each layer, the mean cosine between the summary token's state before and after."""
    from edgekit.steps.quantize.calibrate import draw

    encoded = draw(model, context, _ROWS)
    cosines = [_cosines(model, encoded, row) for row in range(len(encoded))]
    return [float(each) for each in np.mean(cosines, axis=0)]


def _cosines(model: Model, encoded: Any, row: int) -> Array:
    """[L] for one row, without padding."""
    import torch

    length = None if encoded.lengths is None else int(encoded.lengths[row])
    inputs = {
        name: torch.from_numpy(array[row : row + 1, :length] if length else array[row : row + 1])
        for name, array in encoded.arrays.items()
    }
    inputs = {name: t.long() if length else t for name, t in inputs.items()}
    module = _module(model)
    with torch.inference_mode():
        states = module.base_model(**inputs, output_hidden_states=True).hidden_states
    assert model.architecture is not None
    summary = [state[0, model.architecture.summary].double() for state in states]
    each = torch.stack(summary)
    found: Array = torch.nn.functional.cosine_similarity(each[:-1], each[1:]).numpy()
    return found


def _module(model: Model) -> Any:
    return model.module
