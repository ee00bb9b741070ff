"""Whether a file answers on another instruction set what it answers here."""

from typing import Any

from edgekit.artifact import Artifact
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.devices.run import Pass, run_agent
from edgekit.measure.golden import pick_rows
from edgekit.measure.parity import compare
from edgekit.measure.proof import per_answer
from edgekit.preprocess import Encoded


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
    of equal predictions), ``max_difference`` and ``mean_difference`` of single outputs. Each row
    runs alone, at its true length. Raises DeviceError when either cannot run the file, or not
    within ``timeout`` seconds.
    """
    sample = encoded.rows(pick_rows(encoded, rows))
    passes = [Pass("alone", "outputs")]
    there = run_agent(artifact, sample, passes, threads=1, device=device, timeout=timeout)
    here = run_agent(artifact, sample, passes, threads=1, device=HOST, timeout=timeout)
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
    }
