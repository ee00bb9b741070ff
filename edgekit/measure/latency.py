"""Latency figures from samples."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Seconds of one inference at the rows' true lengths: median, 90th percentile, samples."""

    p50: float
    p90: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(samples: Sequence[float]) -> Latency:
    """Median and 90th percentile (linear interpolation) of wall times in seconds."""
    values = np.asarray(samples, dtype=np.float64)
    return Latency(
        p50=float(np.quantile(values, 0.5)),
        p90=float(np.quantile(values, 0.9)),
        samples=len(values),
    )
