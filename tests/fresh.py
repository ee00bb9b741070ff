"""Processes of their own that start at once.

A Python that has torch, transformers and edgekit imported takes ten seconds to come to that. Here
one server imports them, for all workers of a run, and forks a process for each one asked for: it
has the modules, and nothing else of what a test did. What is about imports takes ``subprocess``.

``python -m tests.fresh -m module …`` is such a process for one that starts others by a command.
"""

import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

_ROOT = Path(__file__).parents[1]
_RUN = "EDGEKIT_TEST_RUN"  # the process that runs the tests
_IMPORTED = (
    "edgekit.cli.build",
    "edgekit.data",
    "edgekit.export.onnx",
    "edgekit.model",
    "edgekit.reports.write",
    "edgekit.stages.bundle",
    "edgekit.stages.export",
    "edgekit.stages.plan",
    "edgekit.stages.prove",
    "edgekit.stages.report",
    "edgekit.train",
    "matplotlib.figure",
    "onnx.checker",
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
)


class Fresh:
    """Python with ``arguments`` (``-m module …`` or ``-c code …``), as ``subprocess.Popen``."""

    def __init__(self, arguments: list[str], cwd: Path | None = None) -> None:
        out, stdout = os.pipe()
        err, stderr = os.pipe()
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] = os.fdopen(err)
        self.returncode: int | None = None
        with Path(os.devnull).open() as nothing:
            self._replies = _ask(arguments, cwd or Path.cwd(), [nothing.fileno(), stdout, stderr])
        os.close(stdout)
        os.close(stderr)
        self.pid = int(self._replies.readline())

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._replies.readline())
            self._replies.close()
        return self.returncode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def __enter__(self) -> "Fresh":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.wait()


def run_fresh(arguments: list[str], cwd: Path | None = None) -> str:
    """What it prints. Raises AssertionError, with its errors, when it does not end well."""
    with Fresh(arguments, cwd) as process:
        printed = process.stdout.read()
        errors = process.stderr.read()
        assert process.wait() == 0, errors
    return printed


def _ask(arguments: list[str], cwd: Path, files: list[int]) -> IO[str]:
    """Where the server says the number of the process, and then what it ended with."""
    asked = {"arguments": arguments, "cwd": str(cwd), "env": dict(os.environ)}
    with _connected() as server:
        socket.send_fds(server, [json.dumps(asked).encode()], files)
        server.shutdown(socket.SHUT_WR)
        return server.makefile()


def _connected() -> socket.socket:
    """To the server of this run, which is started when there is none."""
    workers = "PYTEST_XDIST_WORKER" in os.environ
    run = int(os.environ.setdefault(_RUN, str(os.getppid() if workers else os.getpid())))
    address = Path(f"/tmp/edgekit-fresh-{os.getuid()}-{run}")
    with FileLock(f"{address}.lock"):
        for _ in range(1800):
            connection = socket.socket(socket.AF_UNIX)
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                connection.connect(str(address))
                return connection
            connection.close()
            if not address.exists():
                address.touch()
                command = [sys.executable, "-m", "tests.fresh", str(address), str(run)]
                nothing = subprocess.DEVNULL
                subprocess.Popen(
                    command, cwd=_ROOT, stdin=nothing, stdout=nothing, start_new_session=True
                )
            time.sleep(0.1)
    raise AssertionError("the server of fresh processes does not start")


def _serve(address: Path, run: int) -> None:
    """Until the process that runs the tests is gone."""
    import importlib

    import torch.onnx._internal.exporter._registration as registration

    for name in _IMPORTED:
        importlib.import_module(name)
    registration.ONNXRegistry.from_torchlib()
    from edgekit.stages import prove

    prove._LATENCY_SECONDS = prove._COMPARISON_SECONDS = 0.05
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        ready = Path(f"{address}.ready")
        server.bind(str(ready))
        server.listen()
        ready.rename(address)
        while _is_alive(run):
            if select.select([server], [], [], 1)[0]:
                connection, _ = server.accept()
                if os.fork() == 0:
                    server.close()
                    _handle(connection)
                connection.close()
    address.unlink()
    Path(f"{address}.lock").unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _handle(connection: socket.socket) -> None:
    """Start the process, say its number, and then what it ended with."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while more := connection.recv(1 << 20):
        data += more
    asked = json.loads(data)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        _become(asked)
    for file in files:
        os.close(file)
    connection.sendall(f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(asked: dict[str, Any]) -> None:
    kind, what, *rest = asked["arguments"]
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.path[0] = asked["cwd"]
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.argv = [what if kind == "-m" else kind, *rest]
    status = 1
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
        if isinstance(ending.code, str):
            sys.stderr.write(ending.code + "\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _stand_for(arguments: list[str]) -> int:
    """Run it in a fresh process that reads and writes where this one does."""
    replies = _ask(arguments, Path.cwd(), [0, 1, 2])
    pid = int(replies.readline())
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    return int(replies.readline())


if __name__ == "__main__":
    if sys.argv[1] == "-m":
        sys.exit(_stand_for(sys.argv[1:]))
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
