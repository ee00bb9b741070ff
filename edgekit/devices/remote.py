"""What a board runs for ``ssh.py``: takes a job on stdin, runs the agent, answers on stdout.

Needs Python 3.9 or later and the standard library. It is sent ahead of the job and executed from
stdin, so that one connection does everything and nothing is installed. Then come one line of JSON
(``files``: names and sizes; ``timeout``: seconds) and the files, one after the other. The answer
is the line ``MARK`` and one line of JSON: the agent's exit ``status``, the end of what it ``said``
on stderr, and its ``result``.

The folder is removed and the agent killed however this ends (but by SIGKILL): also when the
connection is lost, and then after ``timeout`` seconds at the latest.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

MARK = "edgekit answers:"


def main() -> None:
    job = json.loads(sys.stdin.buffer.readline())
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(1))
    # Older ones must get as far as here: hence the annotations in quotes.
    if sys.version_info < (3, 9):  # noqa: UP036
        found = ".".join(map(str, sys.version_info[:3]))
        answer(1, f"Python 3.9 or later is needed, and {sys.executable} is {found}", None)
        return
    folder: Path | None = None
    result: str | None = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="edgekit-"))
        receive(job["files"], folder)
        status, said, result = run(folder, job["timeout"])
    except OSError as error:
        status, said = 1, str(error)
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    answer(status, said, result)


def receive(files: "list[tuple[str, int]]", folder: Path) -> None:
    for name, size in files:
        with (folder / name).open("wb") as stream:
            while size:
                chunk = sys.stdin.buffer.read(min(size, 1 << 20))
                if not chunk:
                    sys.exit("the connection ended before the job did")
                stream.write(chunk)
                size -= len(chunk)


def run(folder: Path, timeout: float) -> "tuple[int, str, str | None]":
    """The agent's exit status, the end of what it said, and its result if it left one."""
    process = subprocess.Popen(
        [sys.executable, "agent.py", "job.json", "result.json"],
        cwd=folder,
        # What a runtime puts into the temporary folder is to go too.
        env=dict(os.environ, TMPDIR=str(folder), TF_CPP_MIN_LOG_LEVEL="3"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )

    def stop() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)

    def watch() -> None:
        # Waits for errors alone: nobody reads the answer any more. Costs nothing meanwhile, where
        # asking every so often would disturb what is measured.
        listener = select.poll()
        listener.register(1, 0)
        listener.poll()
        stop()

    late = threading.Timer(timeout, stop)
    late.daemon = True
    late.start()
    threading.Thread(target=watch, daemon=True).start()
    try:
        said = process.communicate()[1].decode("utf-8", "replace")
    finally:
        stop()
        late.cancel()
    result = folder / "result.json"
    text = result.read_text(encoding="utf-8") if result.is_file() else None
    return process.returncode, said[-2000:], text


def answer(status: int, said: str, result: "str | None") -> None:
    fields = {"status": status, "said": said, "result": result}
    # A line of its own: a login shell may have said something before.
    sys.stdout.write("\n" + MARK + "\n" + json.dumps(fields) + "\n")


if __name__ == "__main__":
    main()
