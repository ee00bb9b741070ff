"""Wrong usage: one sentence on stderr, exit 2, nothing on stdout, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.cli import run
from tests.tiny import tiny_checkpoint
from tests.tiny_project import TinyProject, tiny_project

TARGET = ("--target", "android-arm64")
SERVER = ("--target", "linux-x86_64")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with the cache beside it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["buidl"], "no such command 'buidl'; did you mean 'build'?"),
        (["build", "x", "--bugdet", "3MB"], "no such option: --bugdet"),
        (["build", "x", "y"], "unexpected extra argument"),
        (["analyze"], "missing argument 'MODEL'"),
        (["build", "x", "--target"], "'--target' requires an argument"),
        (["build"], "no MODEL, and no edgekit.toml here; begin with: edgekit build sample:"),
        (["build", "x"], "no target; name one as in --target android-arm64"),
        (["build", "x", "--target", "android"], "no target 'android'"),
        (["build", "x", "--target", "android-arm46"], "did you mean 'android-arm64'?"),
        (["build", "x", *TARGET, "--budget", "30XB"], "--budget: '30XB' is not a size"),
        (["build", "x", *TARGET, "--budget=-5MB"], "--budget: '-5MB' is not a size"),
        (["build", "x", *TARGET, "--budget", "0MB"], "--budget: '0MB' leaves nothing"),
        (["build", "x", *TARGET, "--budget", "sise=3MB"], "--budget: unknown limit 'sise'"),
        (["build", "x", *TARGET, "--lengths", "garbage"], "--lengths: 'garbage' is not a list"),
        (["build", "x", *TARGET, "--lengths=-1"], "--lengths: a length is a number of tokens"),
        (["build", "x", *TARGET, "--scheme", "banana"], "--scheme: 'banana' is not a scheme"),
        (["build", "x", *TARGET, "--scheme", "int16x4"], "did you mean 'int16x8'?"),
        (
            ["build", "x", *SERVER, "--scheme", "int16x8"],
            "--scheme: linux-x86_64 takes int8-dynamic, int8-static,",
        ),
        (
            ["build", "x", "--target", "integer-only", "--scheme", "int8-dynamic"],
            "--scheme: integer-only takes int8-static or int16x8, not int8-dynamic (the device has",
        ),
        (
            ["build", "x", "--target", "android-gpu", "--scheme", "int4-weights"],
            "--scheme: android-gpu takes fp16 or fp32, not int4-weights (LiteRT's GPU delegate",
        ),
        (
            ["build", "x", *TARGET, "--target", "cuda", "--scheme", "int8-weights"],
            "--scheme: cuda takes fp16 or fp32, not int8-weights",
        ),
        (
            ["build", "x", "--target", "torchscript-cpu", "--scheme", "int4-weights"],
            "--scheme: torchscript-cpu takes int8-dynamic, fp16 or fp32, not int4-weights",
        ),
        (
            ["build", "x", *SERVER, "--format", "torchscript", "--scheme", "int4-weights"],
            "choose fp32, fp16 or int8-dynamic, or --format onnx or tflite",
        ),
        (["build", "x", *TARGET, "--format", "banana"], "--format: 'banana' is not a format"),
        (["build", "x", *TARGET, "--task", "banana"], "--task: 'banana' is not a task"),
        (["build", "x", *TARGET, "--seed", "x"], "invalid value for '--seed'"),
        (["build", "x", *TARGET, "--seed", "-1"], "--seed: a seed is a whole number"),
        (["build", "x", *TARGET, "--step", "trim-vocab"], "did you mean 'trim-vocabulary'?"),
        (["build", "x", *TARGET, "--step", "trim-vocabulary:min-count=x"], "must be int, is 'x'"),
        (["build", "x", *TARGET, "--recipe", "no.toml"], "cannot read no.toml"),
        (["build", "x", *TARGET, "--project", "no.toml"], "no project file no.toml"),
        (["init", "x", "--target", "android-arm46"], "did you mean 'android-arm64'?"),
        (["init", "x", "--budget", "30XB"], "--budget: '30XB' is not a size"),
        (["verify"], "missing argument 'BUNDLE'"),
        (["verify", "nowhere"], "nowhere is not a bundle"),
        (["bench", "nowhere"], "cannot read nowhere: No such file or directory"),
        (["bench", "nowhere", "--threads", "0"], "invalid value for '--threads'"),
        (["bench", "nowhere", "--device", "hots"], "no device 'hots'; did you mean 'host'?"),
        (["bench", "nowhere", "--device", "ssh:-oProxyCommand=x"], "--device: "),
        (["bench", "nowhere", "--cores", "a,b"], "--cores: 'a,b' is no list of numbers"),
        (["bench", "nowhere", "--serve", "1.2.3.4"], "--serve: goes with --device browser"),
        (["verify", "nowhere", "--device", "emulated:x86"], "no device 'emulated:x86'"),
        (["build", "x", *TARGET, "--device", "banana"], "no device 'banana'"),
        (["devices", "setup", "banana"], "no device 'banana'"),
        (["devices", "check", "runtime:banana"], "names no runtime"),
        (["inspect", "nowhere.onnx"], "cannot read nowhere.onnx"),
        (["inspect", "."], "holds no model file"),
        (["cache", "prune", "--older-than", "soon"], "--older-than: 'soon' is not an age"),
        (["cache", "prune", "--all", "--older-than", "3d"], "exclude each other"),
    ],
)
def test_one_sentence_and_nothing_written(
    arguments: list[str], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgekit: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert list(here.parent.rglob("*")) == [here]


def test_a_scheme_in_a_project_file_is_refused_as_one_on_the_command_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "edgekit.toml").write_text(
        'model = "x"\ntarget = "android-gpu"\nscheme = "int4-weights"\n'
    )
    assert run(["build"]) == 2
    assert "edgekit.toml: scheme: android-gpu takes fp16 or fp32" in capsys.readouterr().err


def test_a_malformed_project_file_is_named_with_line_and_key(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "edgekit.toml").write_text('model = "x"\ntargets = "web-wasm"\n')
    assert run(["build"]) == 2
    assert "edgekit.toml, line 2: targets: unknown key" in capsys.readouterr().err


# Static schemes and training on a grid: refused with what the model and the data are like.

STATIC = (*TARGET, "--scheme", "int8-static")
TRAIN = "quantize-aware-train"
DENSE = "bert.encoder.layer.0.intermediate.dense"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny_project(tmp_path_factory.mktemp("project"))


def _refused(arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a build that exits with 2 and leaves no bundle."""
    assert run(["build", *arguments, "--output", str(here / "dist")]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgekit: ")]
    assert len(said) == 1
    assert not (here / "dist").exists()
    return said[0]


def _rows_of(project: TinyProject, name: str, here: Path) -> list[str]:
    """Flags for training rows that say too little."""
    header, *rows = project.train.read_text().splitlines()
    label = rows[0].rpartition(",")[2]
    few = rows[:10] if name == "few" else [f"{row.rpartition(',')[0]},{label}" for row in rows]
    (here / "rows.csv").write_text("\n".join([header, *few]) + "\n")
    return ["--data", str(here / "rows.csv"), "--eval", str(project.eval)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        (None, STATIC, "calibrate: needs training rows to see its activations; give --data (or"),
        (None, (*TARGET, "--scheme", "int16x8"), "calibrate: needs training rows"),
        (None, (*STATIC, "--step", TRAIN), f"{TRAIN}: needs training rows to see its activations"),
        (
            None,
            (*STATIC, "--step", TRAIN, "--allow-random-calibration"),
            f"{TRAIN}: needs training rows",
        ),
        ("few", STATIC, "calibrate: 10 training rows say too little about the range of each"),
        ("few", (*STATIC, "--step", TRAIN), f"{TRAIN}: 10 training rows say too little"),
        ("one", STATIC, "calibrate: all 60 training rows have the label"),
        ("one", (*STATIC, "--step", TRAIN), f"{TRAIN}: all 60 training rows have the label"),
        (
            "all",
            (*STATIC, "--step", "calibrate", "--step", TRAIN),
            f"{TRAIN}: this model is on a grid of integers already (int8-static)",
        ),
        ("all", (*TARGET, "--step", "calibrate"), "and the files are int8-dynamic; add --scheme"),
        (
            "all",
            (*TARGET, "--scheme", "int16x8", "--step", "calibrate"),
            "grids of int8-static, and the files are int16x8",
        ),
        ("all", ("--target", "integer-only"), "integer-only takes integers alone, which text-cla"),
        (
            "all",
            (*STATIC, "--step", f"{TRAIN}:learning-rate=1e30"),
            "the training diverged at step ",
        ),
    ],
)
def test_what_a_static_scheme_cannot_be_made_of(
    rows: str | None,
    flags: tuple[str, ...],
    said: str,
    project: TinyProject,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = [] if rows is None else ["--data", str(project.train), "--eval", str(project.eval)]
    if rows in ("few", "one"):
        data = _rows_of(project, str(rows), here)
    assert said in _refused([str(project.checkpoint), *flags, *data], here, capsys)


@pytest.mark.parametrize(
    ("family", "steps", "said"),
    [
        ("bert", ["drop-layers:count=4"], "count must be from 1 to 3 of 4 layers, is 4"),
        ("bert", ["drop-layers:count=1,strategy=symmetric"], "4 - 1 is odd; drop 2"),
        ("bert", ["drop-layers:count=3,strategy=even"], "even drops at most 2 of 4 layers"),
        ("resnet", ["drop-layers:count=1"], "a resnet has no stack of layers"),
        ("bert", ["prune-heads:count=5,even=true"], "5 cannot be taken evenly from 4 layers"),
        ("bert", ["prune-heads:ratio=0.5"], "needs training rows"),
        ("mpnet", ["prune-heads:ratio=0.5,importance=magnitude"], "heads of mpnet cannot"),
        ("bert", ["prune-ffn:ratio=1.5"], "ratio is a share between 0 and 1"),
        ("bert", ["prune-accuracy-driven"], "needs training rows"),
        ("bert", ["prune-contrastive"], "needs training rows"),
        ("bert", ["prune-neurons:count=30"], "count must be from 1 to 24 neurons"),
        ("vit", ["prune-channels"], "a vit is made of attention"),
        ("bert", ["prune-channels"], "this model has no convolutions"),
        ("bert", ["factorize:method=III,rank=4"], "32 is no multiple of the width 24"),
        ("distilbert", ["factorize-embedding:rank=25"], "rank"),
        ("albert", ["tie-layers:groups=1"], "layers share their weights already"),
        ("bert", ["tie-layers:groups=4"], "groups must be from 1 to 3 of 4 different layers"),
        ("bert", ["sparsify:sparsity=1"], "sparsity is the share of zeros"),
        ("xlnet", ["sparsify:epochs=0"], "an xlnet has matrices in its layers"),
        ("bert", ["postprocess:kind=unit-length"], "needs training rows"),
        ("bert", ["trim-vocabulary:common=-1"], "trim-vocabulary"),
        ("bert", ["prune-neurons:count=3", "postprocess:kind=mean"], "postprocess"),
    ],
)
def test_a_step_that_cannot_be_is_refused_before_work(
    family: str,
    steps: list[str],
    said: str,
    tmp_path: Path,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pictures = family in ("resnet", "vit")
    task = "image-classification" if pictures else "text-classification"
    sizes = {} if family == "resnet" else {"layers": 4}
    checkpoint = tiny_checkpoint(tmp_path / "model", family, task, **sizes)
    flags = [flag for step in steps for flag in ("--step", step)]
    assert said in _refused([str(checkpoint), *SERVER, *flags], here, capsys)
    assert not list(here.iterdir())


def _fill(state: dict[str, Any], tensor: str, value: float) -> None:
    state[f"{DENSE}.{tensor}"].fill_(value)


def _clear(state: dict[str, Any]) -> None:
    for tensor in ("weight", "bias"):
        _fill(state, tensor, 0.0)


def _narrow(state: dict[str, Any]) -> None:
    state[f"{DENSE}.weight"] = state[f"{DENSE}.weight"].to(torch.int8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: _fill(state, "weight", float("nan")), f"{DENSE}.weight holds 768 values"),
        (lambda state: _fill(state, "bias", float("inf")), f"{DENSE}.bias holds 32 values that"),
        (lambda state: _fill(state, "weight", 3e38), f"{DENSE} gives values that are infinite or"),
        (_clear, f"{DENSE} gives nothing but zeros on the training rows"),
        (_narrow, f"is quantized already: see {DENSE}.weight; give the float checkpoint"),
    ],
)
def test_weights_without_a_range_are_named(
    change: Callable[[dict[str, Any]], None],
    said: str,
    project: TinyProject,
    here: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = here / "broken"
    shutil.copytree(project.checkpoint, broken)
    state = load_file(broken / "model.safetensors")
    change(state)
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    data = ["--data", str(project.train), "--eval", str(project.eval)]
    assert said in _refused([str(broken), *STATIC, *data], here, capsys)


def test_a_checkpoint_that_another_tool_quantized_is_refused(
    project: TinyProject, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = here / "other"
    shutil.copytree(project.checkpoint, other)
    fields = json.loads((other / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (other / "config.json").write_text(json.dumps(fields))
    said = _refused([str(other), *TARGET], here, capsys)
    assert "is quantized already (gptq); give the float checkpoint" in said


def test_random_calibration_is_planned_only_where_it_is_allowed(
    project: TinyProject, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = ["build", str(project.checkpoint), *STATIC, "--allow-random-calibration"]
    assert run([*allowed, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [(step["name"], step["random"]) for step in plan["steps"]] == [("calibrate", True)]
    assert any(
        note.startswith("WARNING: ranges are calibrated on random") for note in plan["notes"]
    )
    assert run([*allowed, "--data", str(project.train), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [(step["name"], step["random"]) for step in plan["steps"]] == [("calibrate", False)]
    assert not any("WARNING" in note for note in plan["notes"])
