"""The store: atomic, shared between builds, and honest about damage."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from edgekit.errors import OutputError
from edgekit.store import Store


def _write(text: str):  # type: ignore[no-untyped-def]
    def produce(folder: Path) -> None:
        (folder / "out.txt").write_text(text)

    return produce


def test_the_same_inputs_are_made_once_and_others_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = store.stage("export", {"a": 1}, _write("one"))
    again = store.stage("export", {"a": 1}, _write("never"))
    other = store.stage("export", {"a": 2}, _write("two"))
    assert (again.path / "out.txt").read_text() == "one"
    assert again.reused and not first.reused
    assert other.path != first.path


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    entry = store.stage("export", {}, _write("sound"))
    path = entry.path / "out.txt"
    if damage == "flip":
        path.write_text("Sound")
    elif damage == "truncate":
        path.write_text("")
    elif damage == "remove":
        path.unlink()
    else:
        (entry.path / "entry.json").write_text("{")
    mended = store.stage("export", {}, _write("sound"))
    assert not mended.reused
    assert path.read_text() == "sound"


def test_a_failing_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def produce(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.stage("export", {}, produce)
    assert not [path for path in tmp_path.rglob("*") if path.name == "half.txt"]


def _slow(folder: Path) -> None:
    (folder / "half.txt").write_text("half")
    time.sleep(30)


def _stage_slowly(cache: str) -> None:
    Store(Path(cache)).stage("export", {}, _slow)


def test_a_build_killed_half_way_resumes_and_clears_the_rest(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_stage_slowly, args=(str(tmp_path),)
    )
    process.start()
    deadline = time.time() + 20
    while not list(tmp_path.rglob("half.txt")) and time.time() < deadline:
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(tmp_path.rglob("half.txt"))
    entry = Store(tmp_path).stage("export", {}, _write("whole"))
    assert (entry.path / "out.txt").read_text() == "whole"
    assert not list(tmp_path.rglob("half.txt"))


def _count(cache: str, log: str) -> None:
    def produce(folder: Path) -> None:
        with Path(log).open("a") as stream:
            stream.write("made\n")
        time.sleep(0.3)
        (folder / "out.txt").write_text("whole")

    Store(Path(cache)).stage("export", {}, produce)


def test_two_builds_at_once_make_a_stage_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_count, args=(str(tmp_path / "cache"), str(log))) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "made\n"


def test_prune_removes_what_was_not_used_for_long(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = store.stage("export", {"a": 1}, _write("old"))
    new = store.stage("export", {"a": 2}, _write("new"))
    past = time.time() - 1000
    os.utime(old.path / "entry.json", (past, past))
    assert store.prune(older_than=500) > 0
    assert not old.path.exists() and new.path.exists()
    assert json.loads((new.path / "entry.json").read_text())["stage"] == "export"


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="EDGEKIT_CACHE"):
        Store(tmp_path / "file").stage("export", {}, _write("x"))


def test_a_killed_stage_finds_its_scratch_again_and_a_done_one_has_none(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def killed(folder: Path) -> None:
        (store.scratch("train", {"a": 1}) / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage("train", {"a": 1}, killed)
    assert not list(store.scratch("train", {"a": 2}).iterdir())

    def resumed(folder: Path) -> None:
        found = (store.scratch("train", {"a": 1}) / "half.txt").read_text()
        (folder / "out.txt").write_text(found + " and half")

    entry = store.stage("train", {"a": 1}, resumed)
    assert (entry.path / "out.txt").read_text() == "half and half"
    assert not list(tmp_path.rglob("half.txt"))


def test_prune_removes_scratch_that_nobody_came_back_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    scratch = store.scratch("train", {})
    (scratch / "half.txt").write_text("half")
    assert store.prune(older_than=500) == 0 and scratch.exists()
    past = time.time() - 1000
    os.utime(scratch, (past, past))
    assert store.prune(older_than=500) == 4 and not scratch.exists()
