"""Run a model file on a device: write the agent's job, and read its result."""

import base64
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.errors import DeviceError, UsageError
from edgekit.preprocess import Encoded

_AGENT = Path(__file__).with_name("agent.py")
_PACKAGES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "torchscript": "torch"}
# Where in its own sources a runtime gave up: of use to its authors only.
_SOURCE = re.compile(r"/\S+\.(?:cc|h|cpp):\d+ (?:.*?\) )?")


@dataclass(frozen=True)
class Pass:
    """One thing for the agent to do: ``outputs`` of rows, ``latency`` over rows, or ``compare``.

    rows: which rows of the inputs; none means all. batch: rows a call. width: pads each call for
    outputs to that many tokens; none takes the true length, or its bucket. seconds: how long the
    other two sample at most. precision: the width of the median's interval, as a share of the
    median, at which latency is sampled no longer.
    """

    name: str
    kind: str
    rows: Sequence[int] | None = None
    batch: int = 1
    width: int | None = None
    seconds: float = 0.0
    precision: float = 0.02


def run_agent(
    artifact: Artifact,
    encoded: Encoded,
    passes: Sequence[Pass],
    *,
    threads: int,
    device: Device = HOST,
    cores: Sequence[int] = (),
    nice: int = 0,
    against: Artifact | None = None,
    theirs: Encoded | None = None,
    timeout: float = 1800,
) -> dict[str, Any]:
    """What the agent saw: its result with outputs as float32 arrays.

    cores: the processor cores to stay on, where there are any named. nice: added to the
    niceness of the process. against: the second file of a ``compare`` pass; theirs:
    its inputs for the same rows, where they are others.
    Raises DeviceError when the device cannot be used or does not run this format, or the runtime
    refuses the file, crashes or does not finish; UsageError for cores that are not there.
    """
    if artifact.format not in device.formats:
        runs = ", ".join(device.formats)
        raise DeviceError(f"{device.name} runs {runs}, and {artifact.path.name} is none of it")
    reason = device.missing()
    if reason is not None:
        raise DeviceError(f"{device.name}: {reason}")
    with tempfile.TemporaryDirectory(prefix="edgekit-job-") as name:
        folder = Path(name)
        job = {"threads": threads, "cores": list(cores), "nice": nice}
        job |= write_files(folder, artifact, encoded, passes, against, theirs)
        (folder / "job.json").write_text(json.dumps(job))
        device.run(folder, job, timeout)
        result = _read_result(folder / "result.json", artifact, device)
    for found in result["passes"].values():
        if "missing" in found:
            raise DeviceError(f"{device.name} gives no answers: {found['missing']}")
        if "outputs" in found:
            found["outputs"] = decode(found["outputs"])
    return result


def write_files(
    folder: Path,
    artifact: Artifact,
    encoded: Encoded,
    passes: Sequence[Pass],
    against: Artifact | None,
    theirs: Encoded | None = None,
) -> dict[str, Any]:
    """Write agent, inputs and model files into ``folder``; the fields that name them in a job."""
    _put_inputs(encoded, folder / "inputs.npz")
    shutil.copyfile(_AGENT, folder / "agent.py")
    fields = {
        **_put(artifact, folder, "model"),
        "inputs": "inputs.npz",
        "passes": [
            vars(each) | {"rows": None if each.rows is None else [int(r) for r in each.rows]}
            for each in passes
        ],
    }
    if against is None:
        return fields
    other = _put(against, folder, "other")
    if theirs is not None:
        other["inputs"] = "other.npz"
        _put_inputs(theirs, folder / other["inputs"])
    return fields | {"other": other}


def _put_inputs(encoded: Encoded, path: Path) -> None:
    arrays: dict[str, npt.NDArray[Any]] = dict(encoded.arrays)
    if encoded.lengths is not None:
        arrays["lengths"] = encoded.lengths
    np.savez(path, allow_pickle=False, **arrays)


def _put(artifact: Artifact, folder: Path, name: str) -> dict[str, Any]:
    """Copy a model file into the folder; what a job says of it."""
    file = name + artifact.path.suffix
    shutil.copyfile(artifact.path, folder / file)
    return {
        "file": file,
        "format": artifact.format,
        "lengths": list(artifact.lengths),
        "signature_inputs": [tensor.name for tensor in artifact.inputs],
    }


def decode(fields: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    """An array as the agent writes it."""
    data = np.frombuffer(base64.b64decode(fields["data"]), dtype="<f4")
    return data.reshape(fields["shape"]).astype(np.float32)


def _read_result(path: Path, artifact: Artifact, device: Device) -> dict[str, Any]:
    name = artifact.path.name
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        error = result["error"]
    except (OSError, ValueError, KeyError, TypeError):
        raise DeviceError(f"{device.name} left no readable result for {name}; run again") from None
    if result.get("refused"):
        raise UsageError(f"{device.name}: {error}")
    if error:
        package = _PACKAGES[artifact.format]
        mend = f"; install {package}" if "No module named" in error else ""
        reason = _SOURCE.sub("", error)
        raise DeviceError(f"{name} does not run on {package} ({device.name}): {reason}{mend}")
    return result
