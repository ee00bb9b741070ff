"""The int8 grid: which integers stand for which weights.

Training's fake quantization and the ONNX, TFLite and TorchScript writers all take their integers
from here, so that what was trained is what ships. Rules:

1. Symmetric: zero is the integer 0, and a weight is ``integer * scale``.
2. One scale a channel: scale = amax / 127, amax the channel's largest magnitude (float32).
3. Integers run from -127 to 127; -128 is not used, so that negation stays on the grid.
4. Round half to even.
5. A channel of zeros has scale 1; so has one that float32 cannot scale (amax below 1e-30).

onnxruntime and ai-edge-quantizer have the same grid; torchao's default divides by 127.5.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekit.errors import ModelError

LARGEST = 127
_NOTHING = 1e-30

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


def int8_scales(weight: Float32, axis: int = 0) -> Float32:
    """A scale for each channel: float32, 1-D, as long as ``weight`` is along ``axis``.

    Raises ModelError when a weight is NaN or infinite.
    """
    others = tuple(number for number in range(weight.ndim) if number != axis % weight.ndim)
    # The larger of both ends is the largest magnitude, without a copy of the weights.
    amax = np.maximum(weight.max(others, initial=0.0), -weight.min(others, initial=0.0))
    if not np.isfinite(amax).all():
        raise ModelError("a weight holds NaN or infinity and has no int8 grid; mend the checkpoint")
    return np.where(amax < _NOTHING, 1, amax / LARGEST).astype(np.float32)


def quantize_int8(weight: Float32, axis: int = 0) -> tuple[Int8, Float32]:
    """Integers of ``weight``'s shape, and their scales (see ``int8_scales``)."""
    scales = int8_scales(weight, axis)
    steps = weight / _along(scales, weight.ndim, axis)
    np.rint(steps, out=steps)
    np.clip(steps, -LARGEST, LARGEST, out=steps)
    return steps.astype(np.int8), scales


def dequantize_int8(integers: Int8, scales: Float32, axis: int = 0) -> Float32:
    """The weights that the integers stand for, float32."""
    return integers.astype(np.float32) * _along(scales, integers.ndim, axis)


def _along(scales: Float32, ndim: int, axis: int) -> Float32:
    """``scales`` shaped to multiply an array of ``ndim`` dimensions along ``axis``."""
    shape = [1] * ndim
    shape[axis] = -1
    return scales.reshape(shape)


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
        return -(2 ** (self.bits - 1))

    @property
    def highest(self) -> int:
        return 2 ** (self.bits - 1) - 1

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
    return np.clip(steps, grid.lowest, grid.highest).astype(np.int32)
