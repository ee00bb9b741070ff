"""What people read after a build, a benchmark and a verification."""

from pathlib import Path
from typing import Any

import pytest

from edgekit.budget import Budget, judge
from edgekit.bundle.bench import Bench
from edgekit.cli import render
from edgekit.measure.compare import Comparison
from edgekit.measure.measurement import Measurement
from edgekit.pipeline import BuildResult, BundleResult
from edgekit.plan.propose import Plan
from edgekit.project import read_flags, resolve

RECORD: dict[str, Any] = {
    "rows": 3080,
    "agreement": 0.9961,
    "metrics": {
        "original": {"accuracy": 0.9289, "matthews": 0.927},
        "file": {"accuracy": 0.9283, "matthews": 0.9265},
        "drop": 0.0006,
    },
    "load_seconds": 0.0213,
    "first_run_seconds": 0.004,
    "latency": {"p50": 0.00127, "p90": 0.0025, "samples": 900},
    "peak_memory": 31_400_000,
    "device": {"cpu": "A CPU", "machine": "x86_64", "threads": 2, "runtime": "LiteRT 2.3"},
}


def result(folder: Path, bundles: bool = True) -> BuildResult:
    (folder / "model.tflite").write_bytes(b"x" * 1_234_000)
    verdict = judge(
        Budget(size=1_000_000, accuracy_drop=0.01, memory=40_000_000),
        size=1_300_000,
        latency=None,
        memory=None,
        accuracy_drop=0.0006,
    )
    bundle = BundleResult("android-arm64", folder, 1_300_000, {"model.tflite": RECORD}, verdict)
    plan = Plan((), (), False, (), 90_000_000, None, ("eval rows were split off train.csv",))
    return BuildResult(plan, (bundle,) if bundles else ())


def test_a_build_shows_the_file_beside_the_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render.show_bundles(result(tmp_path))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "note: eval rows were split off train.csv" in lines
    assert "android-arm64 1.3 MB to ship, 69.2x smaller" in lines
    assert "bytes 90 MB 1.234 MB" in lines
    assert "accuracy 92.89 % 92.83 % (-0.06 points)" in lines
    assert "matthews 0.9270 0.9265 (-0.0005)" in lines
    assert "agreement 99.61 %" in lines
    assert "p50 1.27 ms" in lines
    assert "peak memory 31.4 MB" in lines
    assert "measured on A CPU, 2 threads, LiteRT 2.3, 3080 rows" in lines
    assert "✗ size 1.3 MB is above the limit 1 MB" in lines
    assert "? memory was not measured (limit 40 MB)" in lines
    assert "✓ accuracy-drop 0.06 % is within 1.00 %" in lines
    assert lines[-1].endswith(f"next: edgekit verify {tmp_path}")


def test_a_dry_run_says_that_nothing_was_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render.show_bundles(result(tmp_path, bundles=False))
    assert "nothing was built (--dry-run)" in capsys.readouterr().out


def measurement(**changes: Any) -> Measurement:
    fields = {
        "file": "model.onnx",
        "format": "onnx",
        "bytes": 1000,
        "device": "host",
        "timed": True,
        "load_seconds": 0.01,
        "first_run_seconds": 0.02,
        "latency": {
            "p50": 0.001,
            "p90": 0.002,
            "p99": None,
            "low": 0.00098,
            "high": 0.00102,
            "wide": True,
            "steady": True,
            "samples": 100,
            "lengths": {4: 0.0005, 8: 0.001},
        },
        "threads": 2,
        "one_thread": None,
        "throughput": {"batch": 8, "rows_per_second": 1234.5},
        "overhead_seconds": 1e-6,
        "memory": dict.fromkeys(["empty", "loaded", "peak", "above_empty", "share", "mapped"]),
        "fingerprint": RECORD["device"],
        "static": {
            "macs": 111_921_024,
            "weight_bytes": 11_012_764,
            "activation_bytes": 165_936,
            "ops": {"MUL": 86, "ADD": 45},
            "parameters": 14_490_263,
            "length": 12,
        },
        "conditions": None,
    }
    return Measurement.model_validate({**fields, **changes})


def test_a_benchmark_has_a_column_for_each_file_and_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    emulated = dict.fromkeys(["load_seconds", "first_run_seconds", "latency", "throughput"])
    elsewhere = measurement(device="emulated:arm64-cortex-a53", timed=False, **emulated)
    here = measurement(instructions=1.5e8)
    render.show_measurements(Bench(Path("x"), "golden inputs", 16, (here, elsewhere)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["model.onnx host model.onnx emulated:arm64-cortex-a53", "bytes 1 kB 1 kB"]
    assert "p50 1 ms" in lines
    assert "± 2.0 %" in lines
    assert "p50 at 8 1 ms" in lines
    assert "rows a second 1234 (by 8)" in lines
    assert "peak memory not known not known" in lines
    assert "instructions 150.0 M" in lines
    assert "MACs 111.9 M 111.9 M" in lines
    assert "operators 131 131" in lines
    assert not any(line.startswith("p99") for line in lines)
    assert any(line.endswith("its times mean nothing and are not shown") for line in lines)
    assert any("time ran out with a wide interval" in line for line in lines)


@pytest.mark.parametrize("outcome", ["faster", "slower", "same", "inconclusive"])
def test_a_comparison_is_a_verdict_and_what_it_rests_on(
    outcome: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    found = Comparison(outcome, 1.1, 1.08, 1.12, 0.03, (1.0, 0.99), 900, RECORD["device"])
    render.show_comparison(found, "new.tflite", "old.tflite")
    verdict, rest, _ = capsys.readouterr().out.splitlines()
    assert outcome in verdict.replace("as fast as", "same").replace("too noisy", "inconclusive")
    assert "ratio 1.100, 95 % interval 1.080 to 1.120; against itself up to 1.0 % apart" in rest


def test_settings_are_echoed_with_what_set_them(capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"model": "x", "target": ["web-wasm"], "budget": "size=3MB,accuracy-drop=1%"}
    render.show_settings(resolve(None, read_flags(flags)))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "model x (flag)" in lines
    assert "budget size 3 MB, accuracy-drop 1.00 % (flag)" in lines
    assert "output dist (default)" in lines
    assert not any(line.startswith("eval") for line in lines)
