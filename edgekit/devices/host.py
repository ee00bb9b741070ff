"""This host as a device: the agent in a fresh process."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Format
from edgekit.devices.process import run_process
from edgekit.errors import UsageError


@dataclass(frozen=True)
class Host:
    """This machine; ``python`` is the interpreter of the environment with the runtime.

    under: a command that runs the agent's, and watches it.
    """

    python: str = sys.executable
    name: str = "host"
    timed: bool = True
    formats: tuple[Format, ...] = ("onnx", "tflite", "torchscript")
    under: tuple[str, ...] = ()

    def missing(self) -> str | None:
        return None

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        command = [*self.under, self.python, "-s", "agent.py", "job.json", "result.json"]
        run_process(command, folder, timeout=timeout, what=job["file"], where=self.name)


HOST = Host()


def open_device(rest: str) -> Host:
    """``host`` has no more to its name. Raises UsageError."""
    if rest:
        raise UsageError(f"--device: {f'host:{rest}'!r} is one word too many; write host")
    return HOST
