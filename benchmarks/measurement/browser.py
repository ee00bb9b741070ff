"""Headless Chromium beside this host: the same ONNX files, the same rows, the two answers.

    edgekit devices setup browser
    python benchmarks/measurement/browser.py

The sample's model as fp32 and as dynamic int8, on the first 32 eval rows, by onnxruntime-web on
one WebAssembly thread and on two, against onnxruntime. Writes `browser.json` beside this file.
"""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import sample
from edgekit.artifact import Scheme
from edgekit.data import Rows
from edgekit.devices.browser import Browser
from edgekit.devices.run import Pass, run_agent
from edgekit.export import export_artifact
from edgekit.measure.latency import summarize
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.store import Store

ROWS = 32
SCHEMES: tuple[Scheme, ...] = ("fp32", "int8-dynamic")
PASSES = [
    Pass("outputs", "outputs"),
    Pass("latency", "latency", list(range(ROWS)), seconds=5),
]


def main() -> None:
    model = load_model(identify(str(sample.checkpoint("banking77", Store()))))
    with tempfile.TemporaryDirectory() as scratch:
        figures = {scheme: _compare(model, scheme, Path(scratch) / scheme) for scheme in SCHEMES}
    record = Path(__file__).with_suffix(".json")
    record.write_text(json.dumps({"model": "sample:banking77", "rows": ROWS, **figures}, indent=1))
    print(record.read_text())


def _compare(model: Model, scheme: Scheme, scratch: Path) -> dict[str, Any]:
    artifact = export_artifact(model, scratch, "onnx", scheme)
    with sample.data("banking77")[1].open(newline="") as stream:
        texts = tuple(row["text"] for row, _ in zip(csv.DictReader(stream), range(ROWS)))
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(Rows(texts=texts))
    host = run_agent(artifact, rows, PASSES, threads=1)
    expected = host["passes"]["outputs"]["outputs"]
    figures: dict[str, Any] = {
        "bytes": artifact.bytes,
        "scheme_error": float(np.abs(expected - reference_outputs(model, rows)).max()),
        "host": _speed(host),
    }
    for threads in (1, 2):
        result = run_agent(artifact, rows, PASSES, threads=threads, device=Browser())
        found = result["passes"]["outputs"]["outputs"]
        differences = np.abs(found - expected).max(axis=-1)
        figures[f"browser, threads: {threads}"] = {
            "largest_difference": float(differences.max()),
            "rows_within_1e-4": int((differences < 1e-4).sum()),
            "equal_predictions": int((found.argmax(-1) == expected.argmax(-1)).sum()),
            **_speed(result),
        }
    return figures


def _speed(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "latency": summarize(result["passes"]["latency"]).to_json(),
        "load_seconds": result["load_seconds"],
        "memory": result["memory"],
        "device": result["fingerprint"],
    }


if __name__ == "__main__":
    main()
