"""The command as a process: its start, its exit codes, its last words."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import edgekit
from edgekit.cli import run

_ROOT = str(Path(edgekit.__file__).parents[1])


def start(folder: Path, *arguments: str, python: Sequence[str] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *python, "-m", "edgekit", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": _ROOT, "EDGEKIT_CACHE": str(folder / "cache")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has its background jobs ignore Ctrl-C, and so would we.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    process = start(tmp_path, "--help", python=("-X", "importtime"))
    out, err = process.communicate()
    assert process.returncode == 0
    assert "build" in out
    loaded = {line.rpartition("|")[2].strip() for line in err.splitlines()}
    assert not loaded & {"numpy", "torch", "transformers", "onnx", "pydantic", "rich", "asyncio"}


def test_a_wrong_command_exits_2_with_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "build", "x", "--target", "nowhere")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("edgekit: no target 'nowhere'")
    assert err.count("\n") == 1


def test_ctrl_c_exits_130_with_one_line(tmp_path: Path) -> None:
    process = start(tmp_path, "init")
    assert process.stdout is not None
    assert process.stdout.read(5) == "Model"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err.strip()) == (130, "edgekit: stopped")


def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "edgekit", "targets"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": _ROOT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert b"android-arm64" in process.stdout


def test_a_bug_of_ours_exits_4_and_keeps_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("what\nhappened")

    monkeypatch.setattr("edgekit.target.target_names", broken)
    assert run(["targets"]) == 4
    printed = capsys.readouterr().err
    assert printed.startswith("edgekit: a bug of ours: ZeroDivisionError: what; please report it")
    assert printed.count("\n") == 1
    trace = Path(re.findall(r"\S+\.txt", printed)[0])
    assert "in broken" in trace.read_text()
    trace.unlink()


def test_a_package_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def needs_more() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("edgekit.target.target_names", needs_more)
    assert run(["targets"]) == 2
    assert "'torch' is missing; install" in capsys.readouterr().err


def test_a_bug_of_ours_is_raised_for_those_who_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setenv("EDGEKIT_DEBUG", "1")
    monkeypatch.setattr("edgekit.target.target_names", broken)
    with pytest.raises(ZeroDivisionError):
        run(["targets"])
