"""Vectors of length 1, and a classifier that reads them: how it runs, is saved and loaded again.

``config.json`` names such a classifier (see ``structure``) under ``unit_length``. torch and
transformers alone run it with these lines behind those of ``structure``:

    for name in config.edgekit["unit_length"]:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, read: (torch.nn.functional.normalize(read[0], dim=-1),)
        )
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def at_unit_length(vectors: Tensor) -> Tensor:
    """``vectors`` [..., K], each divided by its Euclidean norm; zeros stay zeros."""
    squares = (vectors * vectors).sum(-1, keepdim=True)
    return vectors * torch.rsqrt(squares.clamp_min(1e-24))


class UnitLength(nn.Linear):
    """A Linear of its input at length 1."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(at_unit_length(input))


def install(module: Any, name: str) -> None:
    """Let the Linear of that name in ``module`` read its input at length 1."""
    linear: nn.Linear = module.get_submodule(name)
    made = UnitLength(linear.in_features, linear.out_features, device="meta")
    made.weight, made.bias = linear.weight, linear.bias
    module.set_submodule(name, made.train(linear.training))


def describe(module: nn.Module) -> list[str]:
    """What ``config.json`` says of them: their names."""
    return [name for name, part in module.named_modules() if isinstance(part, UnitLength)]
