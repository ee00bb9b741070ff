"""The int8 grid: properties that every writer and training rely on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgekit.errors import ModelError
from edgekit.steps.quantize.grid import dequantize_int8, int8_scales, quantize_int8

finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
weights = arrays(np.float32, array_shapes(min_dims=1, max_dims=4, max_side=6), elements=finite)


@st.composite
def weights_and_axis(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    weight = draw(weights)
    return weight, draw(st.integers(-weight.ndim, weight.ndim - 1))


def along(scales: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(np.broadcast_to(scales, (*np.moveaxis(weight, axis, -1).shape,)), -1, axis)


@given(weights_and_axis())
def test_a_weight_comes_back_within_half_a_scale(case: tuple[np.ndarray, int]) -> None:
    weight, axis = case
    integers, scales = quantize_int8(weight, axis)
    back = dequantize_int8(integers, scales, axis)
    error = np.abs(back.astype(np.float64) - weight)
    # Half a scale, and the rounding of float32 at the far end of the channel.
    largest = along(scales, weight, axis).astype(np.float64) * 127
    within = np.maximum(along(scales, weight, axis) * 0.5, 0) + largest * 1e-6
    assert (error <= np.maximum(within, 1e-30)).all()


@given(weights_and_axis())
def test_the_largest_magnitude_of_a_channel_is_127(case: tuple[np.ndarray, int]) -> None:
    weight, axis = case
    integers, scales = quantize_int8(weight, axis)
    assert scales.shape == (weight.shape[axis],) and scales.dtype == np.float32
    for channel, whole in zip(
        np.moveaxis(weight, axis, 0), np.moveaxis(integers, axis, 0), strict=True
    ):
        amax = np.abs(channel).max()
        assert np.abs(whole.astype(int)).max() == (127 if amax >= 1e-30 else 0)
        assert whole.flat[np.abs(channel).argmax()] == (
            127 * np.sign(channel.flat[np.abs(channel).argmax()]) if amax >= 1e-30 else 0
        )


@given(weights_and_axis())
def test_negation_stays_on_the_grid(case: tuple[np.ndarray, int]) -> None:
    weight, axis = case
    integers, scales = quantize_int8(weight, axis)
    mirrored, same = quantize_int8(-weight, axis)
    assert (mirrored == -integers).all() and (same == scales).all()
    assert integers.min(initial=0) >= -127


@given(weights_and_axis())
@settings(max_examples=200)
def test_weights_on_the_grid_keep_their_integers(case: tuple[np.ndarray, int]) -> None:
    weight, axis = case
    integers, scales = quantize_int8(weight, axis)
    again, _ = quantize_int8(dequantize_int8(integers, scales, axis), axis)
    assert (again == integers).all()


def test_halves_round_to_even() -> None:
    integers, scales = quantize_int8(np.array([[127, 0.5, 1.5, -0.5, -1.5, 2.5]], np.float32))
    assert scales.tolist() == [1.0]
    assert integers.tolist() == [[127, 0, 2, 0, -2, 2]]


def test_a_channel_of_zeros_has_scale_one() -> None:
    weight = np.array([[0, 0], [0, -2]], np.float32)
    integers, scales = quantize_int8(weight)
    assert scales.tolist() == pytest.approx([1, 2 / 127])
    assert integers.tolist() == [[0, 0], [0, -127]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        int8_scales(np.array([[1, bad]], np.float32))
