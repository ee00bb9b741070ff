"""Bundles on emulated Arm cores: is every answer the one that this host gives?

    python benchmarks/measurement/emulated.py dist/android-arm64 dist/linux-arm64

Runs each model file on sentences of the embedded sample, spread over their lengths, one at a time
at its true length, on each core and on this host. Sets the emulated device up on first use.
Writes `emulated.json` beside this file and prints a table. Differences are of logits.
"""

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit import sample
from edgekit.artifact import Artifact, sha256
from edgekit.bundle.manifest import Manifest, read_manifest
from edgekit.bundle.verify import artifacts
from edgekit.data import Columns, load_data
from edgekit.devices.agent import fingerprint
from edgekit.devices.emulated import Emulated, open_device
from edgekit.measure.elsewhere import prove_on
from edgekit.preprocess import Encoded, TextPreprocessor

_CORES = ("cortex-a53", "cortex-a76", "cortex-a710")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--cores", nargs="+", default=_CORES, metavar="CORE")
    parser.add_argument("--record", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    devices = [open_device(f"arm64-{core}") for core in options.cores]
    for device in devices:
        device.set_up()
    record = {"machine": _machine(), "qemu": devices[0].qemu(), "runs": []}
    for folder in options.bundles:
        manifest = read_manifest(folder)
        for artifact in artifacts(folder, manifest):
            encoded = _encode(folder, artifact)
            for found in _on_cores(artifact, encoded, manifest, devices, options.rows):
                record["runs"].append(found)
                # As it grows: the slowest part of it takes minutes.
                options.record.write_text(json.dumps(record, indent=1) + "\n")


def _on_cores(
    artifact: Artifact, encoded: Encoded, manifest: Manifest, devices: list[Emulated], rows: int
) -> Iterator[dict[str, Any]]:
    digest = sha256(artifact.path)
    for device in devices:
        started = time.perf_counter()
        found = prove_on(
            device,
            artifact,
            encoded,
            task=manifest.model.task,
            problem=manifest.model.problem,
            rows=rows,
            timeout=4 * 3600,
        )
        seconds = time.perf_counter() - started
        print(
            f"{artifact.path.name:14} {artifact.scheme:14} {found['device']:28} "
            f"{found['runtime']:22} {found['rows']:4} rows  {found['agreement']:7.2%} equal  "
            f"max {found['max_difference']:.3g}  mean {found['mean_difference']:.3g}  "
            f"{seconds:.0f} s",
            flush=True,
        )
        named = {"file": artifact.path.name, "scheme": artifact.scheme, "sha256": digest}
        yield named | found | {"emulation_seconds": round(seconds, 1)}


def _encode(folder: Path, artifact: Artifact) -> Encoded:
    """The sample's eval rows through the bundle's own tokenizer."""
    train, evaluation = sample.data("banking77")
    rows = load_data(
        str(train),
        str(evaluation),
        task="text-classification",
        problem="single-label",
        columns=Columns(None, None, None),
        seed=0,
    ).eval
    assert rows is not None
    settings = json.loads((folder / "preprocessor.json").read_text())
    return TextPreprocessor(
        (folder / "tokenizer.json").read_text(),
        settings["max_length"],
        settings["pad_id"],
        tuple(tensor.name for tensor in artifact.inputs),
    ).encode(rows)


def _machine() -> dict[str, Any]:
    found = fingerprint({"threads": 1}, "")
    return {key: found[key] for key in ("machine", "cpu", "features")} | {
        "python": platform.python_version()
    }


if __name__ == "__main__":
    main()
