"""Is one file slower than another? Side by side, in the same minutes, against the host's noise.

Rules:

1. Both files run in one process, a row on one right after the same row on the other, in random
   order, so that a machine whose speed drifts slows both. What counts is the ratio of a pair.
2. Several processes, since where a process's memory lies makes a file faster or slower for the
   whole of its life. Which file is loaded first changes from process to process.
3. After each of them, one that holds the first file against itself: the host's own noise.
4. The ratio is the median over processes of the median over pairs; its 95 % interval comes from
   resampling processes, and pairs within them (a hierarchical bootstrap).
5. *Slower* or *faster* when the whole interval is beyond the margin, which is 3 %, or the largest
   ratio that noise alone made. *Same* when the whole interval is within 3 %. Else *inconclusive*.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.devices.agent import median_interval
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.preprocess import Encoded

Outcome = Literal["faster", "slower", "same", "inconclusive"]
Pairs = npt.NDArray[np.float64]

_MARGIN = 0.03
_PROCESSES = 6
_RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """How long the first file takes as a share of the second's time.

    low, high: the ratio's 95 % interval. noise: the first file against itself, process by process.
    """

    outcome: Outcome
    ratio: float
    low: float
    high: float
    margin: float
    noise: tuple[float, ...]
    pairs: int
    fingerprint: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    first: Artifact,
    second: Artifact,
    encoded: Encoded,
    *,
    threads: int,
    seconds: float,
    device: Device = HOST,
    theirs: Encoded | None = None,
) -> Comparison:
    """Run both files for about ``seconds`` in all.

    encoded: rows with the inputs of both, or where the second reads the same rows as other ids,
    ``theirs`` has those. Raises UsageError when the files' inputs differ, and DeviceError when
    the device cannot tell times or does not run them.
    """
    if theirs is None and {t.name for t in first.inputs} != {t.name for t in second.inputs}:
        raise UsageError(
            f"--against: {second.path} takes other inputs than {first.path}; compare files of "
            "the same kind of model"
        )
    if not device.timed:
        raise DeviceError(f"{device.name} cannot compare: its times mean nothing; use host")
    rows = list(range(len(encoded)))
    step = Pass("pairs", "compare", rows, seconds=seconds / (2 * _PROCESSES))
    fingerprint: dict[str, Any] = {}

    inputs = {id(first): encoded, id(second): theirs or encoded}

    def pairs(one: Artifact, other: Artifact) -> Pairs:
        found = run_agent(
            one,
            inputs[id(one)],
            [step],
            threads=threads,
            device=device,
            against=other,
            theirs=inputs[id(other)],
        )
        fingerprint.update(found["fingerprint"])
        return np.asarray(found["passes"]["pairs"]["pairs"], dtype=np.float64)

    ratios, noise = [], []
    for number in range(_PROCESSES):
        found = pairs(second, first)[:, ::-1] if number % 2 else pairs(first, second)
        ratios.append(np.log(found[:, 0] / found[:, 1]))
        itself = pairs(first, first)
        noise.append(float(np.exp(np.median(np.log(itself[:, 0] / itself[:, 1])))))
    return judge(ratios, noise, fingerprint)


def judge(
    ratios: Sequence[Pairs], noise: Sequence[float], fingerprint: dict[str, Any]
) -> Comparison:
    """Rules 4 and 5. ratios: by process, the logarithm of each pair's ratio."""
    low, high = _interval(ratios)
    margin = max(_MARGIN, *(float(np.exp(abs(np.log(each)))) - 1 for each in noise))
    return Comparison(
        outcome=_outcome(low, high, margin),
        ratio=float(np.exp(np.median([np.median(each) for each in ratios]))),
        low=low,
        high=high,
        margin=margin,
        noise=tuple(noise),
        pairs=sum(map(len, ratios)),
        fingerprint=fingerprint,
    )


def _interval(ratios: Sequence[Pairs]) -> tuple[float, float]:
    draw = np.random.default_rng(0)
    # A process's median varies by resampling its pairs; that is normal around it (see the agent).
    medians = np.array([np.median(each) for each in ratios])
    errors = np.array([_median_error(each) for each in ratios])
    chosen = draw.integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    resampled = np.median(
        medians[chosen] + errors[chosen] * draw.standard_normal(chosen.shape), axis=1
    )
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.exp(low)), float(np.exp(high))


def _median_error(values: Pairs) -> float:
    low, high = median_interval(values)
    return (high - low) / (2 * 1.96)


def _outcome(low: float, high: float, margin: float) -> Outcome:
    if low > 1 + margin:
        return "slower"
    if high < 1 / (1 + margin):
        return "faster"
    return "same" if low >= 1 / (1 + _MARGIN) and high <= 1 + _MARGIN else "inconclusive"
