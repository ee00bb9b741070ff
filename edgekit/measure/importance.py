"""How much each layer, head and neuron of a text model matters, by every score that there is.

A score is one line of ``SCORES``. Its numbers compare within a score only, and larger ones matter
more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context
    from edgekit.steps.prune.importance import Importance as Score

Part = Literal["layers", "heads", "neurons"]
# Rows of units by name, as from one layer: float64 [units].
Units = dict[str, "Array"]


@dataclass(frozen=True)
class Importance:
    """The numbers of one score; a row is a layer, or what the classifier reads.

    People count layers, heads and neurons from 1.
    """

    part: Part
    score: str
    meaning: str
    rows: Units

    def to_json(self) -> dict[str, Any]:
        rows = {name: values.tolist() for name, values in self.rows.items()}
        return {
            "part": self.part,
            "score": self.score,
            "meaning": self.meaning,
            "rows": rows,
        }


def importances(model: Model, context: Context) -> Iterator[Importance | str]:
    """Every score in turn; or why the model or its data have none, as a sentence."""
    for part, score, meaning, of in SCORES:
        try:
            yield Importance(part, score, meaning, of(model, context))
        except RecipeError as error:
            yield f"no {score} of {part}: {error}"


def _contributions(model: Model, context: Context) -> Units:
    from edgekit.steps.needs import need_rows
    from edgekit.steps.prune.drop_layers import contributions, depth_of

    depth_of(model)
    need_rows("contribution", context)
    return _by_layer([np.array([1 - cosine]) for cosine in contributions(model, context)])


def _units(part: Literal["heads", "neurons"], by: Score) -> Callable[[Model, Context], Units]:
    """What prune-heads and prune-ffn rank by."""

    def of(model: Model, context: Context) -> Units:
        from edgekit.steps.prune.importance import importances, need_data
        from edgekit.steps.prune.slicing import need_cuts

        need_cuts(by, model, part)
        need_data(by, by, model, context)
        found = importances(model, context, part, by)
        if not any(map(len, found)):
            raise RecipeError(f"{by}: no layer has any left")
        return _by_layer(found)

    return of


def _probed(model: Model, context: Context) -> Units:
    from edgekit.steps.needs import need_encoder, need_labels, need_rows
    from edgekit.steps.probe import fit_probe, gold, representation, z_scored
    from edgekit.workbench import encode

    need_rows("probe", context)
    need_labels("probe", context)
    head = need_encoder("probe", model).task_head(model.module, model.task)
    if head is None:
        raise RecipeError("probe: this model has no classifier")
    assert context.rows is not None
    encoded = encode(model, context.rows)
    states, labels = representation(model, encoded), gold(model, context.rows, encoded)
    probe = fit_probe(z_scored(states), labels, len(head.classifier.weight), context.seed)
    size = np.abs(probe.weight)
    # A class that no neuron tells of has no weights.
    return {"classifier": (size / size.sum(1, keepdims=True).clip(1e-300)).max(0)}


def _by_layer(values: list[Array]) -> Units:
    return {f"layer {number}": each for number, each in enumerate(values, 1)}


SCORES: tuple[tuple[Part, str, str, Callable[[Model, Context], Units]], ...] = (
    (
        "layers",
        "contribution",
        "1 - cosine of the summary token's state before and after",
        _contributions,
    ),
    ("heads", "taylor", "first-order change of the loss without it", _units("heads", "taylor")),
    ("heads", "magnitude", "norm of its columns times its rows", _units("heads", "magnitude")),
    ("heads", "activation", "mean length of what it adds", _units("heads", "activation")),
    ("neurons", "taylor", "first-order change of the loss without it", _units("neurons", "taylor")),
    ("neurons", "magnitude", "norm of its column times its row", _units("neurons", "magnitude")),
    ("neurons", "activation", "mean length of what it adds", _units("neurons", "activation")),
    ("neurons", "probe", "largest share of a class's weights in a linear probe", _probed),
)
