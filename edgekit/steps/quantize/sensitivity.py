"""Which layers lose most in integers, and which of them stay float so that the rest holds.

Rules:

1. Layers are those of ``points``. What one loses: it alone works in integers; the mean squared
   difference from the answers where none does, as a share of their variance. Weights and tables
   are on their grids throughout.
2. The layers that stay float are one block, one behind the other: each of its ends costs a
   conversion, and a runtime that hands integers to an accelerator hands them over twice.
3. The smallest block whose answers hold is taken, down to none, and never all layers. Of all blocks
   of a size the one is tried whose layers lose most together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import ModelError
from edgekit.units import format_percent

if TYPE_CHECKING:
    from edgekit.events import OnProgress
    from edgekit.measure.accuracy import LabelIds
    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded
    from edgekit.steps.quantize.points import Traced

_EXACT = 1e-9  # one row of 50 is 2 %, whatever float64 says


@dataclass(frozen=True)
class Scan:
    """losses: of each layer by rule 1, in the order in which they run. float_layers: the block.

    loss: what the judge says of the answers with that block.
    """

    losses: Mapping[str, float]
    float_layers: tuple[str, ...]
    loss: float

    def text(self) -> str:
        """One sentence for the lineage."""
        ranked = sorted(self.losses.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {format_percent(loss)}" for name, loss in ranked)
        kept = ", ".join(self.float_layers) or "none"
        return (
            f"error that each layer in int8 adds alone: {listed}; kept float: {kept}; lost on "
            f"training rows held out: {format_percent(self.loss)}"
        )


def scan_layers(
    found: Traced,
    model: Model,
    encoded: Encoded,
    judge: Callable[[Array], float],
    limit: float,
    on_progress: OnProgress,
) -> Scan:
    """Choose the layers that stay float.

    found: traced from ``model``, with its ranges. judge: of answers (as ``fake_outputs`` gives
    them), what they lose; at most ``limit`` is right. Raises ModelError when no block is enough.
    """
    from edgekit.steps.quantize.static import outputs_of

    def answers(float_layers: Sequence[str]) -> Array:
        found.round_without(float_layers)
        return outputs_of(found, model, encoded)

    layers = found.layers
    tries = 1 + len(layers)
    reference = answers(layers)
    variance = max(float(reference.var(0).mean()), 1e-12)
    losses = {}
    for number, layer in enumerate(layers):
        on_progress(number / tries, f"rounding {layer} alone")
        others = [other for other in layers if other != layer]
        error = answers(others) - reference
        losses[layer] = float((error * error).mean()) / variance
        on_progress((number + 1) / tries, f"{layer} adds {format_percent(losses[layer])} of error")
    for size in range(len(layers)):
        block = worst_block(losses, size)
        on_progress(1.0, f"trying {', '.join(block) or 'no layer'} in float")
        loss = judge(answers(block))
        if loss <= limit + _EXACT:
            return Scan(losses, block, loss)
    raise ModelError(
        f"with {size} of {len(layers)} layers in float the answers still lose "
        f"{format_percent(loss)}, more than the accuracy-drop of {format_percent(limit)}; train on "
        "the grid (quantize-aware-train), or choose --scheme int8-dynamic"
    )


def worst_block(losses: Mapping[str, float], size: int) -> tuple[str, ...]:
    """The ``size`` layers in a row that lose most together."""
    names, each = list(losses), list(losses.values())
    starts = range(len(names) - size + 1)
    best = max(starts, key=lambda start: sum(each[start : start + size]))
    return tuple(names[best : best + size])


def drop_in(model: Model, encoded: Encoded, labels: LabelIds | None) -> Callable[[Array], float]:
    """What answers lose of the task's metric against the model's own; without labels, how many
    differ. The model is in float, as it came.
    """
    from edgekit.measure import accuracy
    from edgekit.measure.expected import per_answer
    from edgekit.model import reference_outputs

    reference = reference_outputs(model, encoded)

    if labels is None:
        expected = per_answer(reference, encoded)
        return lambda outputs: (
            1
            - accuracy.agreement(per_answer(outputs, encoded), expected, model.task, model.problem)
        )

    def score(outputs: Array) -> float:
        scores = accuracy.score(
            outputs,
            labels,
            task=model.task,
            problem=model.problem,
            labels=model.labels,
            encoded=encoded,
        )
        return scores[accuracy.primary_metric(model.task, model.problem)]

    best = score(reference)
    return lambda outputs: best - score(outputs)
