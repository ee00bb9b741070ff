"""How far a file's outputs are from the original's."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Scheme
from edgekit.measure.accuracy import agreement
from edgekit.target import Target

# Largest allowed root-mean-square difference, as a share of the original outputs' standard
# deviation. Measured on MiniLM / BANKING77: fp32 1e-6, fp16 4e-4, int8-dynamic 0.05, int8-weights
# 0.01, int4-weights 0.09 (ONNX) and 0.13 (TFLite), int16x8 1e-3 (from the rounded model); a wrong
# file (a scale lost, a mask ignored) is above 0.5.
TOLERANCE: dict[Scheme, float] = {
    "fp32": 1e-3,
    "fp16": 0.02,
    "int8-dynamic": 0.25,
    "int8-weights": 0.15,
    "int4-weights": 0.4,
    "int4-all": 0.4,
    "int2-weights": 0.4,
    "int8-static": 0.4,
    "int16x8": 0.05,
}
# Rows from which a share of equal predictions says something.
_ENOUGH = 50


@dataclass(frozen=True)
class Difference:
    """Outputs against the original's, over ``rows`` rows.

    max, mean: absolute difference of single outputs. error: root-mean-square difference over
    the standard deviation of the original's outputs. agreement: share of equal predictions
    (see ``edgekit.measure.accuracy.agreement``).
    """

    rows: int
    max: float
    mean: float
    error: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    outputs: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    *,
    task: str,
    problem: str | None,
) -> Difference:
    """The difference of two output arrays of the same shape [N, …]."""
    gap = np.abs(outputs.astype(np.float64) - reference)
    spread = float(reference.std()) or 1.0
    return Difference(
        rows=len(outputs),
        max=float(gap.max(initial=0.0)),
        mean=float(gap.mean()) if gap.size else 0.0,
        error=float(np.sqrt((gap**2).mean())) / spread if gap.size else 0.0,
        agreement=agreement(outputs, reference, task=task, problem=problem),
    )


def too_far(difference: Difference, target: Target, scheme: Scheme) -> str | None:
    """Why this difference is beyond the target's tolerance, or ``None`` when it is within.

    The share of equal predictions counts from 50 rows on, and fails only when the upper end of
    its 95 % interval is below the target's: near ties turn, and a handful of them must not fail
    a good file. Not a number always fails.
    """
    from edgekit.measure.accuracy import interval

    limit = target.parity.difference or TOLERANCE[scheme]
    if not difference.error <= limit:
        return f"outputs are off by {difference.error:.3g} of their spread (limit {limit:g})"
    if difference.rows < _ENOUGH:
        return None
    upper = interval(difference.agreement, difference.rows)[1]
    if not upper >= target.parity.agreement:
        return (
            f"only {difference.agreement:.1%} of {difference.rows} predictions agree with the "
            f"fp32 model's (limit {target.parity.agreement:.0%})"
        )
    return None
