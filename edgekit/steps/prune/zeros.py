"""Weights that are zero and stay zero while others learn: the lock on a pattern.

Zafrir et al. 2021, Prune Once For All, arXiv 2111.05754, section 3.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


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


def _without(zero: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * ~zero
