"""Take neurons out of the feed-forward networks, as real rows and columns.

Rules:

1. How many and which neurons: ``pruning``. How much a neuron matters: ``importance``. What a layer
   keeps is a multiple of 8, which kernels want, unless ``multiple`` says otherwise.
2. The rows of ``up`` and the columns of ``down`` go (``slicing``), so that the answers are those of
   the model with these neurons' outputs set to zero.
3. A layer that runs several times (ALBERT) counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.steps.prune.importance import Importance
from edgekit.steps.prune.pruning import Amount, hold, prune, require

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.step import Context


@dataclass(frozen=True)
class PruneFfn:
    """Takes the least important feed-forward neurons out; follow it with distill.

    ratio: the share of all neurons that goes. count: or how many, of all layers together.
    threshold: or the importance, as a share of its layer's norm, below which a neuron goes.
    importance: by the loss, the weights, or what a neuron adds. even: as many from each layer.
    multiple: what each layer keeps is rounded up to one.
    """

    ratio: float | None = None
    count: int | None = None
    threshold: float | None = None
    importance: Importance = "taylor"
    even: bool = False
    multiple: int = 8

    def requires(self, model: Model, context: Context) -> None:
        require("prune-ffn", "neurons", self._amount, self.importance, model, context)

    def apply(self, model: Model, context: Context) -> Model:
        return prune("prune-ffn", "neurons", self._amount, self.importance, model, context)

    def ensures(self, before: Model, after: Model) -> None:
        hold("prune-ffn", "neurons", self._amount, before, after)

    @property
    def _amount(self) -> Amount:
        return Amount(self.count, self.ratio, self.threshold, self.even, self.multiple)
