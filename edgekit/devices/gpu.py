"""This machine's NVIDIA GPU as a device: onnxruntime's CUDA provider, and TorchScript on CUDA."""

import importlib.metadata
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Format
from edgekit.devices.process import run_process
from edgekit.errors import UsageError

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """The agent in a fresh process, told to use CUDA; it fails rather than take the CPU."""

    python: str = sys.executable
    name: str = "gpu"
    timed: bool = True
    formats: tuple[Format, ...] = ("onnx", "torchscript")

    def missing(self) -> str | None:
        if not _DRIVER.is_file() and shutil.which("nvidia-smi") is None:
            return "no NVIDIA driver here; use a machine with an NVIDIA GPU"
        if not (_onnxruntime_has_cuda() or _torch_has_cuda()):
            return (
                "neither onnxruntime nor torch has CUDA here; install onnxruntime-gpu in place of "
                "onnxruntime, or torch's CUDA build"
            )
        return None

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        (folder / "job.json").write_text(json.dumps({**job, "accelerator": "cuda"}))
        command = [self.python, "-s", "agent.py", "job.json", "result.json"]
        run_process(command, folder, timeout=timeout, what=job["file"], where=self.name)


def open_device(rest: str) -> Gpu:
    """``gpu`` has no more to its name. Raises UsageError."""
    if rest:
        raise UsageError(f"--device: {f'gpu:{rest}'!r} is one word too many; write gpu")
    return Gpu()


def _onnxruntime_has_cuda() -> bool:
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _torch_has_cuda() -> bool:
    """By its version, 2.13.0+cpu or 2.13.0+cu130: to import torch takes seconds."""
    try:
        return not importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
