"""Quantities: what people write and what they read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import units
from edgekit.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [("30MB", 30_000_000), ("28.6 MiB", 29_989_274), ("900kB", 900_000), ("1GiB", 2**30)],
)
def test_decimal_and_binary_units_differ(text: str, count: int) -> None:
    assert units.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["30XB", "30", "MB", "", "-5MB", "0MB", "1e3MB", "30 MB MB"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        units.parse_bytes(text)


def test_times_and_shares() -> None:
    assert units.parse_seconds("20ms") == pytest.approx(0.02)
    assert units.parse_fraction("1%") == pytest.approx(0.01)
    with pytest.raises(UsageError):
        units.parse_seconds("20")
    with pytest.raises(UsageError):
        units.parse_fraction("1ms")


@given(st.integers(min_value=1, max_value=10**12))
def test_a_printed_size_reads_back_within_its_four_digits(count: int) -> None:
    read = units.parse_bytes(units.format_bytes(count))
    assert read == pytest.approx(count, rel=1e-3)
