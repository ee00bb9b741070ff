"""Even out the channels of activations before static int8, without changing an answer.

One int8 scale serves all channels of an activation, so that a channel far larger than the others
takes their precision. A product's weight has a scale for each output, and has room.

Xiao, Lin, Seznec, Wu, Demouth, Han. SmoothQuant. arXiv 2211.10438.

Rules:

1. Channel j of an activation X is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), and
   column j of the weights W that read it is multiplied by s_j. X is seen on ``rows`` training rows.
2. The division is folded into what gives X, which must be linear in each channel and read by no
   other than W. So it is with

   - the values of attention, which ``attention_output`` reads through sums of rows;
   - what ``up`` gives, where the activation between ``up`` and ``down`` is a ReLU;
   - norms that stand before the parts of a layer (``Architecture.norm_first``: ViT).

3. A query meets its key alone: channel j of one is divided by s_j and of the other multiplied, with
   the key for W. With alpha one half both end at the same largest value.
4. Norms behind the parts of a layer, as BERT's, are left: the sum around the next part reads them
   as well, and what they were divided by would be missing there. A GELU is not linear either.
5. A layer that runs several times is smoothed once, by what all of its runs give.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.architectures import Layer
    from edgekit.model import Model
    from edgekit.preprocess import Encoded
    from edgekit.step import Context

_BATCH = 8


@dataclass(frozen=True)
class SmoothActivations:
    """Evens out the channels of activations before static int8; the answers stay the same.

    alpha: how much of the difference between channels goes from the activations to the weights.
    rows: how many training rows are looked at.
    """

    alpha: float = 0.5
    rows: int = 512

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.quantize.static import require_layers, require_rows

        require_layers("smooth-activations", model)
        require_rows("smooth-activations", model, context)
        if not 0 <= self.alpha <= 1:
            raise RecipeError(f"smooth-activations: alpha is from 0 to 1, is {self.alpha:g}")
        if self.rows < 32:
            raise RecipeError(f"smooth-activations: rows must be at least 32, is {self.rows}")

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            return model
        from edgekit.steps.quantize.calibrate import draw

        made = replace(model, module=copy.deepcopy(model.module))
        places = smoothable(made)
        largest = _largest(made, draw(made, context, self.rows), places)
        uneven = [_unevenness(peaks) for peaks in largest]
        factors = [place.smooth(peaks, self.alpha) for place, peaks in zip(places, largest)]
        evened = [_unevenness(p / f) for p, f in zip(largest, factors)]
        note = (
            f"smoothed {len(places)} activations: their largest channel was {_mean(uneven):.1f} "
            f"times the mean channel, is {_mean(evened):.1f} times"
        )
        return replace(made, lineage=(*model.lineage, note))

    def ensures(self, before: Model, after: Model) -> None:
        shapes = [[p.shape for p in model.module.parameters()] for model in (before, after)]
        if shapes[0] != shapes[1]:
            raise RecipeError("smooth-activations: changed a shape; this is a bug of edgekit")


@dataclass(frozen=True)
class Place:
    """An activation that can be smoothed: given by ``giver``, read by ``takers`` alone.

    partner: the key of a query, which is multiplied instead of the columns of takers. rectified:
    a ReLU stands between.
    """

    giver: nn.Module
    takers: tuple[Any, ...] = ()
    partner: nn.Module | None = None
    rectified: bool = False

    def watched(self) -> Iterator[nn.Module]:
        yield self.giver
        if self.partner is not None:
            yield self.partner

    def smooth(self, peaks: Tensor, alpha: float) -> Tensor:
        """Fold rule 1's factors [channels] in, and return them.

        peaks: the largest magnitude of each channel, [channels], and of the partner's behind them.
        """
        import torch

        if self.partner is not None:
            given, met = peaks.chunk(2)
        else:
            given = peaks
            weights = [taker.weight.detach() for taker in self.takers]
            met = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
        # A channel that is always zero, or that nobody weighs, stays as it is.
        dead = (given < 1e-12) | (met < 1e-12)
        factor = torch.where(dead, 1.0, given**alpha / met.clamp_min(1e-12) ** (1 - alpha))
        with torch.no_grad():
            _scale_outputs(self.giver, 1 / factor)
            if self.partner is not None:
                _scale_outputs(self.partner, factor)
                return torch.cat([factor, 1 / factor])
            for taker in self.takers:
                taker.weight.mul_(factor)
        return factor


def smoothable(model: Model) -> list[Place]:
    """The activations of rules 2 and 3."""
    from torch import nn

    assert model.architecture is not None and model.architecture.layers is not None
    places = []
    for layer in _once(model.architecture.layers(model.module.base_model)):
        if layer.heads:
            places.append(Place(layer.value, (layer.attention_output,)))
            places.append(Place(layer.query, partner=layer.key))
        if layer.neurons and isinstance(layer.activation, nn.ReLU):
            places.append(Place(layer.up, (layer.down,), rectified=True))
        if model.architecture.norm_first:
            if layer.heads:
                places.append(Place(layer.attention_norm, (layer.query, layer.key, layer.value)))
            if layer.neurons:
                places.append(Place(layer.output_norm, (layer.up,)))
    return places


def _once(layers: Sequence[Layer]) -> list[Layer]:
    """Rule 5: each layer once, however often it runs."""
    return list({id(layer.query): layer for layer in layers}.values())


def _largest(model: Model, encoded: Encoded, places: Sequence[Place]) -> list[Tensor]:
    """The largest magnitude of each channel of each place, the partner's behind the giver's."""
    import torch

    from edgekit.model import export_forward
    from edgekit.steps.quantize.static import pieces

    seen: dict[tuple[int, bool], Tensor] = {}
    hooks = []

    def watch(module: nn.Module, rectified: bool) -> None:
        key = id(module), rectified

        def see(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            values = output.clamp_min(0) if rectified else output.abs()
            new = values.flatten(0, -2).amax(0)
            seen[key] = torch.maximum(seen[key], new) if key in seen else new

        hooks.append(module.register_forward_hook(see))

    for place in places:
        for module in place.watched():
            watch(module, place.rectified)
    forward = export_forward(model)
    try:
        with torch.no_grad():
            for inputs in pieces(model, encoded, _BATCH):
                forward(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [torch.cat([seen[id(m), each.rectified] for m in each.watched()]) for each in places]


def _scale_outputs(module: Any, factor: Tensor) -> None:
    """Multiply what a linear layer or a norm gives, in place."""
    rows = module.weight
    rows.mul_(factor.reshape(-1, *(1,) * (rows.ndim - 1)))
    if module.bias is not None:
        module.bias.mul_(factor)


def _unevenness(peaks: Tensor) -> float:
    """How many times the mean channel the largest one is."""
    return float(peaks.max() / peaks.mean().clamp_min(1e-12))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
