"""Somewhere a file runs: what every device does, and the names that people call them by.

host                              this machine
runtime:<package>==<version>      this machine, with another version of the runtime
emulated:arm64[-<core>]           64-bit Arm under qemu; its times mean nothing
ssh:<user@host>                   a board
adb[:<serial>]                    a phone
browser                           headless Chromium
gpu                               this machine's NVIDIA GPU
gpu-delegate                      LiteRT's GPU accelerator on a software GPU; no times either
"""

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from edgekit.artifact import Format
from edgekit.errors import DeviceError, UsageError

# Where each kind's ``open_device(rest of the name)`` lives: only the kind asked for is imported.
_KINDS = {
    "host": "host",
    "runtime": "runtime",
    "emulated": "emulated",
    "ssh": "ssh",
    "adb": "adb",
    "browser": "browser",
    "gpu": "gpu",
    "gpu-delegate": "gpu_delegate",
}


class Device(Protocol):
    """Runs the agent's job (``agent.py``) somewhere."""

    @property
    def name(self) -> str:
        """As people write it, in full: ``emulated:arm64-cortex-a76``."""
        ...

    @property
    def timed(self) -> bool:
        """Whether its times are real; those of an emulated device are never shown."""
        ...

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats that it runs."""
        ...

    def missing(self) -> str | None:
        """Why it cannot be used now and how to mend that, or ``None`` when it can. Quick."""
        ...

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        """Run the job in ``folder`` and leave ``result.json`` there.

        The folder holds ``agent.py``, ``job.json`` and the files that the job names, all by their
        names alone. Whatever was copied elsewhere is removed again. Raises DeviceError when the
        device is gone, the process crashed (naming the signal) or ``timeout`` seconds have passed.
        """
        ...


@runtime_checkable
class Prepared(Device, Protocol):
    """A device that is made ready once, in the cache folder."""

    def set_up(self) -> None:
        """Fetch and unpack what it needs; nothing outside the cache folder is changed.

        Raises DeviceError.
        """
        ...


def kinds() -> tuple[str, ...]:
    """What a device's name starts with."""
    return tuple(_KINDS)


def open_device(name: str) -> Device:
    """A device by its name; nothing is run yet. Raises UsageError for a name that is none."""
    kind, _, rest = name.partition(":")
    if kind not in _KINDS:
        near = difflib.get_close_matches(kind, _KINDS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(_KINDS)}"
        raise UsageError(f"--device: no device {name!r}; {hint}")
    module = importlib.import_module(f"edgekit.devices.{_KINDS[kind]}")
    device: Device = module.open_device(rest)
    return device


def ready(name: str) -> Device:
    """A device that can be used now. Raises UsageError and DeviceError.

    The environment of a runtime is made on the way: it is small, and asked for by its version.
    Others are fetched only by ``edgekit devices setup``.
    """
    device = open_device(name)
    if name.startswith("runtime:") and isinstance(device, Prepared):
        device.set_up()
    reason = device.missing()
    if reason is not None:
        raise DeviceError(f"{device.name}: {reason}")
    return device
