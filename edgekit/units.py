"""Quantities as people write them: parsed here, and turned into text here, nowhere else.

Inside edgekit bytes are ``int`` and times are seconds as ``float``. MB = 10^6, MiB = 2^20.
"""

import re
from typing import TypeVar

from edgekit.errors import UsageError

Number = TypeVar("Number", int, float)

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_QUANTITY = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Zµ%]*)\s*")


def parse_bytes(text: str) -> int:
    """Bytes from ``30MB``, ``28.5 MiB`` or ``900kB``; a unit is required."""
    value, unit = _split(text, "a size such as 30MB or 28.6MiB")
    if unit.lower() not in _BYTES:
        raise UsageError(f"'{text}' is not a size; write it as 30MB, 28.6MiB or 900kB")
    return _positive(round(value * _BYTES[unit.lower()]), text)


def parse_seconds(text: str) -> float:
    """Seconds from ``20ms``, ``0.5s`` or ``300us``; a unit is required."""
    value, unit = _split(text, "a time such as 20ms")
    if unit.lower() not in _SECONDS:
        raise UsageError(f"'{text}' is not a time; write it as 20ms, 0.5s or 300us")
    return _positive(value * _SECONDS[unit.lower()], text)


def parse_fraction(text: str) -> float:
    """A fraction from ``1%`` (0.01) or ``0.01``."""
    value, unit = _split(text, "a share such as 1%")
    if unit not in ("", "%"):
        raise UsageError(f"'{text}' is not a share; write it as 1% or 0.01")
    return _positive(value / 100 if unit == "%" else value, text)


def format_bytes(count: int) -> str:
    """``22.91 MB``: decimal units with four significant digits, as app stores count."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(count) >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} B"


def format_seconds(seconds: float) -> str:
    """``1.27 ms``: three significant digits in the unit that fits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def format_percent(fraction: float, digits: int = 2) -> str:
    """``92.89 %``."""
    return f"{fraction * 100:.{digits}f} %"


def format_signed_points(fraction: float) -> str:
    """``-0.06 points``: a difference of two percentages."""
    return f"{fraction * 100:+.2f} points"


def _split(text: str, expected: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is not {expected}")
    return float(match[1]), match[2]


def _positive(value: Number, text: str) -> Number:
    if value <= 0:
        raise UsageError(f"'{text}' leaves nothing; a limit must be above zero")
    return value
