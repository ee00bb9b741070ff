"""Re-check a bundle with nothing but the bundle: digests, golden vectors, budget.

1. Every file listed is there, with its bytes and digest; nothing else is.
2. Each model file, run in a fresh process, gives the golden answers within their tolerance.
3. The shipped bytes, counted again, keep the budget of the manifest.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, sha256
from edgekit.budget import Budget, Check, Verdict, judge
from edgekit.bundle.golden import golden_inputs, read_golden
from edgekit.bundle.manifest import Manifest, ModelFile, check_files, read_manifest
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError
from edgekit.events import Event
from edgekit.measure.refusal import refusal
from edgekit.units import format_bytes


@dataclass(frozen=True)
class VerifyResult:
    """What was checked; ``verdict`` is the worst of it."""

    path: Path
    target: str
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "target": self.target, "verdict": self.verdict.to_json()}


def verify(
    folder: Path,
    *,
    devices: Sequence[Device] = (HOST,),
    on_event: Callable[[Event], None],
) -> VerifyResult:
    """Check a bundle folder, its golden answers on each device.

    Raises BundleError when it is no bundle, or is damaged.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    golden = (_golden_checks(folder, manifest, device, on_event) for device in devices)
    checks = [
        Check("files", 0, 0, "pass", f"{len(manifest.files)} files match their digests"),
        *itertools.chain.from_iterable(golden),
        *_budget_checks(manifest),
    ]
    return VerifyResult(folder, manifest.target, Verdict(tuple(checks)))


def matrix_of(folder: Path, *, on_event: Callable[[Event], None]) -> list[Device]:
    """Every runtime from the oldest that the bundle's target promises to ours, ready to run.

    Raises BundleError as ``verify`` does, and DeviceError when a runtime cannot be had.
    """
    from edgekit.devices.runtime import matrix

    manifest = read_manifest(folder)
    devices: list[Device] = [HOST]
    for entry in manifest.models:
        promised = matrix(entry.format, manifest.runtime["package"], manifest.runtime["oldest"])
        for device in promised:
            if device in devices or device.formats != (entry.format,):
                continue
            on_event(Event("stage-start", "device", f"preparing {device.name}"))
            device.set_up()
            on_event(Event("stage-end", "device", f"preparing {device.name}"))
            devices.append(device)
    return devices


def artifacts(folder: Path, manifest: Manifest) -> list[Artifact]:
    """The model files of a bundle; one that is packed is expanded in the cache."""
    return [
        Artifact.from_json(_place(folder, entry), entry.model_dump(mode="json"))
        for entry in manifest.models
    ]


def _place(folder: Path, entry: ModelFile) -> Path:
    """The folder where the model file itself lies."""
    if entry.packed is None:
        return folder
    from edgekit.export.tflite_packed import expand_tflite
    from edgekit.store import cache_folder

    place = cache_folder() / "expanded" / sha256(folder / entry.packed)
    if not (place / entry.file).is_file():
        expand_tflite(folder / entry.packed, place / entry.file)
    return place


def _golden_checks(
    folder: Path, manifest: Manifest, device: Device, on_event: Callable[[Event], None]
) -> list[Check]:
    content = read_golden(folder)
    checks = []
    for artifact in artifacts(folder, manifest):
        if artifact.format not in device.formats and device is not HOST:
            continue
        name = artifact.path.name
        where = name if device is HOST else f"{name} on {device.name}"
        on_event(Event("stage-start", "golden", f"running {where} on the golden inputs"))
        check = _golden_check(artifact, content, device, where)
        checks.append(check)
        on_event(Event("stage-end", "golden", check.reason))
    if not checks:
        formats = ", ".join(device.formats)
        reason = f"{device.name} runs {formats}, which this bundle does not hold"
        checks.append(Check("golden", 0, None, "inconclusive", reason))
    return checks


def _golden_check(artifact: Artifact, content: dict[str, Any], device: Device, where: str) -> Check:
    name = artifact.path.name
    encoded = golden_inputs(content, artifact)
    try:
        found = run_agent(artifact, encoded, [Pass("golden", "outputs")], threads=1, device=device)
    except DeviceError as error:
        reason = refusal(artifact, str(error))
        return Check("golden", 0, None, "fail" if reason else "inconclusive", reason or str(error))
    worst = _worst(found["passes"]["golden"]["outputs"], content, name, encoded.lengths)
    limit = content["tolerance"][name]
    reason = f"{where}: golden outputs differ by {worst:.2g} of their range (limit {limit:g})"
    return Check("golden", limit, worst, "pass" if worst <= limit else "fail", reason)


def _worst(outputs: Any, content: dict[str, Any], file: str, lengths: Any) -> float:
    """Largest difference from the golden answers, over the largest golden magnitude."""
    gap, largest = 0.0, 1e-12
    for index, row in enumerate(content["rows"]):
        expected = np.asarray(row["outputs"][file], dtype=np.float32)
        found = outputs[index]
        if lengths is not None and expected.ndim == 2:
            found = found[: lengths[index]]
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        gap = max(gap, float(np.abs(found - expected).max(initial=0.0)))
        largest = max(largest, float(np.abs(expected).max(initial=0.0)))
    return gap / largest


def _budget_checks(manifest: Manifest) -> list[Check]:
    shipped = sum(entry.bytes for entry in manifest.files if entry.shipped)
    if shipped != manifest.shipped_bytes:
        return [
            Check(
                "size",
                manifest.shipped_bytes,
                shipped,
                "fail",
                f"the manifest says {format_bytes(manifest.shipped_bytes)} are shipped, "
                f"the files are {format_bytes(shipped)}",
            )
        ]
    size = manifest.budget.get("size")
    limits = Budget(size=None if size is None else int(size))
    return list(judge(limits, size=shipped, latency=None, memory=None, accuracy_drop=None).checks)
