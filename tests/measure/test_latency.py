"""Latency: when the pace has settled, how well the median is known, what is made of samples."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.devices import agent
from edgekit.measure.latency import summarize
from edgekit.measure.measurement import SCHEMA, Measurement


def found(samples: list[float], widths: list[int] | None = None) -> dict[str, object]:
    return {"samples": samples, "widths": widths or [0] * len(samples), "steady": True}


def test_percentiles_are_those_of_numpy_and_p99_needs_500_samples() -> None:
    samples = np.random.default_rng(0).gamma(2.0, 1e-3, 499).tolist()
    few, many = summarize(found(samples)), summarize(found([*samples, 1e-3]))
    assert few.p50 == pytest.approx(np.median(samples))
    assert few.p90 == pytest.approx(np.percentile(samples, 90))
    assert few.p99 is None
    assert many.p99 == pytest.approx(np.percentile([*samples, 1e-3], 99))


def test_each_length_has_its_own_median() -> None:
    latency = summarize(found([1.0, 3.0, 1.2, 3.2, 1.4, 3.4], [8, 16, 8, 16, 8, 16]))
    assert latency.lengths == {8: 1.2, 16: 3.2}


def test_the_medians_interval_is_the_bootstraps() -> None:
    draw = np.random.default_rng(1)
    samples = draw.lognormal(0.0, 0.3, 801)
    resampled = np.median(draw.choice(samples, (4000, 801)), axis=1)
    low, high = agent.median_interval(samples)
    assert low == pytest.approx(np.quantile(resampled, 0.025), rel=0.01)
    assert high == pytest.approx(np.quantile(resampled, 0.975), rel=0.01)


def test_the_interval_holds_the_true_median_95_times_in_100() -> None:
    draw = np.random.default_rng(2)
    held = 0
    for _ in range(1000):
        low, high = agent.median_interval(draw.exponential(1.0, 200))
        held += low <= np.log(2) <= high
    assert 930 <= held <= 985


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=50))
def test_the_interval_holds_the_median(samples: list[float]) -> None:
    low, high = agent.median_interval(samples)
    assert min(samples) <= low <= np.median(samples) <= high <= max(samples)


@given(st.integers(0, 2**32 - 1), st.integers(8, 40))
def test_a_change_of_pace_is_found(seed: int, at: int) -> None:
    series = np.random.default_rng(seed).normal(1.0, 0.01, 48)
    series[:at] += 0.5
    place, chance = agent.change_point(series)
    assert chance < 0.05
    if at == 24:  # at the ends the place is less certain
        assert abs(place - at) <= 6


def test_no_change_is_found_in_noise_but_for_5_times_in_100() -> None:
    draw = np.random.default_rng(3)
    found = [agent.change_point(draw.normal(1.0, 0.1, 24))[1] < 0.05 for _ in range(1000)]
    assert sum(found) <= 65


def test_a_mix_of_lengths_is_no_change_of_pace() -> None:
    widths = [8] * 200 + [64] * 200
    times = [1.0 if width == 8 else 5.0 for width in widths]
    np.testing.assert_allclose(agent.curve(times, widths), 1.0)


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == Measurement.model_json_schema()
