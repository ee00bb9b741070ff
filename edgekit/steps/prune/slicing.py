"""Heads and neurons taken out of a model: rows and columns of its real weights.

Rules:

1. A head is its rows of query, key and value and its columns of the attention's output; a neuron
   is its row of ``up`` and its column of ``down``. What stays is as it was, in order.
2. Layers that share their weights (ALBERT) are one layer here, in the order of their first run.
3. A layer without heads has no attention: its output is what came in, and the output's bias goes
   too. The same holds for a feed-forward network without neurons. The norm behind it stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from torch import nn

    from edgekit.architectures import Layer
    from edgekit.model import Model

_NAMES = {"heads": "attention heads", "neurons": "feed-forward neurons"}


@dataclass(frozen=True)
class Kept:
    """What stays of a layer, ascending."""

    heads: Sequence[int]
    neurons: Sequence[int]


def need_cuts(step: str, model: Model, *parts: str) -> None:
    """These parts can be taken out of this family exactly. Raises RecipeError."""
    from edgekit.steps.needs import need_encoder

    described = need_encoder(step, model)
    for part in parts:
        if part not in described.cuts:
            kind = getattr(model.module.config, "model_type", "this family")
            raise RecipeError(
                f"{step}: the {_NAMES[part]} of {kind} cannot be taken out exactly, since other "
                "parts of its layers are made for all of them; leave the step out"
            )


def own_layers(model: Model, module: Any = None) -> list[Layer]:
    """The layers with weights of their own (rule 2), of the model or of a copy of its module."""
    described = model.architecture
    assert described is not None and described.layers is not None
    encoder: Any = (model.module if module is None else module).base_model
    found = {id(layer.up): layer for layer in reversed(described.layers(encoder))}
    return list(found.values())[::-1]


def everything(model: Model) -> list[Kept]:
    """All heads and neurons of each layer."""
    return [Kept(range(layer.heads), range(layer.neurons)) for layer in own_layers(model)]


def cut(model: Model, kept: Sequence[Kept]) -> Any:
    """A copy of the module with these heads and neurons only, for each of ``own_layers``.

    What is not cut is shared with the original.
    """
    from edgekit.structure import sharing_copy

    changed = sharing_copy(model.module)
    for layer, stays in zip(own_layers(model, changed), kept, strict=True):
        if len(stays.heads) < layer.heads:
            inner = (layer.query, layer.key, layer.value)
            _cut(changed, inner, layer.attention_output, stays.heads, layer.head_width)
        if len(stays.neurons) < layer.neurons:
            _cut(changed, (layer.up,), layer.down, stays.neurons, 1)
    return changed


def _cut(
    module: Any, inner: Sequence[nn.Module], outer: nn.Module, kept: Sequence[int], width: int
) -> None:
    """Keep these units: ``width`` rows each of ``inner``, and as many columns of ``outer``."""
    from edgekit.structure import absent_part, place

    if not len(kept):
        for name in _names(module, (*inner, outer)):
            module.set_submodule(name, absent_part())
        return
    places = [unit * width + offset for unit in kept for offset in range(width)]
    for part in inner:
        for name, tensor in list(part.named_parameters()):
            place(part, name, tensor.detach()[places])
    weight: Any = outer.weight
    place(outer, "weight", weight.detach()[:, places])


def _names(module: Any, parts: Sequence[nn.Module]) -> Iterator[str]:
    wanted = {id(part) for part in parts}
    named = list(module.named_modules(remove_duplicate=False))
    return (name for name, part in named if id(part) in wanted)
