"""Each rule held against a figure, and against the baseline's where it asks for that.

Rules:

1. ``max`` and ``headroom`` fail above the limit, ``min`` below it. Headroom is a share of the
   budget that the bundle was built with.
2. ``growth`` fails when the figure grew by more than the percentage and by more than the amount.
3. ``ratchet`` fails when a figure is worse than before, by however little.
4. Accuracy and agreement have intervals (``answers.py``), latency has one (its own for ``max`` and
   ``headroom``, the ratio's for ``growth``). A limit inside an interval is inconclusive.
5. Latency grows against a base that was run beside it in the same minutes, or it is inconclusive.
   Peak memory grows against a base on the same processor and runtime, or it is inconclusive.
6. A figure that a rule needs and a bundle or a baseline does not record is refused, and so is a
   baseline of another model, or without this target or file.
7. A waiver turns a failure, or what is inconclusive, into a pass that says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from edgekit.budget import Outcome
from edgekit.errors import BaselineError, UsageError
from edgekit.gating import answers
from edgekit.gating.figures import Accuracy, BundleFigures, FileFigures, printable
from edgekit.gating.rules import Rules
from edgekit.gating.subject import Finding, Subject
from edgekit.units import format_percent, format_signed_points

if TYPE_CHECKING:
    from edgekit.measure.compare import Comparison

# Of a file's name: it beside the base's, "same" where they are the same bytes, ``None`` where no
# base is at hand.
Compare = Callable[[str], "Comparison | Literal['same'] | None"]


def judge_bundle(
    target: str,
    bundle: BundleFigures,
    before: BundleFigures | None,
    rules: Rules,
    compare: Compare,
) -> list[Finding]:
    """Every rule of the target.

    before: what the baseline has of the target. Raises an EdgekitError for what rule 6 names.
    """
    findings = []
    for rule in rules.of(target):
        for name in bundle.files if rule.figure.of_files else (None,):
            finding = _judge(Subject(target, name, rule, bundle, before), compare)
            waiver = next((each for each in rules.waivers if each.covers(rule, target)), None)
            if waiver is not None and finding.outcome != "pass":
                excuse = f"waived until {waiver.expires}: {printable(waiver.reason)}"
                finding = replace(finding, outcome="waived", reason=f"{finding.reason}; {excuse}")
            findings.append(finding)
    return findings


def _judge(subject: Subject, compare: Compare) -> Finding:
    name, kind = subject.rule.figure.name, subject.rule.kind
    if name in ("accuracy", "agreement"):
        return _judge_answers(subject)
    if name == "latency":
        return _judge_pace(subject, compare) if kind == "growth" else _judge_latency(subject)
    if kind in ("growth", "ratchet"):
        return _judge_change(subject)
    return _judge_limit(subject)


def _judge_limit(subject: Subject) -> Finding:
    """Rule 1, of a figure that is one number."""
    figure, limit = subject.rule.figure, _limit(subject)
    value = subject.value
    lower = figure.better == "lower"
    bad = value > limit if lower else value < limit
    side = ("above" if lower else "below") if bad else "within"
    reason = f"is {figure.show(value)}, {side} {_limit_text(subject, limit)}"
    return subject.finding("fail" if bad else "pass", reason, now=figure.show(value), value=value)


def _judge_change(subject: Subject) -> Finding:
    """Rules 2 and 3."""
    rule, figure = subject.rule, subject.rule.figure
    value, base = subject.value, subject.base
    change = value - base
    share = change / base if base else float("inf") * (change or 1)
    worse = change if figure.better == "lower" else -change
    moved = _change_text(figure.show, change, share)
    shown: dict[str, Any] = {
        "before": figure.show(base),
        "now": figure.show(value),
        "change": moved,
        "value": value,
        "base": base,
    }
    if not figure.steady:
        now, before = subject.now_file, subject.before_file
        if now and before and now.device != before.device:
            reason = f"is of {now.device}, the baseline's of {before.device}: not to be compared"
            return subject.finding("inconclusive", reason, **shown)
    bad = worse > 0 if rule.kind == "ratchet" else share > rule.limit and change > rule.least
    verb = "grew" if change > 0 else "shrank"
    told = f"{verb} by {moved.translate(_NO_SIGNS)}" if change else "is the same"
    limit = "may only improve" if rule.kind == "ratchet" else f"the limit is {rule.text()}"
    return subject.finding("fail" if bad else "pass", f"{told}; {limit}", **shown)


def _judge_answers(subject: Subject) -> Finding:
    """Rule 4, of accuracy and agreement."""
    rule, value = subject.rule, subject.value
    now = _answers(subject.now_file, rule.figure.name)
    shown: dict[str, Any] = {"now": format_percent(value), "value": value}
    if rule.kind == "min":
        low, high = answers.own_interval(now)
        outcome = answers.judge_least(now, rule.limit, subject.where)
        reason = (
            f"is {format_percent(value)}, {format_percent(low)} to {format_percent(high)} on "
            f"{now.rows} rows; the limit is {rule.text()}"
        )
        return subject.finding(outcome, reason, **shown)
    base = subject.base
    before = _answers(subject.before_file, rule.figure.name)
    if before.metric != now.metric:
        raise BaselineError(
            f"{subject.where} is {now.metric} in the bundle and {before.metric} in the baseline; "
            "write it anew with: edgekit gate --update"
        )
    answers.refuse_chance(before, subject.where)
    drop = answers.drop_between(before, now)
    if rule.kind == "ratchet":
        outcome, limit = answers.judge_ratchet(drop), "may only improve"
    else:
        rows = min(before.rows, now.rows)
        outcome = answers.judge_drop(drop, rule.limit, rows, subject.where)
        limit = f"the limit is a drop of {rule.text()}"
    change = format_signed_points(now.score - before.score)
    reason = (
        f"changed by {change}, {-drop.high * 100:+.2f} to {-drop.low * 100:+.2f} on "
        f"{'the same ' if drop.paired else ''}{now.rows} rows; {limit}"
    )
    return subject.finding(
        outcome, reason, **shown, before=format_percent(base), change=change, base=base
    )


def _answers(file: FileFigures | None, figure: str) -> Accuracy:
    """What is recorded of a file's answers; of agreement, as an accuracy without rows to pair."""
    assert file is not None
    if figure == "accuracy":
        assert file.accuracy is not None
        return file.accuracy
    assert file.agreement is not None
    rows = max(1, file.rows)
    return Accuracy(
        metric="agreement", score=file.agreement, rows=rows, chance=0.0, digest="", right=None
    )


def _judge_latency(subject: Subject) -> Finding:
    """Rule 4, of a time that was measured when the bundle was built."""
    value, limit = subject.value, _limit(subject)
    file = subject.now_file
    assert file is not None and file.latency is not None
    figure, low, high = subject.rule.figure, file.latency.low, file.latency.high
    outcome: Outcome = "inconclusive"
    told = "without an interval"
    if low is not None and high is not None:
        told = f"{figure.show(low)} to {figure.show(high)}"
        outcome = "pass" if high <= limit else "fail" if low > limit else "inconclusive"
    reason = (
        f"is {figure.show(value)}, {told}, on {file.device}; the limit is "
        f"{_limit_text(subject, limit)}"
    )
    return subject.finding(outcome, reason, now=figure.show(value), value=value)


def _judge_pace(subject: Subject, compare: Compare) -> Finding:
    """Rules 4 and 5: a ratio of times that were taken side by side."""
    assert subject.file is not None
    limit = subject.rule.limit
    found = compare(subject.file)
    if found is None:
        reason = "has no base to run beside the file; give --against and the base's bundles"
        return subject.finding("inconclusive", reason)
    if found == "same":
        reason = "is of the very same file"
        return subject.finding("pass", reason, now="1.000x", value=1.0, base=1.0)
    outcome: Outcome = "inconclusive"
    if found.low > 1 + limit and found.outcome == "slower":
        outcome = "fail"
    elif found.high <= 1 + limit:
        outcome = "pass"
    noise = max(abs(each - 1) for each in found.noise)
    reason = (
        f"is {found.ratio:.3f} times the base's, {found.low:.3f} to {found.high:.3f} "
        f"side by side on this machine (a file against itself: up to {format_percent(noise, 1)} "
        f"apart); the limit is {1 + limit:g} times"
    )
    change = f"{(found.ratio - 1) * 100:+.1f} %"
    return subject.finding(
        outcome, reason, now=f"{found.ratio:.3f}x", change=change, value=found.ratio, base=1.0
    )


def _limit(subject: Subject) -> float:
    """The limit in the figure's unit; of headroom, what the budget leaves."""
    rule = subject.rule
    if rule.kind != "headroom":
        return rule.limit
    name = rule.figure.budget
    budget = subject.bundle.budget.get(name or "")
    if budget is None:
        raise UsageError(
            f"{subject.where}: the bundle was built without a budget for {name}; give build a "
            "--budget, or use max"
        )
    return budget * (1 - rule.limit)


def _limit_text(subject: Subject, limit: float) -> str:
    shown = subject.rule.figure.show(limit)
    if subject.rule.kind != "headroom":
        return shown
    return f"{shown}, which leaves {subject.rule.text()} of the budget"


_NO_SIGNS = str.maketrans("", "", "+-")


def _change_text(show: Callable[[float], str], change: float, share: float) -> str:
    if not change:
        return ""
    sign = "+" if change > 0 else ""
    part = f" ({sign}{share * 100:.2g} %)" if abs(share) != float("inf") else ""
    return f"{sign}{show(change)}{part}"
