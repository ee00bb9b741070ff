"""A model on a grid and files of another are refused before any file is written."""

from pathlib import Path

import pytest

from edgekit.cli import run
from tests.tiny_project import TinyProject, tiny_project

NEW_RUNTIME = """\
description = "a board"
formats = ["onnx"]
scheme = "int2-weights"
instruction_set = "armv8"
threads = 1

[runtime]
package = "onnxruntime"
oldest = "1.31.0"
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def board(tmp_path: Path) -> str:
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "target.toml").write_text(NEW_RUNTIME)
    return str(folder)


def said(
    project: TinyProject, capsys: pytest.CaptureFixture[str], folder: Path, *options: str
) -> str:
    """What a build that is refused says."""
    rows = ["--data", str(project.train), "--eval", str(project.eval)]
    output = folder / "dist"
    assert run(["build", str(project.checkpoint), *rows, *options, "--output", str(output)]) == 2
    assert not output.exists()
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("target", "block", "mend"),
    [
        ("linux-x86_64", "", "onnx files in int4-weights have a scale for each 32 weights; add"),
        ("android-arm64", ",block=32", "tflite files in int4-weights have one scale a channel;"),
    ],
)
def test_blocks_that_the_files_do_not_have_are_refused(
    target: str,
    block: str,
    mend: str,
    project: TinyProject,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = f"round-weights:method=rtn{block}"
    options = ("--target", target, "--scheme", "int4-weights", "--step", step)
    assert mend in said(project, capsys, tmp_path, *options)


def test_two_bits_are_not_to_be_had_without_training(
    project: TinyProject, board: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(project, capsys, tmp_path, "--target", board)
    assert "add --step quantize-aware-train:scheme=int2-weights" in error


def test_an_older_runtime_has_no_two_bits(
    project: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--target", "linux-x86_64", "--scheme", "int2-weights")
    assert "linux-x86_64 takes" in said(project, capsys, tmp_path, *options)
