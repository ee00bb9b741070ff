"""Take out what the model is better without: AxFormer, Nagarajan et al. 2020, arXiv 2010.03688.

Rules:

1. A tenth of the training rows (at most 512) is set aside (``heldout``); eval rows are never
   looked at. Each change is judged by the loss of gold labels on them; no weight learns.
2. A change is kept if the mean loss is below the least one so far, and if more than half of the
   rows (rounded down) have a loss that is not above the one they had before the first change.
3. With ``hard_attention`` (the paper: 30), first each layer from the first to the last: its
   attention to that many largest probabilities of a query alone (see ``edgekit.hard_attention``).
4. Layers from the last to the first; in each, first the whole feed-forward network. If that is
   refused, and its loss was below 1.1 times the least, then each of its groups of neurons, from
   the first. Then the whole attention, and under the same condition each of its heads.
5. A block that goes takes its output's bias with it: what is left is the norm of what came in.
   The last group and the last head of a block are no change of their own: rule 4 tried that.
6. ``tolerance``, which the paper has not, is for what a step that learns wins back: a loss counts
   as not above another while it is above it by less than that share of the mean loss at first.
   It is for what goes, not for rule 3, which saves nothing.
7. What goes is really taken out (``slicing``). Layers that share their weights are one.
8. Each change that was tried is in the lineage, with its loss, its rows and what became of it:
   ``read_trace`` reads it back.

Rows that the checkpoint was trained on flatter it, and hardly anything seems better without: give
rows that it has not seen where there are any.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from edgekit.errors import RecipeError
from edgekit.events import OnProgress, unwatched
from edgekit.steps.gold import need_gold
from edgekit.steps.needs import ENOUGH, family_of, need_float
from edgekit.steps.prune.importance import Part
from edgekit.steps.prune.slicing import Kept, cut, everything, need_cuts, own_layers
from edgekit.steps.prune.zeros import as_sparse_as_it_is
from edgekit.structure import sharing_copy

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.examples import Batch, Examples
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context

# The parts of a block are tried unless its loss was above the least by this factor.
_GATE = 1.1
_BATCH = 64

Change = Literal["heads", "neurons", "probabilities"]


@dataclass(frozen=True)
class PruneAccuracyDriven:
    """Takes out blocks, heads and groups of neurons without which the model is more accurate.

    groups: in how many groups a feed-forward network's neurons are tried. tolerance: how much
    worse it may become, as a share of the loss. hard_attention: how many of a query's largest
    probabilities an attention counts that is better so; for texts of more tokens.
    """

    groups: int = 12
    tolerance: float = 0.0
    hard_attention: int | None = None

    def requires(self, model: Model, context: Context) -> None:
        need_float("prune-accuracy-driven", model)
        need_cuts("prune-accuracy-driven", model, "heads", "neurons")
        if not model.architecture or not model.architecture.reads_text:
            raise RecipeError(
                f"prune-accuracy-driven: {family_of(model)} reads no text, and only models of "
                "text are known to it"
            )
        narrowest = min((layer.neurons for layer in own_layers(model) if layer.neurons), default=1)
        if not 1 <= self.groups <= narrowest:
            raise RecipeError(
                f"prune-accuracy-driven: groups must be from 1 to the {narrowest} neurons of the "
                f"narrowest layer, is {self.groups}"
            )
        if not 0 <= self.tolerance < 1:
            raise RecipeError(
                f"prune-accuracy-driven: tolerance must be from 0 to below 1, is {self.tolerance:g}"
            )
        longest = getattr(model.preprocessor, "max_length", 2)
        if self.hard_attention is not None and not 1 <= self.hard_attention < longest:
            raise RecipeError(
                "prune-accuracy-driven: hard-attention must be from 1 to below the "
                f"{longest} tokens of the longest text, is {self.hard_attention}"
            )
        # A tenth of them has to be enough.
        need_gold("prune-accuracy-driven", model, context, 10 * ENOUGH)

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            return model  # what goes is not known from shapes
        from edgekit.steps.gold import gold_examples
        from edgekit.steps.heldout import set_aside

        assert context.rows is not None
        _, judged = set_aside(context.rows, context.seed)
        examples = gold_examples(model, judged)
        hardened, kept, trace = search(
            model, examples, self.groups, self.tolerance, self.hard_attention, context.on_progress
        )
        before = everything(model)
        gone = [
            f"{sum(len(getattr(e, p)) for e in before) - sum(len(getattr(e, p)) for e in kept)}"
            f" of {sum(len(getattr(each, p)) for each in before)} {p}"
            for p in ("heads", "neurons")
        ]
        notes = [f"prune-accuracy-driven: took out {' and '.join(gone)}", *write_trace(trace)]
        if self.hard_attention is not None:
            count = sum(each.accepted for each in trace if each.part == "probabilities")
            notes[0] += (
                f"; {count} of {len(before)} layers count the {self.hard_attention} largest "
                "probabilities of a query"
            )
        made = replace(hardened, lineage=(*model.lineage, *notes))
        if kept == before:
            return made
        return as_sparse_as_it_is(replace(made, module=cut(hardened, kept)))

    def ensures(self, before: Model, after: Model) -> None:
        for was, now in zip(own_layers(before), own_layers(after), strict=True):
            if now.heads > was.heads or now.neurons > was.neurons:
                raise RecipeError("prune-accuracy-driven: a layer grew; this is a bug of edgekit")


@dataclass(frozen=True)
class Tried:
    """One change: a layer's heads or neurons as first numbered, from ``first`` to ``last``, or
    how many probabilities it counts; the layer from 1. loss: the mean with that change. as_good:
    how many rows have no larger loss than before the first change (rule 6).
    """

    layer: int
    part: Change
    first: int
    last: int
    loss: float
    as_good: int
    accepted: bool


def search(
    model: Model,
    examples: Examples,
    groups: int,
    tolerance: float = 0.0,
    hard_attention: int | None = None,
    on_progress: OnProgress = unwatched,
) -> tuple[Model, list[Kept], list[Tried]]:
    """The model after rule 3, what stays of each of its layers by rules 2 to 6, and every change
    that was tried, in order.
    """
    run = _Search(model, examples, tolerance)
    depth = len(run.kept)
    if hard_attention is not None:
        for layer in range(depth):
            on_progress(0.0, f"hard attention in layer {layer + 1}, loss {run.least:.4f}")
            run.enter(layer)
            run.harden(layer, hard_attention)
    for layer in reversed(range(depth)):
        run.enter(layer)
        on_progress(1 - (layer + 1) / depth, f"layer {layer + 1}, loss {run.least:.4f}")
        neurons = list(run.kept[layer].neurons)
        run.block(layer, "neurons", [list(map(int, g)) for g in np.array_split(neurons, groups)])
        run.block(layer, "heads", [[head] for head in run.kept[layer].heads])
    return run.model, run.kept, run.trace


@dataclass
class _Search:
    """The state of a search. Only the layers from the changed one on run again.

    model: with the hard attentions of rule 3, and nothing taken out.
    """

    model: Model
    examples: Examples
    tolerance: float
    trace: list[Tried] = field(default_factory=list)

    def __post_init__(self) -> None:
        from edgekit.examples import Batch, collate

        lengths = self.examples.encoded.lengths
        assert lengths is not None
        order = np.argsort(lengths, kind="stable")
        self.batches: list[Batch] = []
        for start in range(0, len(order), _BATCH):
            fields: Any = collate(self.examples, order[start : start + _BATCH])
            self.batches.append(Batch(**fields))
        self.kept = everything(self.model)
        self.enter(0)
        self.baseline = self._losses(self.model)
        self.least = float(self.baseline.mean())

    def enter(self, layer: int) -> None:
        """Work out the states that reach the first run of this layer."""
        import torch

        forward = _forward(self.model)
        runs = [id(each.up) for each in forward.encoder.layers]
        self.start = runs.index(id(own_layers(self.model)[layer].up))
        self.entered: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            for batch in self.batches:
                states, bias = _enter(forward, batch)
                for index in range(self.start):
                    states = forward.encoder.run(index, states, bias)
                self.entered.append((states, bias))

    def harden(self, layer: int, top: int) -> None:
        """Rule 3, for one layer, unless it counts no more already."""
        from edgekit.hard_attention import harden, top_of

        attempt = replace(self.model, module=sharing_copy(self.model.module))
        attention = own_layers(attempt)[layer].attention
        assert attention is not None  # of a family that can lose heads and neurons
        now = top_of(attention)
        if not self.kept[layer].heads or (now is not None and now <= top):
            return
        harden(attempt.module, attention, top)
        if self._judge(attempt, 0.0, layer, "probabilities", top, top):
            self.model = attempt

    def block(self, layer: int, part: Part, groups: Sequence[Sequence[int]]) -> None:
        """Rule 4, for one of the layer's two blocks."""
        units = [unit for group in groups for unit in group]
        if not units:
            return
        before = self.least
        if self._try(layer, part, units) or self.trace[-1].loss >= _GATE * before:
            return
        for group in groups:
            if len(group) < len(getattr(self.kept[layer], part)):
                self._try(layer, part, group)

    def _try(self, layer: int, part: Part, units: Sequence[int]) -> bool:
        """Take these out, if rules 2 and 6 let them go."""
        stays = [each for each in getattr(self.kept[layer], part) if each not in set(units)]
        kept = list(self.kept)
        kept[layer] = replace(kept[layer], **{part: stays})
        attempt = replace(self.model, module=cut(self.model, kept))
        accepted = self._judge(attempt, self.tolerance, layer, part, units[0], units[-1])
        if accepted:
            self.kept = kept
        return accepted

    def _judge(
        self, attempt: Model, tolerance: float, layer: int, part: Change, first: int, last: int
    ) -> bool:
        """Rules 2 and 6, written down."""
        losses = self._losses(attempt)
        allowed = tolerance * float(self.baseline.mean())
        loss, as_good = float(losses.mean()), int((losses <= self.baseline + allowed).sum())
        accepted = loss < self.least + allowed and as_good > len(losses) // 2
        self.trace.append(Tried(layer + 1, part, first, last, loss, as_good, accepted))
        if accepted:
            self.least = min(self.least, loss)
        return accepted

    def _losses(self, model: Model) -> Array:
        """Of each row, float64 [N], in the batches' order; ``entered`` has what is below."""
        import torch

        from edgekit.steps.gold import row_losses

        forward = _forward(model)
        found = []
        with torch.inference_mode():
            for batch, (states, bias) in zip(self.batches, self.entered, strict=True):
                for index in range(self.start, len(forward.encoder.layers)):
                    states = forward.encoder.run(index, states, bias)
                answer = forward.finish(forward, states, batch.mask)
                assert batch.labels is not None
                found.append(row_losses(model, answer, batch.labels).double().numpy())
        losses: Array = np.concatenate(found)
        return losses


def _forward(model: Model) -> Any:
    from edgekit.model import export_forward

    return export_forward(model)


def _enter(forward: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    inputs = batch.inputs
    found: tuple[Tensor, Tensor] = forward.encoder.enter(
        inputs["input_ids"], inputs["attention_mask"], inputs.get("token_type_ids")
    )
    return found


def write_trace(trace: Sequence[Tried]) -> list[str]:
    """A sentence for each layer that was turned to, in the order in which they were."""
    sentences = []
    for layer, tries in itertools.groupby(trace, key=lambda each: each.layer):
        told = []
        for each in tries:
            units = f"{each.first}" if each.first == each.last else f"{each.first}-{each.last}"
            end = " accepted" if each.accepted else ""
            told.append(f"{each.part} {units} {each.loss:.6f} ({each.as_good}){end}")
        sentences.append(f"tried in layer {layer}: {'; '.join(told)}")
    return sentences


def read_trace(lineage: Sequence[str]) -> list[Tried]:
    """Every change that was tried, in order, from a model's lineage; losses have six digits."""
    found = []
    for sentence in lineage:
        opening = re.match(r"tried in layer (\d+): ", sentence)
        for each in re.finditer(
            r"(heads|neurons|probabilities) (\d+)(?:-(\d+))? ([\d.]+) \((\d+)\)( accepted)?",
            sentence if opening else "",
        ):
            part, first, last, loss, as_good, accepted = each.groups()
            assert opening is not None
            found.append(
                Tried(
                    int(opening[1]),
                    cast(Change, part),
                    int(first),
                    int(last or first),
                    float(loss),
                    int(as_good),
                    accepted is not None,
                )
            )
    return found
