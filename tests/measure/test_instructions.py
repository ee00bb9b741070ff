"""Instructions of a row: what perf prints, and that a file without the counter has no figure."""

import shutil
from pathlib import Path

import pytest

from edgekit.filemodel import read_file_model
from edgekit.measure.instructions import can_count, instructions_of_a_row, read_count
from edgekit.preprocess import Encoded
from tests.contents.model_files import onnx_stack

# As perf 6.1 prints them with -x, on processors with the counter and without.
COUNTED = "# started on Sat Nov 28\n\n1207344,,instructions:u,812345,100.00,0.93,insn per cycle\n"
HIDDEN = (
    "0.72,msec,task-clock,721123,100.00,0.127,CPUs utilized\n<not supported>,,instructions:u,0,"
)

needs_perf = pytest.mark.skipif(
    not can_count("task-clock"), reason="no perf here, or nothing that it may count"
)


def test_the_count_is_that_of_the_event() -> None:
    assert read_count(COUNTED, "instructions:u") == 1207344
    assert read_count(HIDDEN, "task-clock") == 0.72
    assert read_count(HIDDEN, "instructions:u") is None
    assert read_count(HIDDEN, "cycles:u") is None
    assert read_count("", "instructions:u") is None


@pytest.fixture
def file(tmp_path: Path) -> tuple[Path, Encoded]:
    onnx_stack(tmp_path / "model.onnx")
    model = read_file_model(tmp_path / "model.onnx", None)
    return tmp_path / "model.onnx", Encoded(dict(model.example or {}), None)


@needs_perf
def test_both_runs_are_counted(file: tuple[Path, Encoded]) -> None:
    """By an event that every kernel has; a clock tells nothing of so small a file."""
    model = read_file_model(file[0], None)
    assert isinstance(instructions_of_a_row(model.artifact, file[1], "task-clock"), float)


def test_without_perf_or_its_counter_there_is_no_figure(
    file: tuple[Path, Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_file_model(file[0], None)
    if shutil.which("perf"):
        assert instructions_of_a_row(model.artifact, file[1], "no-such-event") is None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not can_count()
    assert instructions_of_a_row(model.artifact, file[1]) is None
