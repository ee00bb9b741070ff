"""Run the steps of a build as several processes, under torchrun or accelerate.

Rules:

1. The launcher is one of these two, found in the Python that runs this; its own options are
   passed on as typed, split as a shell splits and never given to one.
2. What is launched is ``python -m edgekit.launched JOB``: a JSON file with the settings and steps.
   It leaves the changed model as a checkpoint beside the job, or the sentence of what went wrong.
3. A launch that was killed goes on from its checkpoints, whether the launcher restarts it or the
   same command is given again. When this process dies, so do those that it launched.
4. Without a rendezvous among its options everything stays on this machine: the loopback alone.
   With one, each other host runs the launcher with ``-m edgekit.launched JOB``; it needs to see
   the same folders.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import errors
from edgekit.errors import EdgekitError, TrainingError, UsageError
from edgekit.events import Event, Sink

if TYPE_CHECKING:
    from edgekit.project import Settings
    from edgekit.recipe import StepSpec

CHECKPOINT = "checkpoint"
ERROR = "error.json"
# Said to what is launched: end when the standard input does (rule 3).
LIFELINE = "EDGEKIT_LIFELINE"
_MODULES = {
    "torchrun": ("torch.distributed.run",),
    "accelerate": ("accelerate.commands.accelerate_cli", "launch"),
}
_HOSTS = re.compile("--(nnodes|rdzv|master|machine|num-machines|main-process-ip)")


def read_launcher(text: str) -> tuple[str, ...]:
    """The command that a text such as ``torchrun --nproc-per-node 2`` stands for.

    Raises UsageError for anything but torchrun and accelerate launch.
    """
    try:
        name, *rest = shlex.split(text)
    except ValueError:
        raise UsageError(f"--launch: '{text}' is empty or has an open quote") from None
    if name not in _MODULES or (name == "accelerate" and rest[:1] != ["launch"]):
        raise UsageError(
            f"--launch: '{text}' is no launcher; begin with torchrun or accelerate launch, as in "
            "--launch 'torchrun --nproc-per-node 2'"
        )
    if name == "torchrun" and not _spans_hosts(rest):
        # Otherwise every launch on this machine would ask for the same port.
        rest = ["--standalone", *rest]
    rest = rest[1:] if name == "accelerate" else rest
    return (sys.executable, "-m", *_MODULES[name], *rest)


def apply_launched(
    launcher: Sequence[str],
    settings: "Settings",
    steps: "Sequence[StepSpec]",
    scratch: Path,
    tensorboard: Path | None,
    on_event: Sink,
) -> Path:
    """Apply the steps to the model of the settings; the checkpoint that came of it.

    scratch: of these very steps on this model and data. Raises the error that a launched process
    ended with, and TrainingError when the launcher failed without one.
    """
    job = scratch / "job.json"
    document = {
        "settings": settings.to_json(),
        "steps": [spec.to_json() for spec in steps],
        "scratch": str(scratch.absolute()),
        "tensorboard": None if tensorboard is None else str(tensorboard.absolute()),
    }
    (scratch / ERROR).unlink(missing_ok=True)
    job.write_text(json.dumps(document), encoding="utf-8")
    command = [*launcher, "-m", "edgekit.launched", str(job.absolute())]
    if _spans_hosts(launcher):
        told = f"other hosts: the launcher with -m edgekit.launched {job.absolute()}"
        on_event(Event("note", "compress", told))
    log = scratch / "launched.log"
    code = _watch(command, log, on_event, alone=not _spans_hosts(launcher))
    if (scratch / ERROR).is_file():
        raise _error(json.loads((scratch / ERROR).read_text(encoding="utf-8")))
    if code != 0 or not (scratch / CHECKPOINT).is_dir():
        raise TrainingError(
            f"--launch: {shlex.join(launcher[2:])} ended with exit code {code} ({_last(log)}); "
            "mend its options, or run without it"
        )
    return scratch / CHECKPOINT


def _watch(command: Sequence[str], log: Path, on_event: Sink, *, alone: bool) -> int:
    """Run the command and pass its events on; its exit code."""
    environment = {**os.environ, LIFELINE: "1"}
    if alone and sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    with (
        log.open("wb") as errors_to,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors_to,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                with contextlib.suppress(ValueError, TypeError):  # others print too
                    on_event(Event(**json.loads(line)))
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def _spans_hosts(words: Sequence[str]) -> bool:
    """Whether options name a rendezvous; torchrun spells them with dashes or underscores."""
    return any(_HOSTS.match(word.replace("_", "-")) for word in words)


def _error(fields: dict[str, Any]) -> EdgekitError:
    kind = getattr(errors, str(fields.get("kind")), TrainingError)
    if not (isinstance(kind, type) and issubclass(kind, EdgekitError)):
        kind = TrainingError
    return kind(str(fields.get("text")))


def _last(log: Path) -> str:
    """The last line that says something, such as ``ValueError: …`` or ``unrecognized …``."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    telling = [line for line in lines if "rror: " in line]
    return (telling or [line for line in lines if line] or ["it said nothing"])[-1][-200:]
