"""Commands that run a job or set up a device: timed out, and their endings put in sentences."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekit.errors import DeviceError

# Seconds for one command of a set-up, which may download a hundred megabytes.
_PATIENCE = 900.0
# What apt, npm and pip begin the line with that says what is wrong.
_BLAMES = ("E:", "npm error", "ERROR:")


def run_process(
    command: Sequence[str],
    folder: Path,
    *,
    timeout: float,
    what: str,
    where: str,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run ``command`` in ``folder``; its exit code counts only when it left no ``result.json``.

    Raises DeviceError, in terms of ``what`` ran ``where``.
    """
    # Runtimes leave files of their own where temporary ones go; the folder is removed.
    quiet = {"PYTHONPATH": "", "TF_CPP_MIN_LOG_LEVEL": "3", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **quiet, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(f"{what} did not finish within {timeout:.0f} s on {where}") from None
    except OSError as error:
        raise DeviceError(f"cannot start {command[0]} on {where}: {error.strerror}") from None
    if not (folder / "result.json").is_file():
        raise died(what, where, done.returncode, done.stderr)


def run_tool(
    command: Sequence[str],
    what: str,
    device: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    status: int = 0,
) -> str:
    """Run one command of a device's set-up; what it prints.

    what: the command's name in a sentence. status: an exit code that is as good as 0. Raises
    DeviceError when it fails, or takes a quarter of an hour.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DeviceError(
            f"cannot set up {device}: {what} did not finish within {_PATIENCE:.0f} s; try again"
        ) from None
    if done.returncode not in (0, status):
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        blamed = [line for line in said if line.startswith(_BLAMES)]
        reason = re.sub("|".join(_BLAMES), "", (blamed or said[-1:])[0]).strip()
        # pip lists all that there ever were.
        reason = re.sub(r"from versions: .*?((?:[^ ,]+, ){0,2}[^ ,)]+)\)", r"newest: \1)", reason)
        raise DeviceError(
            f"cannot set up {device}: {what} failed ({reason}); check the network and where its "
            "packages come from"
        )
    return done.stdout.decode(errors="replace")


def died(what: str, where: str, status: int, stderr: bytes) -> DeviceError:
    """What to raise when the process that ran ``what`` left no result."""
    mend = ""
    if b"No module named 'numpy'" in stderr:
        mend = "; install numpy there"
    elif b"No space left on device" in stderr:
        mend = "; free some space there"
    elif status in (-9, 137):
        mend = "; that is how a system without free memory ends it"
    return DeviceError(f"the process that ran {what} on {where} {ending(status, stderr)}{mend}")


def ending(status: int, stderr: bytes) -> str:
    """``was killed by SIGSEGV (last line)`` or ``ended with status 1 (last line)``.

    ``status`` as subprocess gives it, or as a shell does: 128 and the signal's number.
    """
    last = stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    number = -status if status < 0 else status - 128
    if status and number in {each.value for each in signal.Signals}:
        return f"was killed by {signal.Signals(number).name} ({last[0]})"
    return f"ended with status {status} ({last[0]})"
