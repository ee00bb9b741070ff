"""Length buckets: they cover the texts, they are few, and none better exist."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.export.lengths import choose_lengths, default_lengths

lengths_of_texts = st.lists(st.integers(1, 200), min_size=1, max_size=60)


def padded_tokens(lengths: list[int], buckets: tuple[int, ...]) -> int:
    return sum(next((b for b in buckets if b >= n), buckets[-1]) for n in lengths)


@given(lengths_of_texts, st.integers(8, 512), st.integers(1, 8))
def test_buckets_ascend_cover_every_text_and_stay_within_the_model(
    lengths: list[int], longest: int, at_most: int
) -> None:
    buckets = choose_lengths(lengths, longest, at_most)
    assert list(buckets) == sorted(set(buckets))
    assert 1 <= len(buckets) <= at_most
    assert buckets[-1] >= min(max(lengths), longest)
    assert buckets[-1] <= longest


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 5))
@settings(max_examples=150)
def test_no_other_buckets_pad_less(lengths: list[int], at_most: int) -> None:
    chosen = choose_lengths(lengths, 512, at_most)
    top = chosen[-1]

    def least(count: int) -> int:
        choices = itertools.combinations(range(8, top, 8), count - 1)
        return min((padded_tokens(lengths, (*c, top)) for c in choices), default=10**9)

    tokens = padded_tokens(lengths, chosen)
    assert tokens == least(len(chosen))
    best = min(least(count) for count in range(1, at_most + 1))
    assert tokens <= 1.05 * best
    # One bucket fewer would not have come that close.
    assert len(chosen) == 1 or least(len(chosen) - 1) > 1.05 * best


def test_texts_a_quarter_longer_than_any_seen_still_fit() -> None:
    assert choose_lengths([5, 9, 80], 512)[-1] == 112
    assert choose_lengths([5, 9, 80], 90)[-1] == 90


def test_texts_of_one_length_take_two_buckets_at_most() -> None:
    assert choose_lengths([20] * 1000, 512) == (24, 32)


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(512, (16, 32, 64, 128)), (128, (16, 32, 64, 128)), (100, (16, 32, 64, 100)), (10, (10,))],
)
def test_without_texts_buckets_double_up_to_128(longest: int, expected: tuple[int, ...]) -> None:
    assert default_lengths(longest) == expected
    assert choose_lengths([], longest) == expected
