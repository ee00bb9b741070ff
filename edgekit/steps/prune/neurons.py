"""Keep the neurons that the classifier needs. Durrani et al. 2022, arXiv 2206.13288.

Rules:

1. Neurons are those that the classifier reads: the outputs of the layer between the encoder's
   summary state and the logits (BERT's pooler). There slicing is exact: a row of that layer and
   a column of the classifier. Before the last norm it would not be, since the norm mixes all.
2. They are ordered by a probe (``probe``, rules 1 to 4) on the training rows; with ``redundant``,
   one of each cluster of correlated neurons stays in the order.
3. ``count`` of them stay, from the top. With ``within`` it is the smallest number, in sixteenths
   of all, whose classifier loses at most that much of the metric of all neurons' classifier, on
   training rows set aside.
4. The narrower classifier is fitted anew to the training labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.needs import need_float, need_labels, need_rows

if TYPE_CHECKING:
    from edgekit.architectures import Head
    from edgekit.model import Model
    from edgekit.step import Context

_PARTS = 16


@dataclass(frozen=True)
class PruneNeurons:
    """Keeps the neurons before the classifier that a linear probe relies on, and refits it.

    count: how many stay. within: instead of count, the largest loss of the metric, such as 0.01.
    redundant: neurons whose 1 - |correlation| is below this count as one; 0 leaves all.
    """

    count: int | None = None
    within: float | None = None
    redundant: float = 0.0

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.postprocess import need_plain

        need_float("prune-neurons", model)
        head, hidden = _head(model)
        need_plain("prune-neurons", head)
        width = hidden.weight.shape[0]
        if (self.count is None) == (self.within is None):
            raise RecipeError(
                f"prune-neurons: give either count (of {width} neurons) or within, the largest loss"
            )
        if self.count is not None and not 1 <= self.count <= width:
            raise RecipeError(
                f"prune-neurons: count must be from 1 to {width} neurons, is {self.count}"
            )
        if not 0 <= (self.within or 0) < 1 or not 0 <= self.redundant < 1:
            raise RecipeError("prune-neurons: within and redundant are shares from 0 to 1")
        need_rows("prune-neurons", context)
        need_labels("prune-neurons", context)

    def apply(self, model: Model, context: Context) -> Model:
        width = _head(model)[1].weight.shape[0]
        if context.folder is None:
            # Which neurons stay does not matter for shapes; how many may not be known.
            return replace(model, module=slice_neurons(model, range(self.count or width)))
        from edgekit.steps.heldout import metric_of, quality, set_aside
        from edgekit.steps.probe import (
            fit_classifier,
            fit_probe,
            gold,
            neuron_order,
            representation,
            without_redundant,
            z_scored,
        )
        from edgekit.workbench import encode

        assert context.rows is not None
        rows, judged = set_aside(context.rows, context.seed)
        encoded = encode(model, rows)
        states, labels = representation(model, encoded), gold(model, rows, encoded)
        classes = len(_head(model)[0].classifier.weight)
        order = neuron_order(fit_probe(z_scored(states), labels, classes, context.seed).weight)
        if self.redundant:
            different = without_redundant(states, order, self.redundant)
            # What is redundant is behind, for a count that those that are not do not fill.
            rest = order[:0] if self.count is None else np.setdiff1d(order, different)
            order = np.concatenate([different, order[np.isin(order, rest)]]).astype(int)

        def narrowed(count: int) -> Model:
            from edgekit.steps.postprocess import fold, z_score

            kept = np.sort(order[:count])
            map_ = z_score(states[:, kept])
            fitted = fit_classifier(map_.of(states[:, kept]), labels, classes)
            module = slice_neurons(model, kept.tolist())
            changed = model.with_module(module, "")
            fold(map_, fitted, _head(changed)[0].classifier)
            return changed

        whole = quality(narrowed(len(order)), judged, model)
        counts = [min(self.count, len(order))] if self.count else _counts(len(order))
        for count in counts:
            context.on_progress(count / len(order), f"trying {count} neurons")
            made = narrowed(count)
            score = quality(made, judged, model)
            if self.within is not None and whole - score <= self.within:
                break
        note = (
            f"prune-neurons: kept {count} of {width}; {metric_of(model)} on {len(judged)} training "
            f"rows set aside {quality(model, judged, model):.2%} before, {whole:.2%} with a "
            f"classifier fitted to {len(order)} neurons, {score:.2%} to {count}"
        )
        return model.with_module(made.module, note)

    def ensures(self, before: Model, after: Model) -> None:
        head, hidden = _head(after)
        if hidden.weight.shape[0] != head.classifier.weight.shape[1]:
            raise RecipeError("prune-neurons: the classifier reads other neurons; a bug of edgekit")
        if self.count is not None and hidden.weight.shape[0] != self.count:
            raise RecipeError("prune-neurons: another number of neurons is left; a bug of edgekit")


def slice_neurons(model: Model, kept: Any) -> Any:
    """A copy of the module that has only these neurons before its classifier; rule 1."""
    from torch import nn

    from edgekit.structure import sharing_copy

    chosen = list(kept)
    changed = sharing_copy(model.module)
    head, hidden = _head(replace(model, module=changed))
    hidden.weight = nn.Parameter(hidden.weight.detach()[chosen])
    if hidden.bias is not None:
        hidden.bias = nn.Parameter(hidden.bias.detach()[chosen])
    hidden.out_features = len(chosen)
    head.classifier.weight = nn.Parameter(head.classifier.weight.detach()[:, chosen])
    head.classifier.in_features = len(chosen)
    return changed


def _head(model: Model) -> tuple[Head, Any]:
    """The head and its hidden layer. Raises RecipeError where slicing would not be exact."""
    described = model.architecture
    head = None if described is None else described.task_head(model.module, model.task)
    if head is None:
        raise RecipeError("prune-neurons: this model has no classifier of texts; leave it out")
    if head.hidden is None:
        raise RecipeError(
            "prune-neurons: its classifier reads the encoder's own states, which the last norm "
            "mixes, so that no neuron can go exactly; leave it out, or use prune-ffn"
        )
    return head, head.hidden


def _counts(most: int) -> list[int]:
    """Sixteenths of all, ascending."""
    return sorted({max(1, round(most * part / _PARTS)) for part in range(1, _PARTS + 1)})
