"""Budgets: parsing, and the three outcomes."""

import pytest

from edgekit.budget import Budget, judge, parse_budget
from edgekit.errors import UsageError


def test_a_bare_size_and_named_limits() -> None:
    assert parse_budget("30MB") == Budget(size=30_000_000)
    assert parse_budget("size=30MB,latency=20ms,memory=150MB,accuracy-drop=1%") == Budget(
        size=30_000_000, latency=0.02, memory=150_000_000, accuracy_drop=0.01
    )


@pytest.mark.parametrize(
    "text", ["30XB", "0MB", "-1MB", "speed=3ms", "size=1MB,size=2MB", "latency=5", "", "size="]
)
def test_a_budget_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_budget(text)


def test_any_limit_broken_fails_and_a_missing_figure_is_inconclusive() -> None:
    budget = parse_budget("size=10MB,latency=2ms")
    known = {"memory": None, "accuracy_drop": None}
    assert judge(budget, size=10_000_000, latency=0.002, **known).outcome == "pass"
    assert judge(budget, size=10_000_001, latency=0.001, **known).outcome == "fail"
    assert judge(budget, size=9_000_000, latency=None, **known).outcome == "inconclusive"
    assert judge(budget, size=11_000_000, latency=None, **known).outcome == "fail"


def test_each_check_says_the_figure_and_the_limit() -> None:
    verdict = judge(
        parse_budget("10MB"), size=12_500_000, latency=None, memory=None, accuracy_drop=None
    )
    assert verdict.checks[0].reason == "size 12.5 MB is above the limit 10 MB"
