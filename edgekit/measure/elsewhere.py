"""Whether a file answers on another device what it answers here."""

from collections.abc import Mapping
from typing import Any

from edgekit.artifact import Artifact
from edgekit.devices.device import Device
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import ProofError
from edgekit.measure.expected import per_answer
from edgekit.measure.golden import pick_rows
from edgekit.measure.parity import Difference, compare, too_far
from edgekit.preprocess import Encoded
from edgekit.target import Target


def prove_on(
    device: Device,
    artifact: Artifact,
    encoded: Encoded,
    *,
    task: str,
    problem: str | None,
    rows: int = 16,
    timeout: float = 1800,
) -> dict[str, Any]:
    """Run the file on ``rows`` rows, spread over the lengths, on the device and on this host.

    Returns, JSON-able: ``device`` (its name), ``runtime`` (there), ``rows``, ``agreement`` (share
    of equal predictions), ``max_difference`` and ``mean_difference`` of single outputs, ``error``
    (root-mean-square difference over the outputs' standard deviation), and what an accelerator
    tells of its ``coverage``. Each row runs alone, at its true length. Raises DeviceError when
    either cannot run the file, or not within ``timeout`` seconds.
    """
    sample = encoded.rows(pick_rows(encoded, rows))
    passes = [Pass("alone", "outputs")]
    there = run_agent(artifact, sample, passes, threads=1, device=device, timeout=timeout)
    here = run_agent(artifact, sample, passes, threads=1, timeout=timeout)
    difference = compare(
        per_answer(there["passes"]["alone"]["outputs"], sample),
        per_answer(here["passes"]["alone"]["outputs"], sample),
        task=task,
        problem=problem,
    )
    return {
        "device": device.name,
        "runtime": there["fingerprint"]["runtime"],
        "rows": len(sample),
        "agreement": difference.agreement,
        "max_difference": difference.max,
        "mean_difference": difference.mean,
        "error": difference.error,
        "coverage": there.get("coverage"),
    }


def hold(found: Mapping[str, Any], artifact: Artifact, target: Target) -> None:
    """Raise ProofError when what ``prove_on`` found is beyond the target's tolerance, or when an
    accelerator leaves operators to the CPU.
    """
    name, device = artifact.path.name, found["device"]
    difference = Difference(
        rows=found["rows"],
        max=found["max_difference"],
        mean=found["mean_difference"],
        error=found["error"],
        agreement=found["agreement"],
    )
    reason = too_far(difference, target, artifact.scheme)
    if reason is not None:
        raise ProofError(f"{name} answers otherwise on {device} than here: {reason}")
    coverage = found["coverage"]
    if coverage is not None and not coverage["fully_accelerated"]:
        left = ", ".join(coverage["on_cpu"]) or "which ones is not told"
        raise ProofError(
            f"{device} leaves operators of {name} to the CPU ({left}); choose another target"
        )
