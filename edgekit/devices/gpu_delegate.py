"""LiteRT's GPU accelerator as a device, on a GPU made of software.

SwiftShader is a Vulkan driver that computes on the CPU. With it the accelerator compiles and runs
a file as on a phone: which operators it takes, and what they answer, is real; times are not.
Chromium brings SwiftShader along, and a Vulkan loader.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from edgekit.artifact import Format
from edgekit.devices.process import run_process, run_tool
from edgekit.errors import DeviceError, OutputError, UsageError
from edgekit.store import cache_folder

# What is needed of Chromium, and the package that has it on Debian.
_DRIVER = "libvk_swiftshader.so"
_LOADER = "libvulkan.so.1"
_ICD = "vk_swiftshader_icd.json"  # tells the loader where the driver is
_PACKAGE = "chromium-common"
_INSTALLED = Path("/usr/lib/chromium")
_NAME = "gpu-delegate"


@dataclass(frozen=True)
class GpuDelegate:
    """TFLite files on LiteRT's GPU accelerator; the result's ``coverage`` says what it took."""

    python: str = sys.executable
    name: str = "gpu-delegate"
    timed: bool = False
    formats: tuple[Format, ...] = ("tflite",)

    def missing(self) -> str | None:
        reason = _unfit()
        if reason is None and _vulkan() is None:
            reason = "no SwiftShader here; run `edgekit devices setup gpu-delegate`"
        return reason

    def set_up(self) -> None:
        """Take Chromium's SwiftShader from the machine's package sources, if it is not here.

        Raises DeviceError, or OutputError when the cache cannot be written.
        """
        reason = _unfit()
        if reason is not None:
            raise DeviceError(f"{self.name}: {reason}")
        home = _home()
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(str(home) + ".lock"):
                if _vulkan() is None:
                    _fetch(home)
        except OSError as error:
            raise OutputError(
                f"cannot write to {home.parent}: {error.strerror or error}; free some space there "
                "or set EDGEKIT_CACHE to another folder"
            ) from None

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        vulkan = _vulkan()
        assert vulkan is not None
        (folder / "job.json").write_text(json.dumps({**job, "accelerator": self.name}))
        with tempfile.TemporaryDirectory(prefix="edgekit-vulkan-") as runtime:
            icd = Path(runtime) / _ICD
            _write_icd(icd, vulkan / _DRIVER)
            run_process(
                [self.python, "-s", "agent.py", "job.json", "result.json"],
                folder,
                timeout=timeout,
                what=job["file"],
                where=self.name,
                environment={
                    "VK_ICD_FILENAMES": str(icd),
                    "VK_DRIVER_FILES": str(icd),
                    "XDG_RUNTIME_DIR": runtime,
                    "LD_LIBRARY_PATH": os.pathsep.join(
                        filter(None, [str(vulkan), os.environ.get("LD_LIBRARY_PATH")])
                    ),
                },
            )


def open_device(rest: str) -> GpuDelegate:
    """``gpu-delegate`` has no more to its name. Raises UsageError."""
    if rest:
        raise UsageError(
            f"--device: {f'gpu-delegate:{rest}'!r} is one word too many; write gpu-delegate"
        )
    return GpuDelegate()


def _unfit() -> str | None:
    """Why this machine can never run it."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "LiteRT's GPU accelerator runs on Linux on x86-64 here; use such a machine"
    return None


def _home() -> Path:
    return cache_folder() / "devices" / "gpu-delegate"


def _vulkan() -> Path | None:
    """The folder with driver and loader: the installed Chromium's, or our own."""
    for folder in (_INSTALLED, _home()):
        if (folder / _DRIVER).is_file() and (folder / _LOADER).is_file():
            return folder
    return None


def _write_icd(path: Path, driver: Path) -> None:
    icd = {"library_path": str(driver), "api_version": "1.0.5"}
    path.write_text(json.dumps({"file_format_version": "1.0.0", "ICD": icd}))


def _fetch(home: Path) -> None:
    """Fill ``home``, by one rename at the end."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DeviceError(
                f"gpu-delegate: no {tool} here to fetch SwiftShader with; it comes with Debian's "
                f"{_PACKAGE}: put its {_DRIVER} and {_LOADER} into {home}"
            )
    partial = Path(tempfile.mkdtemp(prefix="gpu-delegate.", suffix=".partial", dir=home.parent))
    try:
        run_tool(["apt-get", "download", _PACKAGE], "apt-get", _NAME, folder=partial)
        package = next(partial.glob("*.deb"))
        run_tool(["dpkg-deb", "-x", package.name, "unpacked"], "dpkg-deb", _NAME, folder=partial)
        found = partial / "found"
        found.mkdir()
        for name in (_DRIVER, _LOADER):
            source = partial / "unpacked" / _INSTALLED.relative_to("/") / name
            if not source.is_file():
                raise DeviceError(
                    f"gpu-delegate: {package.name} holds no {name}; install chromium and try again"
                )
            source.rename(found / name)
        shutil.rmtree(home, ignore_errors=True)
        found.rename(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
