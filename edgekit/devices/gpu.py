"""This machine's NVIDIA GPU: ONNX files through ONNX Runtime's CUDA provider, TorchScript on CUDA.

Not tried on a GPU yet: the tests cover what a machine without one says.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Format
from edgekit.devices.host import HOST
from edgekit.errors import UsageError

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """The first NVIDIA GPU. Memory figures are of the host's memory, not the GPU's."""

    name: str = "gpu"
    timed: bool = True
    formats: tuple[Format, ...] = ("onnx", "torchscript")

    def missing(self) -> str | None:
        if not _DRIVER.is_file() and shutil.which("nvidia-smi") is None:
            return "there is no NVIDIA driver here; run on a machine with an NVIDIA GPU"
        return None

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        job = {**job, "accelerator": "cuda"}
        (folder / "job.json").write_text(json.dumps(job))
        HOST.run(folder, job, timeout)


def open_device(rest: str) -> Gpu:
    """``gpu`` has no more to its name. Raises UsageError."""
    if rest:
        raise UsageError(f"--device: {f'gpu:{rest}'!r} is one word too many; write gpu")
    return Gpu()
