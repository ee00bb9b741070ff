"""This host as a device: the agent in a fresh process."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.errors import DeviceError
from edgekit.preprocess import Encoded

_AGENT = Path(__file__).with_name("agent.py")
_PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "torchscript": "torch"}


@dataclass(frozen=True)
class Pass:
    """One thing for the agent to do: ``outputs`` of rows, or ``latency`` over rows.

    rows: which rows of the inputs; none means all. batch, width: for outputs (``width`` pads each
    call to that many tokens; none takes the true length, or its bucket).
    seconds, samples, warmup: for latency.
    """

    name: str
    kind: str
    rows: Sequence[int] | None = None
    batch: int = 1
    width: int | None = None
    seconds: float = 0.0
    samples: int = 2000
    warmup: int = 0


def run_agent(
    artifact: Artifact,
    encoded: Encoded,
    passes: Sequence[Pass],
    *,
    threads: int,
    python: str = sys.executable,
    timeout: float = 1800,
) -> dict[str, Any]:
    """What the agent saw: its result with outputs as float32 arrays.

    ``python`` is the interpreter of the environment whose runtime is under test. Raises
    DeviceError when the runtime refuses the file, crashes or does not finish.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-agent-") as name:
        folder = Path(name)
        arrays: dict[str, npt.NDArray[Any]] = dict(encoded.arrays)
        if encoded.lengths is not None:
            arrays["lengths"] = encoded.lengths
        np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
        job = {
            "file": str(artifact.path.absolute()),
            "format": artifact.format,
            "threads": threads,
            "lengths": list(artifact.lengths),
            "inputs": str(folder / "inputs.npz"),
            "signature_inputs": [tensor.name for tensor in artifact.inputs],
            "passes": [
                vars(each) | {"rows": None if each.rows is None else [int(r) for r in each.rows]}
                for each in passes
            ],
        }
        (folder / "job.json").write_text(json.dumps(job))
        command = [python, "-s", str(_AGENT), str(folder / "job.json"), str(folder / "result.json")]
        result = _result(command, folder, artifact, timeout)
    for found in result["passes"].values():
        if "outputs" in found:
            found["outputs"] = decode(found["outputs"])
    return result


def decode(fields: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """An array as the agent writes it."""
    data = np.frombuffer(base64.b64decode(fields["data"]), dtype="<f4")
    return data.reshape(fields["shape"]).astype(np.float32)


def _result(command: list[str], folder: Path, artifact: Artifact, timeout: float) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    name = artifact.path.name
    try:
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{name} did not finish within {timeout:.0f} s on this host") from None
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        raise DeviceError(f"the process that ran {name} {_ending(done)}") from None
    if result["error"]:
        missing = "No module named" in result["error"]
        package = _PACKAGES[artifact.format]
        mend = f"; install {package}" if missing else ""
        raise DeviceError(f"{name} does not run on {package}: {result['error']}{mend}")
    return result


def _ending(done: subprocess.CompletedProcess[bytes]) -> str:
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    if done.returncode < 0:
        return f"was killed by {signal.Signals(-done.returncode).name} ({last[0]})"
    return f"ended with status {done.returncode} ({last[0]})"
