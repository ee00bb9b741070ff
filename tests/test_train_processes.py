"""Two processes train as one does; killed, they go on; and a build can be launched so."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.errors import TrainingError, UsageError
from edgekit.events import Event
from edgekit.launch import read_launcher
from edgekit.model import identify, load_model
from edgekit.train_processes import Processes
from tests.tiny_processes import pair
from tests.tiny_project import TinyProject, tiny_project
from tests.tiny_training import bag, learn


def _report(folder: Path, rank: int) -> Any:
    return json.loads((folder / f"report-{rank}.json").read_text())


@pytest.mark.slow
def test_two_processes_learn_as_one_and_go_on_when_one_is_killed(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert pair(whole) == [0, 0]
    alone = learn(tmp_path / "alone", bag().eval()).losses
    # 200 rows in batches of 16: the last one of each epoch has 8.
    assert _report(whole, 0)["losses"] == pytest.approx(alone, rel=0.01)
    assert _report(whole, 0) == _report(whole, 1)
    assert sorted(path.name for path in whole.iterdir()) == [
        "report-0.json",
        "report-1.json",
        "training-0",
        "weights.npz",
    ]
    codes = pair(cut, kill_at=20)
    assert codes[1] == -9 and codes[0] not in (0, None)
    assert not (cut / "weights.npz").exists()
    assert pair(cut) == [0, 0]
    assert _report(cut, 0)["resumed_from"] == 19
    assert _report(cut, 0)["losses"] == _report(whole, 0)["losses"]
    with np.load(whole / "weights.npz") as one, np.load(cut / "weights.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_shares_of_a_batch_weigh_what_they_hold() -> None:
    for size in (1, 2, 5, 16):
        rows = np.arange(size) + 7
        shares = [Processes(rank, 3).share(rows) for rank in range(3)]
        mean = sum(part.mean() * weight for part, weight in shares) / 3
        assert mean == pytest.approx(rows.mean())
        held = [part for part, weight in shares if weight]
        assert sorted(np.concatenate(held)) == rows.tolist()


# Launching a build


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny_project(tmp_path_factory.mktemp("project"))


def _build(project: TinyProject, folder: Path, step: str, launch: str, **options: Any) -> Any:
    return edgekit.build(
        project.checkpoint,
        data=project.train,
        eval=project.eval,
        target="linux-x86_64",
        # A tiny model that has just learned is not one for 8 bits.
        scheme="fp32",
        steps=[step],
        output=folder / "dist",
        save_model=folder / "model",
        launch=launch,
        **options,
    )


@pytest.mark.slow
def test_a_launched_build_ends_as_one_process_does(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgekit.pipeline.read_launcher", lambda text: (*read_launcher(text), "-m", "tests.fresh")
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    events: list[Event] = []
    launch = "torchrun --nproc-per-node 2 --max-restarts 1"
    step = "finetune:what=head,epochs=2,batch=8"
    result = _build(project, tmp_path, step, launch, on_event=events.append)
    assert result.outcome == "pass"
    told = [event for event in events if event.kind == "progress" and "step" in event.text]
    assert told[-1].fraction == 1.0
    made = load_model(identify(str(tmp_path / "model")))
    assert "fine-tuned head" in made.lineage[-1] and "14 steps" in made.lineage[-1]


def test_a_launcher_that_is_none_is_refused_before_anything(
    project: TinyProject, tmp_path: Path
) -> None:
    for text in ("python", "bash -c true", "accelerate config", "", "torchrun 'x"):
        with pytest.raises(UsageError, match="--launch"):
            _build(project, tmp_path, "finetune", text)
    assert list(tmp_path.iterdir()) == []


def test_the_launchers_own_options_are_passed_on_and_stay_on_this_machine() -> None:
    one = read_launcher("torchrun --nproc-per-node '2'")
    assert one[1:] == ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    far = read_launcher("torchrun --nnodes 2 --rdzv_endpoint host:29400")
    assert "--standalone" not in far
    assert read_launcher("accelerate launch --cpu")[3:] == ("launch", "--cpu")


def test_a_launcher_that_fails_is_told_by_its_last_words(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        return started(
            [sys.executable, "-c", "raise SystemExit('ValueError: no such option')"], **options
        )

    monkeypatch.setattr(subprocess, "Popen", popen)
    with pytest.raises(TrainingError, match=r"exit code 1 \(ValueError: no such option\)"):
        _build(project, tmp_path, "finetune:what=head", "torchrun --nproc-per-node 2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_a_launched_process_says_is_raised_here(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process itself, without a launcher between."""
    command = (sys.executable, "-m", "tests.fresh")
    monkeypatch.setattr("edgekit.pipeline.read_launcher", lambda text: command)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with pytest.raises(UsageError, match="max-minutes 1e-05 is too short"):
        _build(project, tmp_path, "finetune:what=head,max-minutes=0.00001", "torchrun")
