"""``[gate]`` of ``edgekit.toml``: rules, waivers, and what to make of what cannot be told.

[gate]
inconclusive = "fail"            # or "pass"; exit code 3 when left out

[gate.download-bytes]            # a table for each figure
max = "12MB"                     # an absolute limit
growth = "1% and 20kB"           # beyond the baseline: fails when both are exceeded
ratchet = true                   # may only improve

[gate.shipped-bytes]
headroom = "5%"                  # of the budget that the bundle was built with

[gate.shipped-bytes.web-wasm]    # for one target, in place of what the figure's table says
max = "9MB"

[gate.accuracy]
min = "90%"
drop = "1 point"                 # below the baseline, beyond what the eval rows can tell

[[gate.waivers]]
rule = "download-bytes.growth"
target = "web-wasm"              # every target when left out
reason = "the second head; smaller again with #12"
expires = 2026-12-24             # holds up to and on this day
"""

import datetime
import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit import units
from edgekit.errors import EdgekitError, ProjectError, UsageError
from edgekit.gating.figures import FIGURES, Figure, show
from edgekit.toml import find_line, place, read_fields

Kind = Literal["max", "min", "growth", "drop", "headroom", "ratchet"]
# What a verdict that cannot be told counts as.
Policy = Literal["inconclusive", "pass", "fail"]
_OWN_KEYS = ("inconclusive", "waivers")
_WAIVER_KEYS = ("rule", "target", "reason", "expires")


@dataclass(frozen=True)
class Rule:
    """One limit of one figure.

    limit: of ``max`` and ``min`` in the figure's unit; of ``drop`` and ``headroom`` a fraction; of
    ``growth`` the fraction, and ``least`` what it has to exceed as well, in the figure's unit.
    line: where the file says so.
    """

    figure: Figure
    kind: Kind
    limit: float = 0.0
    least: float = 0.0
    line: int | None = None

    @property
    def name(self) -> str:
        return f"{self.figure.name}.{self.kind}"

    @property
    def of_baseline(self) -> bool:
        """Whether it looks at what was before."""
        return self.kind in ("growth", "drop", "ratchet")

    def text(self) -> str:
        """The limit, as it would be written."""
        if self.kind in ("max", "min"):
            return self.figure.show(self.limit)
        if self.kind == "ratchet":
            return "no worse"
        if self.kind == "drop":
            return _points(self.limit)
        share = f"{self.limit * 100:g} %"
        return f"{share} and {self.figure.show(self.least)}" if self.least else share


@dataclass(frozen=True)
class Waiver:
    """A rule that may fail for a while. target: ``None`` for all of them."""

    rule: str
    reason: str
    expires: datetime.date
    target: str | None = None

    def covers(self, rule: Rule, target: str) -> bool:
        return self.rule == rule.name and self.target in (None, target)


@dataclass(frozen=True)
class Rules:
    """All that ``[gate]`` says. for_targets: by target, its rules by name in place of others."""

    path: Path
    rules: Mapping[str, Rule]
    for_targets: Mapping[str, Mapping[str, Rule]]
    waivers: tuple[Waiver, ...] = ()
    inconclusive: Policy = "inconclusive"

    def of(self, target: str) -> list[Rule]:
        """The rules of one target, in the order of the figures."""
        return sorted(
            {**self.rules, **self.for_targets.get(target, {})}.values(),
            key=lambda rule: list(FIGURES).index(rule.figure.name),
        )


def read_rules(path: Path, targets: Collection[str], today: datetime.date) -> Rules:
    """The rules of a project file, for bundles of these targets.

    Raises ProjectError with line and key for what is malformed, for a figure, rule or target that
    does not exist (suggesting the nearest), and for a waiver that has expired.
    """
    if not path.is_file():
        raise ProjectError(f"no project file {path}; write one with: edgekit init")
    fields, text = read_fields(path, ProjectError)
    table = fields.get("gate")
    if not isinstance(table, dict) or not set(table) - set(_OWN_KEYS):
        raise ProjectError(
            f"{path} has no rules to judge by; begin with a table [gate.download-bytes] and "
            'growth = "1% and 20kB" in it'
        )
    read = _Reader(path, text, targets)
    general: dict[str, Rule] = {}
    particular: dict[str, dict[str, Rule]] = {}
    for name, limits in table.items():
        if name in _OWN_KEYS:
            continue
        figure = FIGURES[read.known(name, FIGURES, "figure", name)]
        for key, value in read.table(limits, name).items():
            if isinstance(value, dict):
                target = read.target(key, name, key)
                rules = (read.rule(figure, kind, each, key) for kind, each in value.items())
                particular.setdefault(target, {}).update({rule.name: rule for rule in rules})
            else:
                rule = read.rule(figure, key, value)
                general[rule.name] = rule
    used = {*general, *(name for rules in particular.values() for name in rules)}
    return Rules(
        path,
        general,
        particular,
        tuple(read.waivers(table.get("waivers", []), used, today)),
        read.policy(table.get("inconclusive", "inconclusive")),
    )


@dataclass(frozen=True)
class _Reader:
    """Reads values of one file, and says where it stumbles. targets: of the bundles at hand."""

    path: Path
    text: str
    targets: Collection[str]

    def wrong(self, problem: str, *keys: str | int) -> ProjectError:
        where = place(str(self.path), find_line(self.text, ["gate", *keys]))
        named = ".".join(["gate", *(str(key) for key in keys if isinstance(key, str))])
        return ProjectError(f"{where}: {named}: {problem}")

    def known(self, name: str, choices: Iterable[str], what: str, *keys: str | int) -> str:
        choices = sorted(choices)
        if name in choices:
            return name
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(choices)}"
        raise self.wrong(f"there is no {what} '{name}'; {hint}", *keys)

    def target(self, name: str, *keys: str | int) -> str:
        """A target that a bundle is for, or that comes with edgekit."""
        if name in self.targets:
            return name
        from edgekit.target import target_names

        return self.known(name, {*target_names(), *self.targets}, "target", *keys)

    def table(self, value: Any, *keys: str) -> Mapping[str, Any]:
        if not isinstance(value, dict) or not value:
            raise self.wrong(f'is a table with limits; write [gate.{keys[0]}] and max = "…"', *keys)
        return value

    def rule(self, figure: Figure, key: str, value: Any, target: str | None = None) -> Rule:
        keys = [figure.name, *([] if target is None else [target]), key]
        kind: Any = self.known(key, kinds_of(figure), f"rule of {figure.name}", *keys)
        line = find_line(self.text, ["gate", *keys])
        try:
            limit, least = _limits(figure, kind, value)
            return Rule(figure, kind, limit, least, line)
        except EdgekitError as problem:
            raise self.wrong(str(problem), *keys) from None

    def policy(self, value: Any) -> Policy:
        if value not in ("pass", "fail", "inconclusive"):
            raise self.wrong(f"{value!r} is not pass, fail or inconclusive", "inconclusive")
        policy: Policy = value
        return policy

    def waivers(
        self, tables: Any, rules: Collection[str], today: datetime.date
    ) -> Iterable[Waiver]:
        if not isinstance(tables, list):
            raise self.wrong("waivers are tables; write [[gate.waivers]]", "waivers")
        for number, table in enumerate(tables):
            keys = ("waivers", number)
            if not isinstance(table, dict):
                raise self.wrong("waivers are tables; write [[gate.waivers]]", *keys)
            for key in table:
                self.known(key, _WAIVER_KEYS, "key", *keys, key)
            for key in ("rule", "reason"):
                if not isinstance(table.get(key), str) or not table[key].strip():
                    raise self.wrong(f"a waiver needs its {key}, as text", *keys)
            expires = table.get("expires")
            if not isinstance(expires, datetime.date) or isinstance(expires, datetime.datetime):
                raise self.wrong("a waiver needs a date, as in expires = 2026-12-24", *keys)
            target = table.get("target")
            if target is not None:
                self.target(str(target), *keys, "target")
            self.known(table["rule"], rules, "rule in this file", *keys, "rule")
            if expires < today:
                raise self.wrong(
                    f"the waiver of {table['rule']} ended on {expires}; remove it, or mend what "
                    "it excused",
                    *keys,
                )
            yield Waiver(table["rule"], table["reason"].strip(), expires, target)


def kinds_of(figure: Figure) -> tuple[Kind, ...]:
    """The rules that a figure can have."""
    if figure.better == "higher":
        return ("min", "drop", "ratchet")
    kinds: list[Kind] = ["max", "growth"]
    if figure.budget is not None:
        kinds.append("headroom")
    if figure.steady:
        kinds.append("ratchet")  # of what varies from run to run it would trip by itself
    return tuple(kinds)


def _limits(figure: Figure, kind: Kind, value: Any) -> tuple[float, float]:
    """``limit`` and ``least`` of a rule. Raises UsageError."""
    if kind == "ratchet":
        if value is not True:
            raise UsageError(f"{value!r} is not true; leave the ratchet out instead")
        return (0.0, 0.0)
    if kind == "growth":
        return _growth(figure, value)
    if kind == "headroom":
        return (_percent(value), 0.0)
    if kind == "drop":
        return (_read_points(value), 0.0)
    return (_value(figure, value), 0.0)


def _growth(figure: Figure, value: Any) -> tuple[float, float]:
    if figure.unit == "seconds":
        # A ratio of pairs, so that there is no number of seconds to exceed.
        return (_percent(value), 0.0)
    share, found, least = str(value).partition(" and ")
    if not found or not isinstance(value, str):
        example = f"1% and {show(figure.unit, 20_000)}".replace(" kB", "kB")
        raise UsageError(f"{value!r} is not a growth; write both limits, as in '{example}'")
    return (_percent(share), _value(figure, least))


def _value(figure: Figure, value: Any) -> float:
    if figure.unit == "count":
        return _count(value)
    if not isinstance(value, str):
        example = {"bytes": "30MB", "seconds": "20ms", "share": "90%"}[figure.unit]
        raise UsageError(f"{value!r} has no unit; write it as '{example}'")
    if figure.unit == "bytes":
        return units.parse_bytes(value)
    return units.parse_seconds(value) if figure.unit == "seconds" else _percent(value)


def _count(value: Any) -> float:
    text = str(value).strip().replace("_", "")
    if isinstance(value, bool | float) or not re.fullmatch(r"[0-9]{1,18}", text) or not int(text):
        raise UsageError(f"{value!r} is not a count; write a whole number above zero")
    return int(text)


def _percent(value: Any) -> float:
    if not isinstance(value, str) or not value.strip().endswith("%"):
        raise UsageError(f"{value!r} is not a percentage; write it as '5%'")
    found = units.parse_fraction(value)
    if found > 1 or not math.isfinite(found):
        raise UsageError(f"{value!r} is above 100 %")
    return found


def _read_points(value: Any) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*points?\s*", str(value))
    if match is None:
        raise UsageError(f"{value!r} is not a drop; write it in points, as in '1 point'")
    found = float(match[1]) / 100
    if not 0 < found <= 1:
        raise UsageError(f"{value!r} is no drop that can be; write for example '1 point'")
    return found


def _points(fraction: float) -> str:
    number = f"{fraction * 100:g}"
    return f"{number} point" if number == "1" else f"{number} points"
