"""The main job beside the usual way: `optimum-cli export onnx` and onnxruntime's quantizer.

    python benchmarks/main_job/run.py CHECKPOINT TRAIN.csv EVAL.csv --text text --label category
    python benchmarks/main_job/run.py sample:banking77

Both make an int8 file of the same checkpoint. Each file runs in a process of its own through the
same agent, on the same rows at their true lengths, with the same number of threads; processes
alternate for several rounds, and the ratio is taken round by round, so that a machine whose speed
drifts does not decide. The other tool lives in a virtual environment of its own (made on first
use). Writes `results.json` beside this file and prints a table.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, Tensor
from edgekit.bundle.manifest import read_manifest
from edgekit.bundle.verify import artifacts
from edgekit.data import Columns, load_data
from edgekit.devices.host import Host
from edgekit.devices.run import Pass, run_agent
from edgekit.measure.latency import summarize
from edgekit.preprocess import Encoded, TextPreprocessor
from edgekit.store import Store, cache_folder

_HERE = Path(__file__).parent
_OTHER = ["torch>=2.13,<2.14", "optimum-onnx[onnxruntime]==0.1.0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("train", nargs="?")
    parser.add_argument("eval", nargs="?")
    parser.add_argument("--text")
    parser.add_argument("--label")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", default="results.json")
    options = parser.parse_args()
    checkpoint, train, evaluation = _inputs(options)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        figures = {
            "machine": _machine(),
            "model": Path(options.model).name,
            "commands": _commands(),
            "builds": _builds(options, scratch),
        }
        other = _other_tool(checkpoint, scratch)
        figures["speed"] = _compare(options, scratch, checkpoint, train, evaluation, other)
    (_HERE / options.record).write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def _inputs(options: argparse.Namespace) -> tuple[Path, str, str]:
    if options.model.startswith("sample:"):
        from edgekit import sample

        name = options.model.removeprefix("sample:")
        train, evaluation = sample.data(name)
        return sample.checkpoint(name, Store()), str(train), str(evaluation)
    return Path(options.model), options.train, options.eval


def _machine() -> dict[str, Any]:
    from edgekit.devices.agent import fingerprint

    found = fingerprint({"threads": 0}, "")
    return {key: found[key] for key in ("machine", "cpu", "cores", "features")} | {
        "python": platform.python_version()
    }


def _commands() -> dict[str, float]:
    """Seconds of `edgekit --help`, the median of nine."""
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgekit", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return {"help_seconds": statistics.median(seconds)}


def _builds(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Cold build and rebuild of one target, and the other variants' bytes and accuracy."""
    found: dict[str, Any] = {}
    variants = {
        "untrimmed": ["--target", "android-arm64", "--budget", "24.5MB"],
        "trimmed": ["--target", "android-arm64", "--budget", "15MB"],
        "onnx-trimmed": ["--target", "linux-arm64", "--budget", "15MB"],
        "onnx": ["--target", "linux-arm64"],
    }
    for name, flags in variants.items():
        cache = scratch / f"cache-{name}"
        environment = {**os.environ, "EDGEKIT_CACHE": str(cache)}
        if options.model.startswith("sample:"):
            # The sample's training is not part of the job; all else is made anew.
            shutil.copytree(cache_folder() / "sample", cache / "sample")
        command = [sys.executable, "-m", "edgekit", "build", options.model]
        for flag in ("text", "label"):
            if getattr(options, flag):
                command += [f"--{flag}", getattr(options, flag)]
        if options.train:
            command += ["--data", options.train, "--eval", options.eval]
        command += [*flags, "--output", str(scratch / name)]
        cold = _timed(command, environment)
        again = _timed(command, environment)
        target = flags[1]
        manifest = read_manifest(scratch / name / target)
        proof = manifest.models[0].proof
        found[name] = {
            "cold": cold,
            "again": again,
            "shipped_bytes": manifest.shipped_bytes,
            "predicted_bytes": manifest.models[0].predicted_bytes,
            "file_bytes": next(e.bytes for e in manifest.files if e.role == "model"),
            "metrics": proof["metrics"],
            "agreement": proof["agreement"],
            "lineage": manifest.model.lineage,
            "lengths": manifest.models[0].lengths,
        }
    return found


def _timed(command: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Wall seconds, and the peak bytes of the largest process."""
    code = (
        "import json, resource, subprocess, sys, time; started = time.perf_counter(); "
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(json.dumps({'seconds': time.perf_counter() - started, 'peak_bytes': "
        "1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _other_tool(checkpoint: Path, scratch: Path) -> dict[str, Any]:
    """The other tool's environment, and its int8 file of the checkpoint."""
    home = cache_folder() / "environments" / "optimum-onnx-0.1.0"
    python = home / "bin" / "python"
    if not python.exists():
        venv.create(home, with_pip=True)
        for package in _OTHER:
            subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    tool = str(home / "bin" / "optimum-cli")
    float_folder, folder = scratch / "optimum", scratch / "optimum-int8"
    started = time.perf_counter()
    quiet = {"check": True, "capture_output": True}
    subprocess.run(
        [
            tool,
            "export",
            "onnx",
            "-m",
            str(checkpoint),
            "--task",
            "text-classification",
            str(float_folder),
        ],
        **quiet,
    )
    subprocess.run(
        [
            *(tool, "onnxruntime", "quantize", "--onnx_model", str(float_folder)),
            *("--per_channel", "--avx512_vnni", "-o", str(folder)),
        ],
        **quiet,
    )
    return {
        "python": str(python),
        "file": folder / "model_quantized.onnx",
        "seconds": time.perf_counter() - started,
    }


def _compare(
    options: argparse.Namespace,
    scratch: Path,
    checkpoint: Path,
    train: str,
    evaluation: str,
    other: dict[str, Any],
) -> dict[str, Any]:
    """Alternating processes over the same rows; ratios round by round."""
    columns = Columns(options.text, None, options.label)
    data = load_data(
        train,
        evaluation,
        task="text-classification",
        problem="single-label",
        columns=columns,
        seed=0,
    )
    assert data.eval is not None
    rows = data.eval.take(range(0, len(data.eval), max(1, len(data.eval) // 300)))
    texts = {
        "optimum": _encode(checkpoint / "tokenizer.json", rows, types=True),
        "untrimmed": _encode(scratch / "untrimmed/android-arm64/tokenizer.json", rows),
        "trimmed": _encode(scratch / "trimmed/android-arm64/tokenizer.json", rows),
    }
    ids = [Tensor(name, "int64", ("b", "l")) for name in texts["optimum"].arrays]
    files: dict[str, tuple[Artifact, str]] = {
        "optimum": (
            Artifact(other["file"], "onnx", "int8-dynamic", tuple(ids), ()),
            other["python"],
        )
    }
    for name in ("untrimmed", "trimmed"):
        folder = scratch / name / "android-arm64"
        files[name] = (artifacts(folder, read_manifest(folder))[0], sys.executable)
    latency: dict[str, list[float]] = {name: [] for name in files}
    memory: dict[str, list[int]] = {name: [] for name in files}
    everything = list(range(len(rows)))
    passes = [Pass("latency", "latency", everything, seconds=options.seconds)]
    for _ in range(options.rounds):
        for name, (artifact, python) in files.items():
            result = run_agent(
                artifact, texts[name], passes, threads=options.threads, device=Host(python)
            )
            latency[name].append(summarize(result["passes"]["latency"]).p50)
            memory[name].append(result["memory"]["peak"] - result["memory"]["start"])
    return {
        "threads": options.threads,
        "rounds": options.rounds,
        "rows": len(rows),
        "other_file_bytes": other["file"].stat().st_size,
        "other_seconds": other["seconds"],
        "p50_seconds": {name: _spread(values) for name, values in latency.items()},
        "peak_bytes": {name: _spread(values) for name, values in memory.items()},
        "p50_ratio_to_optimum": {
            name: _spread([a / b for a, b in zip(latency[name], latency["optimum"], strict=True)])
            for name in ("untrimmed", "trimmed")
        },
        "peak_ratio_to_optimum": {
            name: _spread([a / b for a, b in zip(memory[name], memory["optimum"], strict=True)])
            for name in ("untrimmed", "trimmed")
        },
    }


def _encode(tokenizer: Path, rows: Any, *, types: bool = False) -> Encoded:
    """Rows through a tokenizer file; with token types where the other tool's file takes them."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    loaded.no_padding()
    loaded.no_truncation()
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))
    return TextPreprocessor(loaded.to_str(), 512, 0, names).encode(rows)


def _spread(values: list[Any]) -> dict[str, float]:
    return {
        "min": float(np.min(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
    }


if __name__ == "__main__":
    main()
