"""Latency figures from samples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from edgekit.devices.agent import median_interval, spread

# Fewer samples do not show what happens once in a hundred calls.
_FOR_P99 = 500
# An interval of the median that is wider than this share of it is said to be wide.
PRECISION = 0.02


@dataclass(frozen=True)
class Latency:
    """Seconds of one call: median, 90th and 99th percentile, and the median's 95 % interval.

    p99: ``None`` below 500 samples. steady: whether the pace had settled before the first sample.
    lengths: the median at each length in tokens (or bucket), by length.
    """

    p50: float
    p90: float
    p99: float | None
    low: float
    high: float
    samples: int
    steady: bool
    lengths: Mapping[int, float]

    @property
    def wide(self) -> bool:
        """Whether time ran out before the median was known well."""
        return spread((self.low, self.high)) > PRECISION

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "wide": self.wide}


def summarize(found: Mapping[str, Any]) -> Latency:
    """What a latency pass of the agent showed; percentiles interpolate linearly."""
    values = np.asarray(found["samples"], dtype=np.float64)
    low, high = median_interval(values)
    return Latency(
        p50=float(np.quantile(values, 0.5)),
        p90=float(np.quantile(values, 0.9)),
        p99=float(np.quantile(values, 0.99)) if len(values) >= _FOR_P99 else None,
        low=low,
        high=high,
        samples=len(values),
        steady=bool(found["steady"]),
        lengths=_by_width(values, found["widths"]),
    )


def _by_width(values: Any, widths: Sequence[int]) -> dict[int, float]:
    kinds = np.asarray(widths)
    return {
        int(width): float(np.median(values[kinds == width])) for width in np.unique(kinds) if width
    }
