"""A board that is reached by ssh.

    ssh:pi@raspberrypi
    ssh:pi@192.168.1.7:2222
    ssh:board                                        as ~/.ssh/config calls it
    ssh:pi@raspberrypi?python=venv/bin/python        the runtime is in an environment there

The path of the interpreter starts at the login's home folder, or with a slash; shells want the
``?`` in quotes. There must be Python 3.9 or later with numpy and the runtime, and nothing else:
``remote.py`` and the job travel through one connection of this machine's OpenSSH client, into a
folder that is gone when it ends. Keys, known hosts, jump hosts and multiplexing are those of
~/.ssh/config; nothing is asked, so the board must be known and accept a key.

Tried against OpenSSH's server on Linux, by the tests; not on a Raspberry Pi, a Jetson or Termux,
though nothing beyond Python is asked of them.
"""

import json
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgekit.artifact import Format
from edgekit.devices.process import died, ending
from edgekit.devices.remote import MARK
from edgekit.errors import DeviceError, UsageError

_REMOTE = Path(__file__).with_name("remote.py")

# Plain names, none of which a shell or ssh could take for anything else.
_NAME = re.compile(
    r"""(?P<login>(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?
          (?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]))
        (?::(?P<port>[0-9]{1,5}))?
        (?:\?python=(?P<python>[A-Za-z0-9_/.][A-Za-z0-9_/.+-]*))?""",
    re.VERBOSE,
)

_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}

_CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"

# What the client says, and what that means; the first that fits.
_REASONS = (
    (
        _CHANGED,
        "its host key is not the one that was known; if the board was set up anew, forget the old "
        "key with {forget} and accept the new one once by hand with {login}",
    ),
    (
        "Host key verification failed",
        "its host key is not known here; check and accept it once by hand with {login}",
    ),
    ("Permission denied", "it accepts none of your keys; give it one with {give_key}"),
    (
        "Too many authentication failures",
        "it refused before the right key was tried; name the key for it in ~/.ssh/config",
    ),
    ("Could not resolve hostname", "no host has that name; check its spelling and your network"),
    ("Connection refused", "no ssh server answers there; start it, or check the port"),
    ("timed out", "it cannot be reached; switch it on and check the network"),
    ("No route to host", "it cannot be reached; switch it on and check the network"),
    ("Network is unreachable", "it cannot be reached; check the network"),
    ("configuration option", "your ssh configuration has a mistake ({last}); mend it"),
    ("Bad owner or permissions", "ssh refuses your configuration ({last}); mend it"),
)


@dataclass(frozen=True)
class Board:
    """A machine with Python and an ssh server. login: ``user@host``, ``host`` or an alias."""

    name: str
    login: str
    port: int | None = None
    python: str = "python3"
    timed: bool = True
    formats: tuple[Format, ...] = ("onnx", "tflite", "torchscript")

    def missing(self) -> str | None:
        if shutil.which("ssh") is None:
            return "there is no ssh client; install OpenSSH's (Debian: openssh-client)"
        return None

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        with tempfile.TemporaryFile() as sent:
            length = _pack(folder, sent, timeout)
            # The shell there sees the interpreter's plain name and a number, and nothing else.
            start = f'exec(__import__("sys").stdin.buffer.read({length}))'
            options = [f"-o{key}={value}" for key, value in _OPTIONS.items()]
            there = shlex.join([self.python, "-c", start])
            command = ["ssh", *options, *self._port(), "--", self._host(), there]
            try:
                # The board tidies up when the client is gone, however it went.
                done = subprocess.run(
                    command, stdin=sent, capture_output=True, timeout=timeout, check=False
                )
            except subprocess.TimeoutExpired:
                raise DeviceError(
                    f"{job['file']} did not finish within {timeout:.0f} s on {self.name}"
                ) from None
            except OSError as error:
                raise DeviceError(f"{self.name}: cannot start ssh: {error.strerror}") from None
        fields = _answer(done.stdout)
        if fields is None:
            raise DeviceError(f"{self.name}: {self._why(done, job['file'])}")
        if fields["result"] is None:
            raise died(job["file"], self.name, fields["status"], fields["said"].encode())
        (folder / "result.json").write_text(fields["result"], encoding="utf-8")

    def _host(self) -> str:
        return self.login.replace("[", "").replace("]", "")

    def _port(self) -> list[str]:
        return [] if self.port is None else ["-p", str(self.port)]

    def _why(self, done: subprocess.CompletedProcess[bytes], what: str) -> str:
        """Why there was no answer, from what the client said and how it ended."""
        said = done.stderr.decode(errors="replace")
        last = (said.strip().splitlines() or ["no message"])[-1]
        if done.returncode == 127:
            mend = f"install it, or name another: ssh:{self.login}?python=PATH"
            return f"there is no {self.python} there; {mend}"
        if done.returncode != 255:
            return f"{self.python} there {ending(done.returncode, done.stderr)}"
        host = self._host().rpartition("@")[2]
        known = host if self.port in (None, 22) else f"[{host}]:{self.port}"
        words = {
            "login": " ".join(["`ssh", *self._port(), self._host() + "`"]),
            "forget": f"`ssh-keygen -R '{known}'`",
            "give_key": " ".join(["`ssh-copy-id", *self._port(), self._host() + "`"]),
            "last": last,
        }
        for fragment, reason in _REASONS:
            if fragment in said:
                return reason.format(**words)
        return f"the connection was lost before {what} had run ({last}); run again"


def open_device(rest: str) -> Board:
    """``user@host[:port][?python=PATH]``. Raises UsageError for anything else."""
    match = _NAME.fullmatch(rest)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise UsageError(
            f"--device: {f'ssh:{rest}'!r} is no board; write ssh:user@host, and if need be :port "
            "and ?python=PATH after it, without spaces or quotes"
        )
    return Board(f"ssh:{rest}", match["login"], port, match["python"] or "python3")


def _pack(folder: Path, stream: IO[bytes], timeout: float) -> int:
    """Write what ``remote.py`` reads; how many bytes of it are ``remote.py`` itself."""
    script = _REMOTE.read_bytes()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    head = {"files": [[path.name, path.stat().st_size] for path in files], "timeout": timeout}
    stream.write(script + json.dumps(head).encode() + b"\n")
    for path in files:
        with path.open("rb") as content:
            shutil.copyfileobj(content, stream)
    stream.seek(0)
    return len(script)


def _answer(stdout: bytes) -> dict[str, Any] | None:
    _, mark, text = stdout.partition(f"\n{MARK}\n".encode())
    try:
        fields: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return fields if mark else None
