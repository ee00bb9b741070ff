"""The weight grids: which integers stand for which weights.

Training's fake quantization and the ONNX, TFLite and TorchScript writers all take their integers
from here, so that what was trained is what ships. Rules:

1. Symmetric: zero is the integer 0, and a weight is ``integer * scale``.
2. Integers of b bits run from -L to L, L = 2**(b - 1) - 1: ±127 in 8 bits, ±7 in 4, ±1 in 2. The
   one below is not used, so that negation stays on the grid.
3. One scale a channel: scale = amax / L, amax the channel's largest magnitude (float32). Or one
   for each block of a channel: so many of its weights, one after the other; the last may be short.
4. Round half to even.
5. A channel (or block) of zeros has scale 1; so has one that float32 cannot scale (amax below
   1e-30).

onnxruntime and ai-edge-quantizer have the same grid; torchao's default divides by 127.5.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ModelError

LARGEST = 127  # in 8 bits
_NOTHING = 1e-30

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


def largest(bits: int) -> int:
    """The largest integer of a grid of so many bits."""
    return int(2 ** (bits - 1) - 1)


def weight_scales(
    weight: Float32, bits: int = 8, axis: int = 0, block: int | None = None
) -> Float32:
    """A scale for each channel along ``axis``: float32, 1-D; or [channels, blocks].

    ``block`` is for matrices. Raises ModelError when a weight is NaN or infinite.
    """
    if block is not None:
        cut = _blocks(weight, axis, block)
        return weight_scales(cut.reshape(-1, block), bits).reshape(cut.shape[:2])
    others = tuple(number for number in range(weight.ndim) if number != axis % weight.ndim)
    # The larger of both ends is the largest magnitude, without a copy of the weights.
    amax = np.maximum(weight.max(others, initial=0.0), -weight.min(others, initial=0.0))
    if not np.isfinite(amax).all():
        raise ModelError(
            f"a weight holds NaN or infinity and has no int{bits} grid; mend the checkpoint"
        )
    return np.where(amax < _NOTHING, 1, amax / largest(bits)).astype(np.float32)


def quantize(
    weight: Float32, bits: int = 8, axis: int = 0, block: int | None = None
) -> tuple[Int8, Float32]:
    """Integers of ``weight``'s shape, and their scales (see ``weight_scales``)."""
    scales = weight_scales(weight, bits, axis, block)
    return to_integers(weight, scales, bits, axis, block), scales


def to_integers(
    weight: Float32, scales: Float32, bits: int = 8, axis: int = 0, block: int | None = None
) -> Int8:
    """The nearest integers; what is beyond the grid takes its ends."""
    steps = weight / _along(scales, weight.shape, axis, block)
    np.rint(steps, out=steps)
    np.clip(steps, -largest(bits), largest(bits), out=steps)
    return steps.astype(np.int8)


def dequantize(integers: Int8, scales: Float32, axis: int = 0, block: int | None = None) -> Float32:
    """The weights that the integers stand for, float32."""
    return integers.astype(np.float32) * _along(scales, integers.shape, axis, block)


def fitted_scales(weight: Float32, bits: int) -> Float32:
    """Scales [rows] of a matrix's rows that clip what costs more than it is worth.

    ``weight_scales`` times what of 1.00, 0.98 … 0.70 has the least squared error (Banner et al.
    2019, arXiv 1810.05723).
    """
    full = weight_scales(weight, bits)
    factors = np.arange(100, 68, -2, dtype=np.float32) / 100
    errors = []
    for factor in factors:
        rounded = dequantize(to_integers(weight, full * factor, bits), full * factor)
        errors.append(np.square(weight - rounded).sum(1))
    fitted: Float32 = full * factors[np.argmin(errors, axis=0)]
    return fitted


def int8_scales(weight: Float32, axis: int = 0) -> Float32:
    """``weight_scales`` of 8 bits."""
    return weight_scales(weight, 8, axis)


def quantize_int8(weight: Float32, axis: int = 0) -> tuple[Int8, Float32]:
    """``quantize`` to 8 bits."""
    return quantize(weight, 8, axis)


def dequantize_int8(integers: Int8, scales: Float32, axis: int = 0) -> Float32:
    """``dequantize``, a scale a channel."""
    return dequantize(integers, scales, axis)


def _blocks(weight: Float32, axis: int, block: int) -> Float32:
    """A matrix cut into [channels, blocks, block], filled up with zeros."""
    rows = np.moveaxis(weight, axis, 0)
    channels, inputs = rows.shape
    count = -(-inputs // block)
    filled = np.zeros((channels, count * block), np.float32)
    filled[:, :inputs] = rows
    return filled.reshape(channels, count, block)


def _along(scales: Float32, shape: tuple[int, ...], axis: int, block: int | None) -> Float32:
    """``scales`` shaped to multiply an array of ``shape``."""
    if block is not None:
        inputs = shape[1 - axis % 2]
        return np.moveaxis(np.repeat(scales, block, axis=1)[:, :inputs], 0, axis)
    ones = [1] * len(shape)
    ones[axis] = -1
    return scales.reshape(ones)


@dataclass(frozen=True)
class Grid:
    """The integers of an activation: a value is ``(integer - zero) * scale``.

    Integers run from -2^(bits-1) to 2^(bits-1) - 1, all of them. A uint8 file holds the same
    integers plus 128.
    """

    scale: float
    zero: int
    bits: int = 8

    @property
    def lowest(self) -> int:
        return int(-(2 ** (self.bits - 1)))

    @property
    def highest(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that it holds."""
        return (self.lowest - self.zero) * self.scale, (self.highest - self.zero) * self.scale


def activation_grid(low: float, high: float, bits: int = 8) -> Grid:
    """The grid of numbers from ``low`` to ``high`` (Jacob et al. 2018, arXiv 1712.05877).

    8 bits: affine; the range is widened to hold zero, and zero is one of its integers. 16 bits:
    symmetric with zero 0, as TFLite's 16x8 kernels ask. Raises ModelError when the range is
    empty, infinite or NaN.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if not (math.isfinite(low) and math.isfinite(high)) or high - low < _NOTHING:
        raise ModelError(f"a range from {low:g} to {high:g} has no grid; calibrate on other texts")
    if bits == 16:
        return Grid(float(np.float32(max(-low, high) / 32767)), 0, bits)
    steps = 2**bits - 1
    scale = float(np.float32((high - low) / steps))
    zero = round(-(2 ** (bits - 1)) - low / scale)
    return Grid(scale, min(max(zero, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1), bits)


def quantize_activation(values: Float32, grid: Grid) -> npt.NDArray[np.int32]:
    """Integers of ``values``; what is beyond the grid takes its ends."""
    steps = np.rint(values / np.float32(grid.scale)) + grid.zero
    integers: npt.NDArray[np.int32] = np.clip(steps, grid.lowest, grid.highest).astype(np.int32)
    return integers
