"""Whether a file answers worse than one before, given how few rows that was found on.

Rules:

1. Where both were run on the same rows, and it is known which they answered rightly, the two are
   compared row by row; else by each one's own interval (``edgekit.measure.intervals``).
2. A drop fails when its whole interval is beyond the limit, and passes when none of it is. In
   between it is inconclusive.
3. Where even no difference at all would leave an interval that reaches beyond the limit, the rows
   are too few to ask for it; how many would do is said. So is it of an absolute limit that
   answering every row rightly could not reach.
4. A ratchet fails when the whole interval is a drop, passes when the score is no lower, and is
   inconclusive in between.
5. A baseline whose interval reaches down to what ignoring the input gets proves nothing.
"""

import base64
import binascii
import math
from dataclasses import dataclass

from edgekit.budget import Outcome
from edgekit.errors import BaselineError, BundleError, UsageError
from edgekit.gating.figures import Accuracy
from edgekit.measure.intervals import (
    Interval,
    correlation_interval,
    correlation_rows,
    difference,
    interval,
    paired_correlation,
    rows_above,
    rows_reaching,
)


@dataclass(frozen=True)
class Drop:
    """How far below the baseline, as a fraction: the drop found, and its 95 % interval."""

    found: float
    low: float
    high: float
    paired: bool


def own_interval(answers: Accuracy) -> Interval:
    """The score's 95 % interval."""
    find = correlation_interval if answers.correlation else interval
    return find(answers.score, answers.rows)


def drop_between(before: Accuracy, now: Accuracy) -> Drop:
    """Rule 1. Raises BundleError when the rows recorded are not those of the score."""
    common, paired = 0.0, False
    if before.right and now.right and (before.digest, before.rows) == (now.digest, now.rows):
        was, is_ = _right(before), _right(now)
        both = (was & is_).bit_count()
        first, second = was.bit_count() - both, is_.bit_count() - both
        common = paired_correlation(both, first, second, before.rows - both - first - second)
        paired = True
    low, high = difference(before.score, own_interval(before), now.score, own_interval(now), common)
    return Drop(before.score - now.score, low, high, paired)


def judge_drop(drop: Drop, limit: float, rows: int, where: str) -> Outcome:
    """Rules 2 and 3. Raises UsageError when the rows are too few."""
    if drop.low > limit:
        return "fail"
    if drop.high <= limit:
        return "pass"
    half = (drop.high - drop.low) / 2
    if half > limit:
        enough = math.ceil(rows * (half / limit) ** 2)
        raise UsageError(
            f"{where}: {rows} eval rows tell a drop to ±{half * 100:.2g} points, and the limit is "
            f"{limit * 100:g}; about {enough} rows would do, or a wider limit"
        )
    return "inconclusive"


def judge_ratchet(drop: Drop) -> Outcome:
    """Rule 4."""
    if drop.low > 0:
        return "fail"
    return "pass" if drop.found <= 0 else "inconclusive"


def judge_least(answers: Accuracy, limit: float, where: str) -> Outcome:
    """Whether the score is at least ``limit``. Raises UsageError when the rows are too few."""
    low, high = own_interval(answers)
    if low >= limit:
        return "pass"
    if high < limit:
        return "fail"
    if not answers.correlation and answers.rows < rows_reaching(limit):
        raise UsageError(
            f"{where}: {answers.rows} eval rows cannot show {limit * 100:g} %, were every answer "
            f"right; {rows_reaching(limit)} rows would do, or a lower limit"
        )
    return "inconclusive"


def refuse_chance(before: Accuracy, where: str) -> None:
    """Rule 5. Raises BaselineError."""
    if own_interval(before)[0] > before.chance:
        return
    if before.correlation:
        enough = correlation_rows(before.score)
    else:
        enough = rows_above(before.score, before.chance)
    mend = "mend the model or its labels first"
    if enough is not None:
        mend = f"{enough} eval rows would tell them apart"
    raise BaselineError(
        f"{where}: the baseline's {before.metric.replace('_', ' ')} of {before.score:.4f} on "
        f"{before.rows} rows is not above chance ({before.chance:.4f}), so nothing can fall below "
        f"it; {mend}"
    )


def _right(answers: Accuracy) -> int:
    """The bits of the rows that were answered rightly."""
    try:
        content = base64.b64decode(answers.right or "", validate=True)
    except (binascii.Error, ValueError):
        content = b""
    spare = len(content) * 8 - answers.rows
    bits = int.from_bytes(content, "big") >> max(0, spare)
    if not 0 <= spare < 8 or abs(bits.bit_count() / answers.rows - answers.score) > 1e-6:
        raise BundleError(
            f"the rows recorded as right do not make up the accuracy of {answers.score:.4f}; build "
            "the bundle again, or write the baseline anew with: edgekit gate --update"
        )
    return bits
