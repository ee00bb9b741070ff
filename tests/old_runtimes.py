"""Pythons with the oldest runtimes that targets promise, to run files by code of the tests' own."""

import functools
from pathlib import Path

import pytest

from edgekit.devices.runtime import open_device
from edgekit.errors import DeviceError


@functools.cache
def python_with(package: str) -> Path:
    """Python in an environment of its own with ``package``, ``<name>==<version>``."""
    device = open_device(package)
    try:
        device.set_up()
    except DeviceError as error:
        pytest.skip(f"{package} cannot be installed: {error}")
    return device.folder / "bin" / "python"
