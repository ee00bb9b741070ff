"""Take attention heads out: Michel et al. 2019, arXiv 1905.10650, as real rows and columns.

Rules:

1. How many and which heads: ``pruning``. How much a head matters: ``importance``. Every layer
   keeps one at least.
2. The rows of query, key and value and the columns of the attention's output go (``slicing``), so
   that the answers are those of the model with these heads' outputs set to zero.
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
class PruneHeads:
    """Takes the least important attention heads out; follow it with distill.

    ratio: the share of all heads that goes. count: or how many, of all layers together.
    threshold: or the importance, as a share of its layer's norm, below which a head goes.
    importance: by the loss, the weights, or what a head adds. even: as many from each layer.
    """

    ratio: float | None = None
    count: int | None = None
    threshold: float | None = None
    importance: Importance = "taylor"
    even: bool = False

    def requires(self, model: Model, context: Context) -> None:
        require("prune-heads", "heads", self._amount, self.importance, model, context)

    def apply(self, model: Model, context: Context) -> Model:
        return prune("prune-heads", "heads", self._amount, self.importance, model, context)

    def ensures(self, before: Model, after: Model) -> None:
        hold("prune-heads", "heads", self._amount, before, after)

    @property
    def _amount(self) -> Amount:
        return Amount(self.count, self.ratio, self.threshold, self.even)
