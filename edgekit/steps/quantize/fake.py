"""Rounding in training as the file will round: straight-through fake quantization.

Gradients pass through the rounding (Bengio et al. 2013, arXiv 1308.3432); a number beyond its
range has none, and moves the end of the range instead where ranges are learned.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.errors import ModelError
from edgekit.steps.quantize.grid import LARGEST, Grid, activation_grid, largest

Mode = Literal["off", "watch", "fake", "mark-onnx", "mark-tflite"]

# What a marked point's operator holds: this and the point's number.
MARK = 2**20
# How much faster the end of a range moves than a weight, as a share of itself.
_GAIN = 50.0


class Point(nn.Module):
    """One tensor that the file holds as integers (see ``points``).

    off: numbers pass. watch: they pass and ``watch`` sees them. fake: they are rounded to the
    grid. mark: they pass through an operator that tells a writer the point's number and that
    nothing joins with another. In TFLite a clamp, which no number is beyond; torch's ONNX optimizer
    joins clamps and ReLUs, so there a leaky ReLU, of a slope that no model has.
    """

    def __init__(self, number: int, fixed: tuple[float, float] | None, bits: int = 8) -> None:
        super().__init__()
        self.number, self.fixed, self.bits = number, fixed, bits
        self.mode: Mode = "off"
        self.scores = False
        self.most = float("inf")  # no number is above: a ReLU6's range never learns to end there
        self.watch: Any = None
        # The ends of the range: where they started, times one plus how far they have moved. An
        # optimizer moves every number alike, whatever the size of what it stands for.
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))
        self.low_move = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.high_move = nn.Parameter(torch.zeros(()), requires_grad=False)
        if fixed is not None:
            self.set_range(*fixed)

    @property
    def range(self) -> tuple[float, float]:
        low, high = self._ends()
        return float(low.detach()), float(high.detach())

    @property
    def grid(self) -> Grid:
        return activation_grid(*self.range, self.bits)

    def set_range(self, low: float, high: float) -> None:
        with torch.no_grad():
            self.low.fill_(low)
            self.high.fill_(high)
            self.low_move.zero_()
            self.high_move.zero_()

    def learn(self, learns: bool) -> None:
        """Whether the range learns in training; fixed ones and those of scores never do."""
        learns = learns and self.fixed is None and not self.scores
        self.low_move.requires_grad_(learns)
        self.high_move.requires_grad_(learns)

    def _ends(self) -> tuple[Tensor, Tensor]:
        high = self.high * (1 + _GAIN * self.high_move)
        return self.low * (1 + _GAIN * self.low_move), high.clamp(max=self.most)

    def forward(self, values: Tensor) -> Tensor:
        if self.mode == "watch":
            self.watch(self, values.detach())
        elif self.mode == "mark-tflite":
            return torch.clamp(values, -float(MARK + self.number), float(MARK + self.number))
        elif self.mode == "mark-onnx":
            return F.leaky_relu(values, float(MARK + self.number))
        elif self.mode == "fake":
            return self._rounded(values)
        return values

    def _rounded(self, values: Tensor) -> Tensor:
        try:
            grid = self.grid
        except ModelError:
            # Training has lost the range; a loss that is no number ends it.
            return values * float("nan")
        rounded: Tensor = _round(values, *self._ends(), grid)
        return rounded


class Weight(nn.Module):
    """A product's weight on its grid: a scale for each output channel (the first axis).

    bits: 8, or 4 or 2 for matrices. block: a scale for so many weights of a channel, of a matrix.

    A scale is that of ``grid``, amax / L. That of 2 bits is 1.5 times the mean magnitude: of the
    numbers -1, 0 and 1 times a scale, those are the nearest to normally distributed weights (as in
    ternary weight networks, Li et al. 2016, arXiv 1605.04711), and with amax most would be 0. Once
    rounded, both are the same: the largest magnitude is the scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mode: Mode = "off"
        self.bits = 8
        self.block: int | None = None

    def forward(self, weight: Tensor) -> Tensor:
        return self.rounded(weight) if self.mode == "fake" else weight

    def rounded(self, weight: Tensor) -> Tensor:
        """The weight as the file will have it."""
        if self.block is not None:
            outer, inner = weight.shape
            filled = F.pad(weight, (0, -inner % self.block)).reshape(outer, -1, self.block)
            return self._rounded(filled, (2,)).reshape(outer, -1)[:, :inner]
        return self._rounded(weight, tuple(range(1, weight.ndim)))

    def _rounded(self, weight: Tensor, axes: tuple[int, ...]) -> Tensor:
        size, top = weight.detach().abs(), largest(self.bits)
        extent = 1.5 * size.mean(axes, keepdim=True) if top == 1 else size.amax(axes, keepdim=True)
        rounded: Tensor = _snap(weight, _scale(extent, top), top)
        return rounded


class Table(nn.Module):
    """A table on its grid: one scale for all of it. ``rows``: those that were looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.mode: Mode = "off"

    def forward(self, rows: Tensor, table: Tensor | None = None) -> Tensor:
        if self.mode != "fake":
            return rows
        whole = (rows if table is None else table).detach()
        amax = torch.maximum(whole.max(), -whole.min())
        rounded: Tensor = _snap(rows, _scale(amax, LARGEST), LARGEST)
        return rounded


def _scale(extent: Tensor, top: int) -> Tensor:
    return torch.where(extent < 1e-30, 1.0, extent / top)


class _Snap(torch.autograd.Function):
    """Symmetric rounding of weights; the gradient is that of the weight itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, top: int) -> Tensor:
        return (weight / scale).round_().clamp_(-top, top).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None, None


class _Round(torch.autograd.Function):
    """Rounding of activations, with gradients for the ends of the range.

    The gradient of the scale is that of learned step sizes (Esser et al. 2020, LSQ, arXiv
    1902.08153): the rounding error inside the range, the end itself outside.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: Tensor, high: Tensor, grid: Grid) -> Tensor:
        rounded = torch.fake_quantize_per_tensor_affine(
            values, grid.scale, grid.zero, grid.lowest, grid.highest
        )
        ctx.save_for_backward(values, rounded)
        ctx.grid = grid
        return rounded

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        values, rounded = ctx.saved_tensors
        least, most = ctx.grid.range
        below, above = values < least, values > most
        inside = gradient.masked_fill(below | above, 0.0)
        low = high = None
        if ctx.needs_input_grad[1]:
            error = (inside * (rounded - values)).sum() / (most - least)
            low = gradient[below].sum() - error
            high = gradient[above].sum() + error
        return inside, low, high, None


# torch's typing does not know what a Function takes.
_snap: Any = _Snap.apply
_round: Any = _Round.apply
