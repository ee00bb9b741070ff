"""Let layers share their weights, which are then stored once. Lan et al. 2019, ALBERT, arXiv
1909.11942, where a model is trained so; here the layers of a trained one are tied.

Rules:

1. The L layers fall into ``groups`` runs as ALBERT's do: layer i (from 0) is of the group
   floor(i groups / L), and all of a group become the group's first layer.
2. All layers still run: the model is smaller and not faster. Layers that were equal before give
   the same answers; others need training (``distill``), in which a group learns as one.
3. A checkpoint has one copy (``tied`` in ``structure``), and so has an exported file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError
from edgekit.steps.needs import family_of, need_float

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.step import Context


@dataclass(frozen=True)
class TieLayers:
    """Lets layers share one layer's weights; follow it with distill.

    groups: how many different layers are left.
    """

    groups: int = 1

    def requires(self, model: Model, context: Context) -> None:
        need_float("tie-layers", model)
        layers = _layers(model)
        different = len(set(map(id, layers)))
        if not 1 <= self.groups < different:
            raise RecipeError(
                f"tie-layers: groups must be from 1 to {different - 1} of {different} different "
                f"layers, is {self.groups}"
            )
        firsts = {id(layers[group]) for group in self._firsts(len(layers))}
        if len(firsts) != self.groups:
            raise RecipeError(
                f"tie-layers: of the layers that are tied already, {self.groups} runs would begin "
                f"with {len(firsts)} different ones; give fewer groups"
            )

    def apply(self, model: Model, context: Context) -> Model:
        from edgekit.structure import sharing_copy

        described = model.architecture
        assert described is not None and described.stack is not None
        changed: Any = sharing_copy(model.module)
        stack = described.stack(changed.base_model)
        depth = len(stack)
        firsts = self._firsts(depth)
        for layer, first in enumerate(firsts):
            stack[layer] = stack[first]
        runs = " and ".join(f"{firsts.count(first)}" for first in sorted(set(firsts)))
        note = f"tie-layers: {depth} layers, in runs of {runs}, run the first one's weights each"
        return model.with_module(changed, note)

    def _firsts(self, depth: int) -> list[int]:
        """Rule 1: of each layer, the first of its group."""
        groups = [layer * self.groups // depth for layer in range(depth)]
        return [groups.index(group) for group in groups]

    def ensures(self, before: Model, after: Model) -> None:
        layers = _layers(after)
        if len(layers) != len(_layers(before)) or len(set(map(id, layers))) != self.groups:
            raise RecipeError("tie-layers: another number of layers is left; a bug of edgekit")


def _layers(model: Model) -> list[Any]:
    """The layers as they run. Raises RecipeError where they cannot be tied."""
    described, module = model.architecture, model.module
    if described is None or described.layers is None or described.branches:
        raise RecipeError(
            f"tie-layers: {family_of(model)} has no stack of layers that is known here"
        )
    if described.stack is None:
        raise RecipeError(
            "tie-layers: this family's layers share their weights already; leave the step out"
        )
    return list(described.stack(module.base_model))
