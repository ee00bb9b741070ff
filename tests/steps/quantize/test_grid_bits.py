"""The grid in fewer bits and in blocks: properties that the writers rely on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgekit.errors import ModelError
from edgekit.steps.quantize.grid import (
    dequantize,
    largest,
    quantize,
    quantize_int8,
    weight_scales,
)

Case = tuple[np.ndarray, int, int, int | None]

finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
matrices = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=finite)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A matrix, bits, the axis of its channels, and a block (or none)."""
    block = draw(st.none() | st.integers(1, 9))
    return draw(matrices), draw(st.sampled_from([8, 4, 2])), draw(st.integers(-2, 1)), block


@given(cases())
def test_weights_on_the_grid_keep_their_integers(case: Case) -> None:
    weight, bits, axis, block = case
    integers, scales = quantize(weight, bits, axis, block)
    again, _ = quantize(dequantize(integers, scales, axis, block), bits, axis, block)
    np.testing.assert_array_equal(again, integers)


@given(cases())
def test_integers_are_in_range_and_scales_have_their_shape(case: Case) -> None:
    weight, bits, axis, block = case
    integers, scales = quantize(weight, bits, axis, block)
    channels, inputs = weight.shape[axis], weight.shape[1 - axis % 2]
    assert integers.shape == weight.shape and integers.dtype == np.int8
    assert np.abs(integers.astype(int)).max(initial=0) <= largest(bits) == 2 ** (bits - 1) - 1
    blocks = () if block is None else (-(-inputs // block),)
    assert scales.shape == (channels, *blocks) and scales.dtype == np.float32
    assert (scales > 0).all()


@given(cases())
def test_a_weight_comes_back_within_half_a_scale(case: Case) -> None:
    weight, bits, axis, block = case
    integers, scales = quantize(weight, bits, axis, block)
    error = np.abs(dequantize(integers, scales, axis, block).astype(np.float64) - weight)
    unit = dequantize(np.ones_like(integers), scales, axis, block).astype(np.float64)
    # Half a scale, and the rounding of float32 at the far end of the channel.
    assert (error <= np.maximum(unit * (0.5 + largest(bits) * 1e-6), 1e-30)).all()


@given(cases())
def test_a_block_is_a_channel_of_its_own(case: Case) -> None:
    weight, bits, axis, block = case
    block = block or 4
    integers, scales = quantize(weight, bits, axis, block)
    rows, whole = np.moveaxis(weight, axis, 0), np.moveaxis(integers, axis, 0)
    for number, start in enumerate(range(0, rows.shape[1], block)):
        part = np.ascontiguousarray(rows[:, start : start + block])
        alone, scale = quantize(part, bits)
        np.testing.assert_array_equal(whole[:, start : start + block], alone)
        np.testing.assert_array_equal(scales[:, number], scale)


@given(matrices, st.integers(-2, 1))
def test_eight_bits_are_what_they_were(weight: np.ndarray, axis: int) -> None:
    for ours, theirs in zip(quantize(weight, 8, axis), quantize_int8(weight, axis), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_halves_round_to_even() -> None:
    integers, scales = quantize(np.array([[7, 0.5, 1.5, -0.5, -1.5, 2.5]], np.float32), 4)
    assert scales.tolist() == [1.0]
    assert integers.tolist() == [[7, 0, 2, 0, -2, 2]]


def test_a_block_of_zeros_has_scale_one() -> None:
    integers, scales = quantize(np.array([[0, 0, 0, -2, 14]], np.float32), 4, block=2)
    assert scales.tolist() == [[1.0, pytest.approx(2 / 7), 2.0]]
    assert integers.tolist() == [[0, 0, 0, -7, 7]]


@pytest.mark.parametrize("block", [None, 2])
def test_a_weight_that_is_no_number_is_refused(block: int | None) -> None:
    with pytest.raises(ModelError, match="NaN or infinity and has no int4 grid"):
        weight_scales(np.array([[1, np.nan]], np.float32), 4, block=block)
