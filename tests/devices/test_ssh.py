"""A board by ssh: a real OpenSSH client and server, on loopback."""

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.devices.device import open_device
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from tests.devices.ssh_server import NoServerError, Server, serve
from tests.devices.test_agent import _rows, _sum_model

_LONG = Pass("latency", "latency", [0, 1, 2], seconds=60, precision=-1)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Server]:
    # Without pytest's cache it is fetched anew.
    cache = getattr(pytestconfig, "cache", None)
    kept = cache.mkdir("openssh") if cache else tmp_path_factory.mktemp("openssh")
    with pytest.MonkeyPatch.context() as patch:
        try:
            with serve(tmp_path_factory.mktemp("ssh"), kept) as found:
                patch.setenv("PATH", str(found.bin), prepend=os.pathsep)
                yield found
        except NoServerError as error:
            pytest.skip(str(error))


def _run(name: str, tmp_path: Path, *passes: Pass, timeout: float = 60) -> dict[str, Any]:
    model = _sum_model(tmp_path / "model.onnx")
    device = open_device(name)
    wanted = passes or (Pass("all", "outputs"),)
    return run_agent(model, _rows(), wanted, threads=1, device=device, timeout=timeout)


def _here(server: Server, python: str = sys.executable) -> str:
    return f"ssh:{server.user}@127.0.0.1:{server.port}?python={python}"


def _with_python(alias: str) -> str:
    return f"ssh:{alias}?python={sys.executable}"


def _agents(server: Server) -> list[int]:
    """The agents that run on the board: their folder is in its TMPDIR."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(server.temporary):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def _wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _nothing_left(server: Server) -> bool:
    return _wait_for(lambda: not _agents(server) and not any(server.temporary.iterdir()))


def _while_running(server: Server, act: Callable[[int], None]) -> threading.Thread:
    """Do something to the agent soon after it starts."""

    def wait_and_act() -> None:
        assert _wait_for(lambda: len(_agents(server)) == 1)
        time.sleep(0.5)
        act(_agents(server)[0])

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.slow
def test_a_board_answers_as_the_host_does_and_keeps_nothing(server: Server, tmp_path: Path) -> None:
    passes = [
        Pass("all", "outputs"),
        Pass("padded", "outputs", [2, 0], width=8),
        Pass("latency", "latency", [0, 1], seconds=0.05),
    ]
    there = _run(_here(server), tmp_path, *passes)
    here = _run("host", tmp_path, *passes)
    for name in ("all", "padded"):
        outputs = [result["passes"][name]["outputs"].tolist() for result in (there, here)]
        assert outputs[0] == outputs[1]
    assert min(there["passes"]["latency"]["samples"]) > 0
    assert there["fingerprint"] == here["fingerprint"]
    assert list(server.temporary.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("alias", ["board", "noisy"])
def test_an_alias_of_the_configuration_and_a_login_that_greets(
    server: Server, tmp_path: Path, alias: str
) -> None:
    result = _run(_with_python(alias), tmp_path)
    assert result["passes"]["all"]["outputs"].tolist() == [[18.0], [4.0], [3.0]]


@pytest.mark.parametrize(
    ("alias", "message"),
    [
        ("stranger", r"^ssh:stranger.*: it accepts none of your keys.*`ssh-copy-id stranger`$"),
        ("unknown", r"^ssh:unknown.*: its host key is not known here.*`ssh unknown`$"),
        ("changed", r"^ssh:changed.*: its host key is not the one.*`ssh-keygen -R 'changed'`"),
        ("no-such-host.invalid", "no host has that name"),
    ],
)
def test_a_board_that_does_not_let_us_in_says_why(
    server: Server, tmp_path: Path, alias: str, message: str
) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        _run(_with_python(alias), tmp_path)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_nobody_listens(server: Server, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match="no ssh server answers there"):
            _run(f"ssh:127.0.0.1:{port}", tmp_path)


def test_no_python_there(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"there is no no/python there.*\?python=PATH"):
        _run(_here(server, "no/python"), tmp_path)


@pytest.mark.slow
def test_a_python_without_numpy(server: Server, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    with pytest.raises(DeviceError, match=r"No module named 'numpy'.*install numpy there"):
        _run(_here(server, f"{bare}/bin/python"), tmp_path)
    assert _nothing_left(server)


@pytest.mark.slow
def test_an_agent_that_is_killed_names_the_signal(server: Server, tmp_path: Path) -> None:
    killer = _while_running(server, lambda agent: os.kill(agent, signal.SIGSEGV))
    with pytest.raises(DeviceError, match=r"model\.onnx on ssh:.* was killed by SIGSEGV"):
        _run(_here(server), tmp_path, _LONG)
    killer.join()
    assert _nothing_left(server)


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_there_too(server: Server, tmp_path: Path) -> None:
    seen: list[int] = []
    watcher = _while_running(server, seen.append)
    with pytest.raises(DeviceError, match="did not finish within 4 s"):
        _run(_here(server), tmp_path, _LONG, timeout=4)
    watcher.join()
    assert seen
    assert _nothing_left(server)


@pytest.mark.slow
def test_a_connection_that_breaks_off_leaves_nothing(server: Server, tmp_path: Path) -> None:
    def cut(agent: int) -> None:
        """Kill the server's process for this connection."""
        parent = agent
        while b"sshd" not in Path(f"/proc/{parent}/comm").read_bytes():
            status = Path(f"/proc/{parent}/status").read_text()
            parent = int(status.partition("PPid:")[2].split()[0])
        os.kill(parent, signal.SIGKILL)

    cutter = _while_running(server, cut)
    with pytest.raises(DeviceError, match=r"the connection was lost before model\.onnx had run"):
        _run(_here(server), tmp_path, _LONG)
    cutter.join()
    assert _nothing_left(server)


@pytest.mark.slow
def test_a_full_disk_there(server: Server, tmp_path: Path) -> None:
    """On a real small disk, in a mount namespace of its own."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("this machine lets no process mount a disk of its own")
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    inside = (
        'mount -t tmpfs -o size=8k none "$TMPDIR" && '
        f'"{sys.executable}" "$@"; code=$?; ls -A "$TMPDIR" >"{left}"; exit $code'
    )
    python = tmp_path / "python"
    words = shlex.join([*alone, "sh", "-c", inside, "sh"])
    python.write_text(f'#!/bin/sh\nexport TMPDIR="{disk}"\nexec {words} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(DeviceError, match=r"No space left on device.*; free some space there$"):
        _run(_here(server, str(python)), tmp_path)
    assert left.read_text() == ""
    assert _nothing_left(server)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-oProxyCommand=touch x",
        "-oProxyCommand=touch${IFS}x",
        "pi@-oProxyCommand=x",
        "pi@board name",
        "pi@board;touch x",
        "pi@board$(touch x)",
        "pi@board`touch x`",
        "pi@board'",
        'pi@board"',
        "pi@board\n",
        "pi@board\x00",
        "pi@board:22x",
        "pi@board:0",
        "pi@board:70000",
        "pi@board?python=",
        "pi@board?python=-c",
        "pi@board?python=python3;touch x",
        "pi@board?python=python3 -c x",
        "pi@board?shell=sh",
        "@board",
    ],
)
def test_no_name_reaches_a_shell(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^--device: .* is no board; write ssh:user@host"):
        open_device(f"ssh:{name}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["pi@raspberrypi", "board", "me@[fe80::1%eth0]:22", "u@10.0.0.7:8022?python=v/bin/py"]
)
def test_names_that_are_boards(name: str) -> None:
    device = open_device(f"ssh:{name}")
    assert device.name == f"ssh:{name}"
    assert device.timed
    assert "onnx" in device.formats


def test_without_a_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "openssh-client" in (open_device(f"ssh:{getpass.getuser()}@board").missing() or "")
