"""Wrong usage: one sentence on stderr, exit 2, nothing on stdout, nothing written."""

from pathlib import Path

import pytest

from edgekit.cli import run

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
