"""Instructions of a row: what perf prints, and that a file without the counter has no figure."""

import os
import shutil
import sys
from pathlib import Path

import pytest

import edgekit
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


# Runs what it is told to, and counts 1,000 and 50 for each row of the job.
STAND_IN = """#!{python}
import json, os, subprocess, sys
options, command = sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1:]
code = subprocess.call(command)
rows = json.load(open("job.json"))["passes"][0]["rows"] if os.path.exists("job.json") else []
out = open(options[options.index("-o") + 1], "w") if "-o" in options else sys.stderr
print(f"{{1000 + 50 * len(rows)}},,instructions:u,1,100.00,,", file=out)
sys.exit(code)
"""


@pytest.mark.slow
def test_what_is_the_rows_alone_is_told(
    file: tuple[Path, Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever loading takes; in a benchmark, too."""
    stand_in = tmp_path / "bin" / "perf"
    stand_in.parent.mkdir()
    stand_in.write_text(STAND_IN.format(python=sys.executable))
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    model = read_file_model(file[0], None)
    assert instructions_of_a_row(model.artifact, file[1]) == 50
    assert edgekit.bench(file[0], seconds=0.1).measurements[0].instructions == 50


def test_without_perf_or_its_counter_there_is_no_figure(
    file: tuple[Path, Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_file_model(file[0], None)
    if shutil.which("perf"):
        assert instructions_of_a_row(model.artifact, file[1], "no-such-event") is None
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not can_count()
    assert instructions_of_a_row(model.artifact, file[1]) is None
