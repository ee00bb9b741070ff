"""What the commands print and write when all is well."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekit import __version__, cli
from edgekit.cli import parser, render, run
from edgekit.events import Event
from edgekit.project import load_project
from edgekit.store import Store
from edgekit.target import target_names
from tests.tiny_project import tiny_project


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command with --json prints: one document and nothing else."""
    assert run([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def test_each_command_says_of_itself_what_the_list_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, (_, summary) in cli._COMMANDS.items():
        assert run([name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert summary in shown, name


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    alone = capsys.readouterr().out
    assert run(["--help"]) == 0
    assert capsys.readouterr().out == alone
    commands = (
        "init",
        "build",
        "verify",
        "bench",
        "gate",
        "inspect",
        "diff",
        "analyze",
        "targets",
        "steps",
        "doctor",
        "devices",
        "cache",
    )
    assert all(f"\n  {command} " in alone for command in commands)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"edgekit {__version__}\n"


def test_targets(capsys: pytest.CaptureFixture[str]) -> None:
    listed = document(capsys, "targets")["targets"]
    assert [target["name"] for target in listed] == list(target_names())
    run(["targets"])
    lines = capsys.readouterr().out.splitlines()
    line = next(line for line in lines if line.startswith("android-arm64 "))
    assert "tflite-runtime ≥ 2.14.0" in line


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {device["name"]: device for device in document(capsys, "devices")["devices"]}
    assert listed["host"] == {
        "name": "host",
        "formats": ["onnx", "tflite", "torchscript"],
        "timed": True,
        "ready": True,
        "reason": None,
    }
    arm = listed["emulated:arm64-cortex-a53"]
    assert not arm["timed"] and "edgekit devices setup" in arm["reason"]
    assert run(["devices"]) == 0
    assert "✓ host" in capsys.readouterr().out
    assert run(["devices", "check", "host"]) == 0
    assert capsys.readouterr().out == "✓ host is ready\n"
    assert run(["devices", "check", "emulated:arm64"]) == 3
    assert "not set up" in capsys.readouterr().err


def test_steps(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {step["name"]: step for step in document(capsys, "steps")["steps"]}
    options = listed["trim-vocabulary"]["options"]
    assert options[0] == {"name": "min-count", "type": "int", "default": 1, "required": False}
    run(["steps"])
    printed = capsys.readouterr().out
    assert listed["trim-vocabulary"]["summary"] in printed
    assert "min-count=int  (default 1)" in printed


def test_cache(capsys: pytest.CaptureFixture[str]) -> None:
    store = Store()
    for number in range(2):
        store.stage("export", {"n": number}, lambda folder: _fill(folder / "file"))
    shown = document(capsys, "cache")
    assert shown["stages"]["export"]["entries"] == 2
    assert shown["bytes"] == shown["stages"]["export"]["bytes"] > 2000
    run(["cache"])
    assert str(store.folder) in capsys.readouterr().out
    assert document(capsys, "cache", "prune", "--older-than", "1h") == {"freed": 0}
    assert document(capsys, "cache", "prune", "--all") == {"freed": shown["bytes"]}
    assert list(store.entries()) == []


def test_inspect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _tiny_onnx(here / "model.onnx")
    found = document(capsys, "inspect", str(path))[str(path)]
    assert found["bytes_per_dtype"] == {"float32": 4 * 12}
    assert found["ops"] == {"MatMul": 1}
    run(["inspect", str(here)])
    printed = capsys.readouterr().out
    assert "x: float32 [rows x 3]" in printed
    assert "1 MatMul" in printed
    assert "48 B  float32  3 x 4  w" in printed


def test_analyze(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = tiny_project(here)
    arguments = ["analyze", str(project.checkpoint), "--data", str(project.train)]
    told = document(capsys, *arguments)
    assert {each["part"] for each in told["importance"]} == {"layers", "heads", "neurons"}
    (probe,) = (each for each in told["importance"] if each["score"] == "probe")
    best = int(np.argmax(probe["rows"]["classifier"])) + 1
    assert run([*arguments, "--plot", "plot.svg"]) == 0
    printed = capsys.readouterr().out
    assert "layers by contribution" in printed and "plot.svg" in printed
    first = next(line for line in printed.splitlines() if line.startswith("classifier"))
    assert first.split()[1:3] == ["1", str(best)]
    assert (here / "plot.svg").read_text().startswith("<svg ")


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    document_ = document(capsys, "doctor")
    assert document_["well"] is True
    states = {finding["name"]: finding["state"] for finding in document_["findings"]}
    assert states["python"] == states["numpy"] == "ok"
    assert {"cache", "here", "memory", "model", "adb", "node"} <= set(states)
    assert run(["doctor"]) == 0
    assert "Packages" in capsys.readouterr().out


def test_init_takes_flags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "train.csv", "--label", "intent", "--target", "web-wasm", "--budget", "9MB"]
    assert run(["init", "checkpoints/mine", *flags]) == 0
    assert "next: edgekit build" in capsys.readouterr().out
    project = load_project(here)
    assert (project.model, project.data, project.label) == (
        "checkpoints/mine",
        "train.csv",
        "intent",
    )
    assert project.targets == ("web-wasm",)
    before = (here / "edgekit.toml").read_bytes()
    assert run(["init", "other"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (here / "edgekit.toml").read_bytes() == before
    assert run(["init", "other", "--overwrite"]) == 0
    assert load_project(here).model == "other"


def test_init_asks(here: Path) -> None:
    answers = "org/model\ntrain.csv\n\nios-arm64 web-wasm\n20MB\n"
    result = CliRunner().invoke(parser("init"), ["init"], input=answers)
    assert result.exit_code == 0, result.output
    project = load_project(here)
    assert (project.model, project.data, project.eval) == ("org/model", "train.csv", None)
    assert project.targets == ("ios-arm64", "web-wasm")
    assert project.budget is not None
    assert project.budget.size == 20_000_000


def test_init_takes_the_proposed_answers(here: Path) -> None:
    assert CliRunner().invoke(parser("init"), ["init"], input="\n\n\n").exit_code == 0
    project = load_project(here)
    assert (project.model, project.targets) == ("sample:banking77", ("android-arm64",))


def test_init_without_anybody_to_ask(here: Path) -> None:
    result = CliRunner().invoke(parser("init"), ["init"], input="")
    assert "give flags" in str(result.exception)
    assert not (here / "edgekit.toml").exists()


def test_stages_become_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with render.watching(json=False) as on_event:
        on_event(Event("stage-start", "load", "loading x"))
        on_event(Event("note", "load", "no data"))
        on_event(Event("stage-end", "load", "loading x", seconds=1.5))
        on_event(Event("stage-start", "export", "writing tflite"))
        on_event(Event("progress", "export", fraction=0.5))
        on_event(Event("stage-end", "export", "14 MB", reused=True))
    assert capsys.readouterr().out.splitlines() == [
        "  no data",
        "✓ loading x  (1.5 s)",
        "✓ writing tflite: 14 MB  (from the cache)",
    ]


def test_a_log_gets_a_line_of_progress_every_half_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(render.time, "perf_counter", lambda: now[0])
    with render.watching(json=False) as on_event:
        on_event(Event("stage-start", "compress", "applying x"))
        for step, now[0] in enumerate((10.0, 31.0, 40.0, 62.0), start=1):
            text = f"step {step} of 8, loss 0.5"
            on_event(Event("progress", "compress", text, fraction=step / 8))
        on_event(Event("stage-end", "compress", "applying x", seconds=70.0))
    assert capsys.readouterr().out.splitlines() == [
        "  applying x: step 2 of 8, loss 0.5 (25 %)",
        "  applying x: step 4 of 8, loss 0.5 (50 %)",
        "✓ applying x  (70 s)",
    ]


def test_json_keeps_what_others_print_off_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with render.watching(json=True) as on_event:
        print("a library chats")  # noqa: T201
        on_event(Event("note", "x", "a note"))
    render.show_json({"worst": float("inf"), "list": [1, float("nan")]})
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"worst": None, "list": [1, None]}
    assert printed.err == "a library chats\n"


def _fill(path: Path) -> None:
    path.write_bytes(b"x" * 1000)


def _tiny_onnx(path: Path) -> Path:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 4])],
        [numpy_helper.from_array(np.ones((3, 4), np.float32), "w")],
    )
    onnx.save(helper.make_model(graph), path)
    return path
