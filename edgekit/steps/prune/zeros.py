"""Weights that are zero: which matrices have them, how many, and a lock on them while others learn.

Zafrir et al. 2021, Prune Once For All, arXiv 2111.05754, section 3.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.model import Model

_PARTS = ("query", "key", "value", "attention_output", "up", "down")


@contextlib.contextmanager
def kept_zero(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, what is zero in a matrix has no gradient: AdamW leaves it where it is.

    Vectors learn: a bias that is zero is hardly ever zero by choice.
    """
    hooks = [
        weight.register_hook(_without(weight.detach() == 0))
        for weight in weights
        if weight.ndim >= 2 and weight.requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def matrices(model: Model) -> dict[str, nn.Parameter]:
    """The matrices of the encoder's layers by their names in the module, shared ones once."""
    from torch import nn

    assert model.architecture is not None and model.architecture.layers is not None
    module: Any = model.module
    inside = {
        id(linear.weight)
        for layer in model.architecture.layers(module.base_model)
        for part in _PARTS
        for linear in getattr(layer, part).modules()
        if isinstance(linear, nn.Linear)
    }
    return {name: each for name, each in module.named_parameters() if id(each) in inside}


def as_sparse_as_it_is(model: Model) -> Model:
    """The model with the share of zeros that its matrices have now, where it was made sparse."""
    weights = list(matrices(model).values()) if model.sparsity else []
    if not weights or any(weight.is_meta for weight in weights):
        return model
    shares = [float((weight == 0).double().mean()) for weight in weights]
    return replace(model, sparsity=min(model.sparsity, *shares))


def _without(zero: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * ~zero
