"""Limits, and whether a bundle keeps them: pass, fail or inconclusive, with the reason for each."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgekit import units
from edgekit.errors import UsageError

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Budget:
    """What a bundle may cost. ``None`` means no limit.

    size: bytes an app ships for the model (model files, tokenizer, labels).
    latency: p50 in seconds over the true lengths of the eval set, on the device that ran it.
    memory: peak bytes above an empty process.
    accuracy_drop: how far the file's metric may fall below the original's, as a fraction.
    """

    size: int | None = None
    latency: float | None = None
    memory: int | None = None
    accuracy_drop: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One limit held against one figure; ``value`` is ``None`` when it was not measured."""

    name: str
    limit: float
    value: float | None
    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The worst outcome of all checks: any fail fails, else any inconclusive decides."""

    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        outcomes = {check.outcome for check in self.checks}
        if "fail" in outcomes:
            return "fail"
        return "inconclusive" if "inconclusive" in outcomes else "pass"

    def to_json(self) -> dict[str, Any]:
        return {"outcome": self.outcome, "checks": [asdict(check) for check in self.checks]}


_PARSERS = {
    "size": units.parse_bytes,
    "latency": units.parse_seconds,
    "memory": units.parse_bytes,
    "accuracy-drop": units.parse_fraction,
}
_FORMATS: dict[str, Callable[[float], str]] = {
    "size": lambda value: units.format_bytes(int(value)),
    "latency": units.format_seconds,
    "memory": lambda value: units.format_bytes(int(value)),
    "accuracy-drop": units.format_percent,
}


def parse_budget(text: str) -> Budget:
    """``30MB``, or ``size=30MB,latency=20ms,memory=150MB,accuracy-drop=1%``.

    Raises UsageError for an unknown limit, a missing unit, zero or a negative value.
    """
    limits: dict[str, int | float] = {}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if not separator:
            name, value = "size", part
        name = name.strip()
        if name not in _PARSERS:
            raise UsageError(f"unknown limit '{name}'; the limits are {', '.join(_PARSERS)}")
        if name in limits:
            raise UsageError(f"the limit '{name}' is given twice")
        limits[name] = _PARSERS[name](value)
    return Budget(**{name.replace("-", "_"): value for name, value in limits.items()})  # type: ignore[arg-type]


def format_limit(name: str, value: float) -> str:
    """``value`` in the unit of the limit ``name`` (as in ``parse_budget``)."""
    return _FORMATS[name](value)


def judge(
    budget: Budget,
    *,
    size: int,
    latency: float | None,
    memory: int | None,
    accuracy_drop: float | None,
) -> Verdict:
    """Hold measured figures against a budget; a figure that is missing is inconclusive."""
    figures = {
        "size": (budget.size, size),
        "latency": (budget.latency, latency),
        "memory": (budget.memory, memory),
        "accuracy-drop": (budget.accuracy_drop, accuracy_drop),
    }
    return Verdict(
        tuple(
            _check(name, limit, value)
            for name, (limit, value) in figures.items()
            if limit is not None
        )
    )


def _check(name: str, limit: float, value: float | None) -> Check:
    bound = format_limit(name, limit)
    if value is None:
        return Check(name, limit, None, "inconclusive", f"{name} was not measured (limit {bound})")
    shown = format_limit(name, value)
    if value > limit:
        return Check(name, limit, value, "fail", f"{name} {shown} is above the limit {bound}")
    return Check(name, limit, value, "pass", f"{name} {shown} is within {bound}")
