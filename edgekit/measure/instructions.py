"""Instructions of one row: counted by the processor, so that no other work on the machine moves it.

The agent runs twice under ``perf stat`` (Linux, Debian's package linux-perf), once over the rows
and once over them twice; what is more the second time is the rows' alone. User space, one thread.
Virtual machines often hide the counter: then there is no figure.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit.devices.host import Host
from edgekit.devices.run import Pass, run_agent
from edgekit.preprocess import Encoded

_EVENT = "instructions:u"
_SECONDS = 10.0


def instructions_of_a_row(
    artifact: Artifact, encoded: Encoded, event: str = _EVENT
) -> float | None:
    """How many instructions the file takes for a row, in the mean; ``None`` where nothing tells.

    event: any of ``perf list``. Raises DeviceError when the file does not run.
    """
    if not can_count(event):
        return None
    rows = list(range(len(encoded)))
    counts = []
    for times in (1, 2):
        with tempfile.NamedTemporaryFile("r", suffix=".csv") as seen:
            perf = ("perf", "stat", "-x,", "-e", event, "-o", seen.name, "--")
            passes = [Pass("all", "outputs", rows * times)]
            run_agent(artifact, encoded, passes, threads=1, device=Host(under=perf))
            counts.append(read_count(Path(seen.name).read_text(), event))
    once, twice = counts
    return None if once is None or twice is None else (twice - once) / len(rows)


def can_count(event: str = _EVENT) -> bool:
    """Whether ``perf`` is here, and this processor and this user may count the event."""
    perf = shutil.which("perf")
    if perf is None:
        return False
    command = [perf, "stat", "-x,", "-e", event, "--", sys.executable, "-c", ""]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and read_count(done.stderr, event) is not None


def read_count(text: str, event: str) -> float | None:
    """The event's count in what ``perf stat -x,`` prints: value, unit, event and more."""
    for line in text.splitlines():
        value, *fields = line.split(",")
        if event in fields[:2]:
            try:
                return float(value)
            except ValueError:  # <not supported>, <not counted>
                return None
    return None
