"""Bundles with figures of one's own, written by the real writer of manifests."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.manifest import FileEntry, Manifest, ManifestModel, ModelFile, write_manifest

ROWS = 3080
DEVICE = {"cpu": "A CPU", "machine": "x86_64", "threads": 1, "runtime": "onnxruntime 1.31.1"}


def write_bundle(
    folder: Path,
    *,
    target: str = "linux-x86_64",
    model: str = "checkpoints/mine",
    size: int = 2_000_000,
    download: int | None = None,
    wrong: range | tuple[int, ...] = range(230),
    rows: Any = ROWS,
    content: bytes | None = None,
    budget: Mapping[str, float | None] | None = None,
    golden: Any = None,
    file: str = "model.onnx",
    **proof: Any,
) -> Path:
    """A bundle of one model file of ``size`` bytes (a sparse one), or with that ``content``.

    wrong: the rows that it answers wrongly. proof: what its record says otherwise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if content is None:
        with (folder / file).open("wb") as stream:
            stream.truncate(size)
    else:
        (folder / file).write_bytes(content)
    (folder / "golden.json").write_text(json.dumps(golden or {"rows": [], "tolerance": {}}))
    entries = [
        FileEntry(
            path=path.name,
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            role="model" if path.name == file else "golden",
            shipped=path.name == file,
        )
        for path in sorted(folder.iterdir())
        if path.name != "manifest.json"
    ]
    shipped = (folder / file).stat().st_size
    ends = [{"name": "x", "dtype": "float32", "shape": ["batch", 64]}]
    manifest = Manifest(
        edgekit="0.1.0",
        target=target,
        runtime={"package": "onnxruntime", "oldest": "1.17.0"},
        parity={"agreement": 0.9, "difference": None},
        model=ManifestModel(
            reference=model,
            digest="0" * 64,
            task="text-classification",
            problem="single-label",
            labels=["a", "b"],
            lineage=[],
        ),
        files=entries,
        models=[
            ModelFile(
                file=file,
                format="onnx",
                scheme="fp32",
                inputs=ends,
                outputs=[{**ends[0], "name": "logits"}],
                lengths=[],
                predicted_bytes=shipped,
                proof={**record(wrong, rows, shipped), **proof},
            )
        ],
        shipped_bytes=shipped,
        download_bytes=round(shipped * 0.8) if download is None else download,
        budget=budget or {"size": None, "latency": None, "memory": None, "accuracy_drop": None},
        verdict={},
        notes=[],
        settings={},
        versions={},
    )
    write_manifest(manifest, folder)
    return folder


def record(wrong: range | tuple[int, ...], rows: Any, size: int) -> dict[str, Any]:
    """The proof of a file that answers these rows wrongly."""
    right = np.ones(rows if isinstance(rows, int) else ROWS, bool)
    right[list(wrong)] = False
    return {
        "rows": rows,
        "rows_digest": "d" * 64,
        "agreement": 0.99,
        "metrics": {
            "primary": "accuracy",
            "original": {"accuracy": 0.93},
            "file": {"accuracy": right.mean().item()},
            "drop": 0.93 - right.mean().item(),
            "chance": 1 / 77,
        },
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
        "dtype_bytes": {"int8": size - 1000, "float32": 1000},
        "static": {
            "macs": 112_000_000,
            "weight_bytes": size,
            "activation_bytes": 100_000,
            "ops": {"MatMul": 40, "Add": 60},
            "parameters": size,
            "length": 12,
        },
        "latency": {"p50": 1.2e-3, "p90": 2e-3, "low": 1.19e-3, "high": 1.21e-3},
        "peak_memory": 40_000_000,
        "device": DEVICE,
    }
