"""Whether a file answers on another device what it answers here."""

from typing import Any

from edgekit.artifact import Artifact
from edgekit.devices.device import Device
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import ProofError
from edgekit.measure.golden import pick_rows
from edgekit.measure.parity import compare, too_far
from edgekit.measure.proof import per_answer
from edgekit.preprocess import Encoded
from edgekit.target import Target


def prove_on(
    device: Device,
    artifact: Artifact,
    encoded: Encoded,
    target: Target,
    task: str,
    problem: str | None,
) -> dict[str, Any]:
    """Run the file on some rows, spread over the lengths, on the device and on this host.

    Returns, JSON-able, the device's name, its runtime, the difference of the answers, and what
    the device tells of its coverage. Each row runs alone, at its true length. Raises ProofError
    when the difference is beyond the target's tolerance or an accelerator leaves operators to the
    CPU, and DeviceError when the device cannot run the file.
    """
    sample = encoded.rows(pick_rows(encoded))
    passes = [Pass("alone", "outputs")]
    there = run_agent(artifact, sample, passes, threads=1, device=device)
    here = run_agent(artifact, sample, passes, threads=1)
    difference = compare(
        per_answer(there["passes"]["alone"]["outputs"], sample),
        per_answer(here["passes"]["alone"]["outputs"], sample),
        task=task,
        problem=problem,
    )
    name = artifact.path.name
    reason = too_far(difference, target, artifact.scheme)
    if reason is not None:
        raise ProofError(f"{name} answers otherwise on {device.name} than here: {reason}")
    coverage = there.get("coverage")
    if coverage is not None and not coverage["fully_accelerated"]:
        left = ", ".join(coverage["on_cpu"]) or "which ones is not told"
        raise ProofError(
            f"{device.name} leaves operators of {name} to the CPU ({left}); choose another target"
        )
    return {
        "device": device.name,
        "runtime": there["fingerprint"]["runtime"],
        "coverage": coverage,
        **difference.to_json(),
    }
