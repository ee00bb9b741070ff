"""Attention to the largest probabilities alone: how it runs, is saved and is loaded again.

Of a query's probabilities the ``top`` largest stay what they are, and the others become 0; the rest
is not scaled up for them (Nagarajan et al. 2020, arXiv 2010.03688). What is as large as the
smallest that stays, stays too. Texts of ``top`` tokens or fewer are as before.

``config.json`` names the attentions (see ``structure``) under ``hard_attention``, each with its
``top``. torch and transformers alone run them with these lines behind those of ``structure``:

    def hard(module, query, key, value, mask, **_):
        scores = query @ key.mT * query.shape[-1] ** -0.5
        weights = (scores if mask is None else scores + mask).softmax(-1)
        top = min(getattr(module, "hard_attention", weights.shape[-1]), weights.shape[-1])
        weights = weights * (weights >= weights.topk(top).values[..., -1:])
        return (weights @ value).transpose(1, 2), weights

    transformers.AttentionInterface.register("hard", hard)
    transformers.AttentionMaskInterface.register("hard", transformers.masking_utils.eager_mask)
    model.set_attn_implementation("hard")
    for name, top in config.edgekit["hard_attention"].items():
        model.get_submodule(name).hard_attention = top
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MARK = "hard_attention"
# How transformers' own forward finds ours, in its table of attention functions.
_NAME = "edgekit_hard"


def harden(module: Any, attention: nn.Module, top: int) -> None:
    """Let this attention of ``module``, as a ``Layer`` has it, count so many probabilities."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, eager_mask)
    module.config._attn_implementation = _NAME
    setattr(attention, _MARK, top)


def top_of(attention: nn.Module) -> int | None:
    """How many probabilities of a query count in this attention; ``None``: all."""
    found: int | None = getattr(attention, _MARK, None)
    return found


def describe(module: nn.Module) -> dict[str, int]:
    """What ``config.json`` says of them: by name, how many count."""
    return {name: top for name, part in module.named_modules() if (top := top_of(part))}


def largest(weights: Tensor, top: int) -> Tensor:
    """``weights`` [..., K], none below 0, with 0 for all but the ``top`` largest of each row."""
    # With so many zeros behind, there are that many whatever the length.
    least = torch.topk(F.pad(weights, (0, top)), top).values.amin(-1, keepdim=True)
    return weights * (weights >= least).to(weights.dtype)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """What transformers' eager attention does, and ``largest`` where it is asked for."""
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
    if (top := top_of(module)) is not None:
        weights = largest(weights, top)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights
