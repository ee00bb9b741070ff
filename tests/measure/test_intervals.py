"""Intervals: against published examples, and how often they hold the truth."""

import numpy as np
import pytest

from edgekit.measure.intervals import (
    correlation_interval,
    correlation_rows,
    difference,
    interval,
    paired_correlation,
    rows_above,
    rows_reaching,
)


def paired(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    n = both + first + second + neither
    one, other = (both + first) / n, (both + second) / n
    common = paired_correlation(both, first, second, neither)
    return difference(one, interval(one, n), other, interval(other, n), common)


def test_newcombes_example_of_separate_rows() -> None:
    """56 of 70 against 48 of 80: Statistics in Medicine 1998, 17:873, table II, method 10."""
    found = difference(56 / 70, interval(56 / 70, 70), 48 / 80, interval(48 / 80, 80))
    assert found == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


def test_newcombes_example_of_the_same_rows() -> None:
    """36 both, 12 the first, 2 the second: Statistics in Medicine 1998, 17:2635, method 10."""
    assert paired(36, 12, 2, 0) == (
        pytest.approx(0.0569, abs=5e-5),
        pytest.approx(0.3404, abs=5e-5),
    )


def test_the_same_rows_tell_more_than_others() -> None:
    """900 and 890 of 1000, all but 30 answered alike."""
    low, high = paired(880, 20, 10, 90)
    apart = difference(0.9, interval(0.9, 1000), 0.89, interval(0.89, 1000))
    assert apart[0] < low < 0.01 < high < apart[1]
    # The normal approximation: sqrt(20 + 10 - 10² / 1000) / 1000, 1.96 times.
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(29.9) / 1000, rel=0.12)


@pytest.mark.parametrize("shares", [(0.90, 0.03, 0.02, 0.05), (0.5, 0.1, 0.15, 0.25)])
def test_a_paired_interval_holds_the_difference_95_times_in_100(
    shares: tuple[float, float, float, float],
) -> None:
    draw = np.random.default_rng(0)
    truth = shares[1] - shares[2]
    found = [paired(*map(int, draw.multinomial(400, shares))) for _ in range(2000)]
    held = np.mean([low <= truth <= high for low, high in found])
    assert 0.935 <= held <= 0.985


def test_a_correlations_interval_holds_it_95_times_in_100() -> None:
    draw = np.random.default_rng(0)
    # Spearman's of two normals of correlation r is 6 / π · asin(r / 2).
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    held = 0
    for _ in range(400):
        first, noise = draw.standard_normal((2, 150))
        # Ranks, of which none are alike.
        ranks = [each.argsort().argsort() for each in (first, 0.6 * first + 0.8 * noise)]
        low, high = correlation_interval(float(np.corrcoef(*ranks)[0, 1]), 150)
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98
    assert correlation_interval(0.9, 3) == (-1.0, 1.0)
    assert correlation_interval(1.0, 50)[1] <= 1.0


@pytest.mark.parametrize(("score", "chance"), [(0.02, 0.013), (0.6, 0.5), (0.9, 0.1)])
def test_rows_that_tell_a_share_from_chance(score: float, chance: float) -> None:
    enough = rows_above(score, chance)
    assert enough is not None
    assert interval(score, enough)[0] > chance >= interval(score, enough - 1)[0]
    assert rows_above(chance, chance) is None


def test_rows_that_tell_a_correlation_from_none() -> None:
    enough = correlation_rows(0.3)
    assert enough is not None
    assert correlation_interval(0.3, enough)[0] > 0 >= correlation_interval(0.3, enough - 1)[0]
    assert correlation_rows(0.0) is None


@pytest.mark.parametrize("limit", [0.5, 0.9, 0.95, 0.99])
def test_rows_that_can_show_a_share(limit: float) -> None:
    enough = rows_reaching(limit)
    assert interval(1.0, enough)[0] >= limit > interval(1.0, enough - 1)[0]
