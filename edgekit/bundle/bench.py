"""Benchmark the model files of a bundle on this host, on its golden inputs.

The golden inputs are spread over the true lengths of the eval rows that the bundle was built
with, so the figures are those of real use and need no data at hand.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.bundle.golden import golden_inputs, read_golden
from edgekit.bundle.manifest import read_manifest
from edgekit.bundle.verify import artifacts, check_files
from edgekit.devices.run import Pass, run_agent
from edgekit.events import Event, silent
from edgekit.measure.latency import summarize


def bench(
    folder: Path,
    *,
    threads: int | None = None,
    seconds: float = 5.0,
    on_event: Callable[[Event], None] = silent,
) -> dict[str, Any]:
    """Latency, load time and memory of each model file of a bundle; JSON-able, by file name.

    Times in seconds, memory in bytes above an empty process; ``threads`` as the bundle was built
    for when left out. Raises BundleError for a folder
    that is no bundle or is damaged, DeviceError when the runtime does not run a file.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    content = read_golden(folder)
    files: dict[str, Any] = {}
    for artifact in artifacts(folder, manifest):
        name = artifact.path.name
        built_for = manifest.model_file(name).proof["device"]["threads"]
        on_event(Event("stage-start", "bench", f"running {name} for {seconds:g} s"))
        encoded = golden_inputs(content, artifact)
        rows = list(range(len(encoded)))
        latency = Pass("latency", "latency", rows, seconds=seconds, warmup=len(rows))
        result = run_agent(artifact, encoded, [latency], threads=threads or built_for)
        memory = result["memory"]
        files[name] = {
            "bytes": artifact.bytes,
            "load_seconds": result["load_seconds"],
            "first_run_seconds": result["first_run_seconds"],
            "latency": summarize(result["passes"]["latency"]["samples"]).to_json(),
            "peak_memory": memory["peak"] - memory["start"] if memory["start"] else None,
            "device": result["fingerprint"],
        }
        on_event(Event("stage-end", "bench", name))
    return {"bundle": str(folder), "target": manifest.target, "files": files}
