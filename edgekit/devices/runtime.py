"""This machine with another version of a runtime, in a virtual environment of its own.

An environment is made once, in the cache folder, by pip.
"""

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Format
from edgekit.devices.process import run_process, run_tool
from edgekit.errors import UsageError

_FORMATS: dict[str, Format] = {
    "onnxruntime": "onnx",
    "tflite-runtime": "tflite",
    "ai-edge-litert": "tflite",
    "torch": "torchscript",
}
# The first version of each that was built for numpy 2; none of tflite-runtime ever was.
_NUMPY_2 = {"onnxruntime": "1.19", "tflite-runtime": "999", "torch": "2.3", "ai-edge-litert": "1.1"}
_DONE = "complete"
# What a file is tried on between the oldest version that its target promises and ours: the last
# of a line of releases, since each line knows the operators of those before.
_MILESTONES = {
    "onnx": ("onnxruntime==1.17.0", "onnxruntime==1.20.1", "onnxruntime==1.24.4"),
    "tflite": ("tflite-runtime==2.14.0", "ai-edge-litert==1.0.1", "ai-edge-litert==1.4.0"),
}


@dataclass(frozen=True)
class Runtime:
    """One version of one runtime package."""

    package: str
    version: str
    timed: bool = True

    @property
    def name(self) -> str:
        return f"runtime:{self.package}=={self.version}"

    @property
    def formats(self) -> tuple[Format, ...]:
        return (_FORMATS[self.package],)

    @property
    def folder(self) -> Path:
        from edgekit.store import cache_folder

        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return cache_folder() / "devices" / f"{self.package}-{self.version}-{python}"

    def missing(self) -> str | None:
        if (self.folder / _DONE).is_file():
            return None
        return f"not set up; run: edgekit devices setup {self.name}"

    def set_up(self) -> None:
        """Make the environment, if it is not there. Raises DeviceError when pip cannot."""
        from filelock import FileLock

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock"):
            if self.missing() is None:
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            partial = tempfile.mkdtemp(prefix=f"{self.folder.name}.", dir=self.folder.parent)
            try:
                self._install(Path(partial))
                Path(partial, _DONE).touch()
                Path(partial).rename(self.folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        command = [str(_python(self.folder)), "-s", "agent.py", "job.json", "result.json"]
        run_process(command, folder, timeout=timeout, what=job["file"], where=self.name)

    def _install(self, folder: Path) -> None:
        from packaging.version import Version

        numpy = "numpy" if Version(self.version) >= Version(_NUMPY_2[self.package]) else "numpy<2"
        # Without pip of its own: Debian keeps what installs one in a package apart.
        venv = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
        run_tool(venv, "python -m venv", self.name)
        pip = [sys.executable, "-m", "pip", "--python", str(_python(folder)), "install", "--quiet"]
        options = ["--disable-pip-version-check", "--only-binary=:all:"]
        packages = [f"{self.package}=={self.version}", numpy]
        run_tool([*pip, *options, *packages], "pip", self.name)


def open_device(rest: str) -> Runtime:
    """``<package>==<version>``. Raises UsageError for another form or an unknown package."""
    found = re.fullmatch(r"([a-z-]+)==(\d+(?:\.\d+)*)", rest)
    if found is None or found[1] not in _FORMATS:
        raise UsageError(
            f"--device: {f'runtime:{rest}'!r} names no runtime; write runtime:<package>==<version> "
            f"with one of {', '.join(_FORMATS)}"
        )
    return Runtime(found[1], found[2])


def matrix(format: Format, package: str, oldest: str) -> tuple[Runtime, ...]:
    """The runtimes from the ``oldest`` that a target promises up to the last before ours."""
    from packaging.version import Version

    names = [
        name
        for name in _MILESTONES.get(format, ())
        if not name.startswith(f"{package}==") or Version(name.partition("==")[2]) > Version(oldest)
    ]
    return tuple(open_device(name) for name in (f"{package}=={oldest}", *names))


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"
