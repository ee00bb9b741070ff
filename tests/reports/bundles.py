"""Bundles made by hand: a small ONNX file, and evidence by the real functions, without a build."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import __version__
from edgekit.artifact import Artifact, Tensor
from edgekit.bundle.evidence import Evidence, Prediction
from edgekit.bundle.manifest import Manifest, ManifestModel, ModelFile
from edgekit.bundle.write import write_bundle
from edgekit.data import Rows
from edgekit.measure.changes import changes
from edgekit.measure.evidence import (
    FileEvidence,
    LayerTime,
    Profile,
    StageScore,
    lengths_of,
    memory_of,
)
from edgekit.measure.expected import Expected
from edgekit.preprocess import Encoded
from edgekit.target import load_target

LABELS = tuple(f"intent_{number}" for number in range(14))


@dataclass(frozen=True)
class Made:
    """What went into a bundle, for counting again."""

    folder: Path
    truth: np.ndarray
    original: np.ndarray
    file: np.ndarray
    texts: tuple[str, ...]


def make_bundle(
    folder: Path,
    *,
    target: str = "linux-x86_64",
    labels: Sequence[str] = LABELS,
    texts: Sequence[str] = (),
    evidence: bool = True,
    proof: dict[str, Any] | None = None,
    budget: dict[str, float | None] | None = None,
    model: str = "checkpoints/intents",
    layer: str = "layer 0 attention",
    lineage: Sequence[str] = (),
) -> Made:
    """Write a bundle for 90 rows of a classification, some of whose answers changed."""
    chance = np.random.default_rng(0)
    count, classes = 90, len(labels)
    truth = chance.integers(0, classes, count)
    before = np.eye(classes, dtype=np.float32)[truth] * 3
    before[:9] = before[:9][:, ::-1]
    after = before + chance.normal(0, 1.2, before.shape).astype(np.float32)
    texts = (*texts, *(f"text number {number}" for number in range(len(texts), count)))
    rows = Rows(texts=texts)
    encoded = Encoded({"input_ids": np.zeros((count, 4), np.int32)}, np.full(count, 4, np.int32))
    expected = Expected("text-classification", "single-label", before, truth, tuple(labels), {})
    right = [float((side.argmax(1) == truth).mean()) for side in (before, after)]
    widths = chance.integers(3, 40, 400)
    timed = {"samples": list(1e-4 * widths + chance.random(400) * 1e-4), "widths": list(widths)}
    seen = FileEvidence(
        changes=changes(after, expected, rows, encoded),
        lengths=lengths_of(timed),
        memory=memory_of(
            [[0.0, 30_000_000, "start"], [0.2, 52_000_000, "loaded"], [0.3, 60_000_000, "running"]]
        ),
        profile=Profile(
            reason=None,
            inferences=4,
            total_seconds=2e-3,
            layers=[
                LayerTime(layer="embeddings", seconds=5e-4, share=0.25),
                LayerTime(layer=layer, seconds=1.5e-3, share=0.75),
            ],
        ),
        sample_score=right[1],
    )
    scratch = folder.parent / f"{folder.name}-source"
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / "model.onnx"
    _tiny_onnx(path, classes)
    figures: dict[str, Any] = {
        "rows": count,
        "agreement": float((before.argmax(1) == after.argmax(1)).mean()),
        "parity": {
            "alone": {"rows": count, "max": 0.5, "mean": 0.1, "error": 0.05, "agreement": 1.0}
        },
        "metrics": {
            "original": {"accuracy": right[0], "macro_f1": right[0]},
            "file": {"accuracy": right[1], "macro_f1": right[1]},
            "drop": right[0] - right[1],
        },
        "load_seconds": 0.01,
        "first_run_seconds": 0.02,
        "latency": {
            "p50": 1.5e-3,
            "p90": 3e-3,
            "p99": None,
            "low": 1.4e-3,
            "high": 1.6e-3,
            "samples": 400,
            "steady": True,
            "lengths": {"8": 1e-3},
            "wide": False,
        },
        "peak_memory": 30_000_000,
        "device": {
            "machine": "x86_64",
            "system": "Linux",
            "release": "6",
            "cpu": "a processor",
            "cores": 2,
            "features": ["avx2"],
            "threads": 1,
            "runtime": "onnxruntime 1.31.1",
            "memory": 8_000_000_000,
            "frequency": None,
        },
        **(proof or {}),
    }
    inputs = (Tensor("input_ids", "int64", ("batch", "length")),)
    artifact = Artifact(path, "onnx", "fp32", inputs, (Tensor("logits", "float32", (1, 2)),))
    limits = budget or {"size": 10_000_000, "latency": None, "memory": None, "accuracy_drop": None}
    manifest = Manifest(
        edgekit=__version__,
        target=target,
        runtime={"package": "onnxruntime", "oldest": "1.17.0"},
        parity={"difference": None, "agreement": 0.97},
        model=ManifestModel(
            reference=model,
            digest="d" * 64,
            task="text-classification",
            problem="single-label",
            labels=list(labels),
            lineage=list(lineage),
        ),
        files=[],
        models=[
            ModelFile(**artifact.to_json(), predicted_bytes=artifact.bytes + 40, proof=figures)
        ],
        shipped_bytes=artifact.bytes,
        budget=limits,
        verdict={
            "outcome": "fail",
            "checks": [
                {
                    "name": "size",
                    "limit": 1000,
                    "value": 1500,
                    "outcome": "fail",
                    "reason": "above",
                },
                {
                    "name": "latency",
                    "limit": 0.02,
                    "value": 0.0015,
                    "outcome": "pass",
                    "reason": "in",
                },
            ],
        },
        notes=["a note"],
        settings={
            "model": model,
            "task": None,
            "data": "train.csv",
            "eval": "my test.csv",
            "columns": {"text": None, "text_pair": None, "label": None},
            "targets": [target],
            "formats": [],
            "scheme": None,
            "budget": limits,
            "lengths": [],
            "steps": [],
            "seed": 3,
            "devices": [],
            "allow_random_calibration": False,
        },
        versions={"onnxruntime": "1.31.1"},
    )
    write_bundle(
        folder,
        target=load_target("linux-x86_64"),
        artifacts=[artifact],
        files={"labels.json": "[]"},
        golden={"tolerance": {}, "rows": []},
        evidence=Evidence(
            original_bytes=5_000_000,
            steps=["trim-vocabulary:common=10", "distill"],
            asked=["distill"],
            lengths=[],
            predicted=Prediction(scheme="int8-dynamic", models={"onnx": 100}, beside=2),
            sample=count,
            stages=[StageScore(stage="original", score=right[0])],
            files={"model.onnx": seen} if evidence else {},
        ),
        manifest=manifest,
        packed={},
    )
    return Made(folder, truth, before, after, tuple(texts))


def _tiny_onnx(path: Path, classes: int) -> None:
    weight = np.arange(32 * classes, dtype=np.float32).reshape(32, classes)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "classifier.weight"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        [numpy_helper.from_array(weight, "classifier.weight")],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    onnx.checker.check_model(str(path))
