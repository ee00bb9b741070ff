"""The project file, the flags, and the settings that they make together."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.budget import Budget
from edgekit.data import Columns
from edgekit.errors import EdgekitError, ProjectError, TargetError, UsageError
from edgekit.project import (
    Project,
    find_project,
    load_project,
    read_flags,
    resolve,
    write_project,
)
from edgekit.recipe import parse_step


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, path: str = "edgekit.toml") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


FULL = """
model = "checkpoints/mine"
task = "text-classification"
data = "train.csv"
eval = "test.csv"
unlabeled = "more.txt"
text = "utterance"
text-pair = "reply"
label = "intent"
target = ["android-arm64", "ios-arm64"]
format = "tflite"
scheme = "fp16"
lengths = [64, 16, 64]
seed = 7
output = "out"

[budget]
size = "30MB"
accuracy-drop = "1%"

[[steps]]
name = "trim-vocabulary"
min-count = 2

[gate.ops]
max = 300
"""


def test_every_key_of_a_project_file_reaches_the_settings() -> None:
    settings = resolve(load_project(write(FULL)), Project())
    assert settings.model == "checkpoints/mine"
    assert settings.task == "text-classification"
    assert (settings.data, settings.eval) == ("train.csv", "test.csv")
    assert settings.unlabeled == ("more.txt",)
    assert settings.columns == Columns("utterance", "reply", "intent")
    assert settings.targets == ("android-arm64", "ios-arm64")
    assert settings.formats == ("tflite",)
    assert settings.scheme == "fp16"
    assert settings.budget == Budget(size=30_000_000, accuracy_drop=0.01)
    assert settings.lengths == (16, 64)
    assert settings.steps == (parse_step("trim-vocabulary:min-count=2"),)
    assert settings.seed == 7
    assert settings.output == Path("out")
    assert not settings.overwrite


def test_short_forms() -> None:
    short = 'target = "web-wasm"\nbudget = "28.5MiB"\nsteps = ["trim-vocabulary:min-count=2"]'
    project = load_project(write(short))
    assert project.targets == ("web-wasm",)
    assert project.budget == Budget(size=29_884_416)
    assert project.steps == (parse_step("trim-vocabulary:min-count=2"),)


def test_flags_override_the_file_and_each_origin_is_kept() -> None:
    project = load_project(write('model = "a"\ntarget = "android-arm64"\nseed = 3'))
    settings = resolve(project, read_flags({"model": "b", "seed": 0, "budget": "1MB"}))
    assert (settings.model, settings.seed, settings.targets) == ("b", 0, ("android-arm64",))
    assert settings.origins["model"] == settings.origins["seed"] == "flag"
    assert settings.origins["targets"] == "edgekit.toml"
    assert settings.origins["output"] == "default"


def test_settings_are_json_and_do_not_say_where_the_output_goes() -> None:
    project = load_project(write(FULL))
    settings = resolve(project, Project(), overwrite=True)
    elsewhere = resolve(project, read_flags({"output": "/elsewhere"}))
    assert json.dumps(settings.to_json()) == json.dumps(elsewhere.to_json())
    assert settings.to_json()["steps"][0]["min-count"] == 2
    assert settings.to_json()["budget"]["size"] == 30_000_000


def test_paths_of_a_project_elsewhere_are_found_from_here() -> None:
    write("text,label\n", "sub/train.csv")
    write("description = 1", "sub/mine/target.toml")
    path = write(
        'model = "org/name"\ndata = "train.csv"\ntarget = ["mine", "web-wasm"]\n'
        '[[steps]]\nname = "trim-vocabulary"\nwords = "words.txt"',
        "sub/edgekit.toml",
    )
    for project in (load_project(path), load_project(Path("sub"))):
        assert project.model == "org/name"  # no such path: a hub id stays one
        assert project.data == str(Path("sub/train.csv"))
        assert project.targets == (str(Path("sub/mine")), "web-wasm")
        assert project.output == Path("sub/dist")
        assert project.steps is not None
        assert project.steps[0].options()["words"] == Path("sub/words.txt")


def test_a_folder_without_a_project_has_none(tmp_path: Path) -> None:
    assert find_project(tmp_path) is None
    with pytest.raises(ProjectError, match=r"no project file .*edgekit init"):
        load_project(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('model = "x\n', "is not valid TOML"),
        ("\n\nmodel = 3", "edgekit.toml, line 3: model: Input should be a valid string (found 3)"),
        (
            'modle = "x"',
            "line 1: modle: unknown key; known keys are model, task, data, eval, unlabeled,",
        ),
        ("# seed\nseed = 1.5", "line 2: seed:"),
        ('seed = "x"', "line 1: seed:"),
        ("seed = -1", "line 1: seed: a seed is a whole number"),
        ('model = "m"\nbudget = "30XB"', "line 2: budget: '30XB' is not a size"),
        ('[budget]\nsiz = "30MB"', "line 1: budget: unknown limit 'siz'"),
        ("[budget]\nsize = 30", "line 1: budget: '30' is not a size"),
        ('format = "banana"', "line 1: format: 'banana' is not a format; choose from onnx"),
        ('scheme = "int8"', "'int8' is not a scheme; did you mean 'int8-dynamic'?"),
        ('scheme = "best"', "line 1: scheme: 'best' is not a scheme; choose from fp32, fp16"),
        ('task = "text-clasification"', "did you mean 'text-classification'?"),
        ("lengths = [16, 0]", "line 1: lengths: a length is a number of tokens above zero"),
        ('lengths = ["a"]', "line 1: lengths:"),
        ('target = ["web-wasm", 3]', "line 1: target:"),
        ('text_pair = "b"', "unknown key; known keys are model,"),
        ('steps = ["banana"]', "line 1: steps: unknown step 'banana'"),
        ('seed = 1\n[[steps]]\nname = "trim-vocabulary"\nmin-count = "x"', "line 2: steps:"),
    ],
)
def test_what_is_wrong_in_a_project_file_is_said_with_line_and_key(text: str, said: str) -> None:
    with pytest.raises(EdgekitError) as error:
        load_project(write(text))
    assert said in str(error.value)
    assert "edgekit.toml" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_project_file_that_is_no_text() -> None:
    Path("edgekit.toml").write_bytes(b'model = "\xff"')
    with pytest.raises(ProjectError, match="not UTF-8"):
        load_project(Path("edgekit.toml"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"budget": "30XB"}, "--budget: '30XB' is not a size"),
        ({"budget": "-5MB"}, "--budget: '-5MB' is not a size"),
        ({"budget": "0MB"}, "--budget: '0MB' leaves nothing"),
        ({"lengths": "16;32"}, "--lengths: '16;32' is not a list of lengths"),
        ({"lengths": "16,"}, "--lengths: '16,' is not a list of lengths"),
        ({"lengths": "-16,32"}, "--lengths: a length is a number of tokens above zero, not -16"),
        ({"format": ["tflit"]}, "--format: 'tflit' is not a format; did you mean 'tflite'?"),
        ({"scheme": "banana"}, "--scheme: 'banana' is not a scheme; choose from fp32"),
        ({"task": "banana"}, "--task: 'banana' is not a task; choose from text-classification"),
        ({"steps": ["banana"]}, "--step: unknown step 'banana'"),
        ({"seed": 2**32}, "--seed: a seed is a whole number from 0"),
    ],
)
def test_what_is_wrong_with_a_flag_is_said_with_its_name(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_flags(flags)
    assert str(error.value).startswith(said)


def test_no_model_says_how_to_begin() -> None:
    with pytest.raises(
        UsageError, match=r"no MODEL, and no edgekit\.toml here; begin with: edgekit"
    ):
        resolve(None, Project())
    with pytest.raises(UsageError, match=r"no model in edgekit\.toml"):
        resolve(Project(targets=("web-wasm",)), Project())


def test_no_target_and_an_unknown_target() -> None:
    with pytest.raises(UsageError, match="no target; name one"):
        resolve(None, Project(model="x"))
    with pytest.raises(TargetError, match="did you mean 'android-arm64'"):
        resolve(None, Project(model="x", targets=("android-arm",)))


def test_a_written_project_reads_back() -> None:
    values = {
        "model": 'C:\\"odd"\\namé',
        "data": "train.csv",
        "eval": None,
        "text_pair": "b",
        "target": ["web-wasm", "cuda"],
        "budget": "28.5MiB",
    }
    write_project(Path("edgekit.toml"), values)
    assert load_project(Path("edgekit.toml")) == read_flags(values)


def test_a_project_file_is_replaced_only_when_asked() -> None:
    path = write('model = "mine"')
    with pytest.raises(UsageError, match="is there already"):
        write_project(path, {"model": "other"})
    assert path.read_text() == 'model = "mine"'
    write_project(path, {"model": "other"}, overwrite=True)
    assert load_project(path).model == "other"
