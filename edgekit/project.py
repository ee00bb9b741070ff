"""What a build is asked to do: the project file, the flags, and the settings they make together.

``edgekit.toml`` and the flags of a command say the same things, so both become a ``Project``.
``resolve`` lays the flags over the file and fills in the defaults.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edgekit.artifact import FORMATS, SCHEMES, Format, Scheme
from edgekit.budget import Budget, parse_budget
from edgekit.data import Columns
from edgekit.errors import EdgekitError, OutputError, ProjectError, UsageError
from edgekit.recipe import StepSpec, parse_step, parse_steps
from edgekit.target import load_target, scheme_refusal, target_names
from edgekit.task import Task
from edgekit.toml import find_line, place, read_fields, validate

FILE = "edgekit.toml"
_OUTPUT = Path("dist")
_LARGEST_SEED = 2**32 - 1  # of numpy's generators


@dataclass(frozen=True)
class Project:
    """What a project file or the flags ask for; ``None`` where they say nothing."""

    model: str | None = None
    task: str | None = None
    data: str | None = None
    eval: str | None = None
    unlabeled: tuple[str, ...] | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    targets: tuple[str, ...] | None = None
    formats: tuple[Format, ...] | None = None
    scheme: Scheme | None = None
    budget: Budget | None = None
    lengths: tuple[int, ...] | None = None
    steps: tuple[StepSpec, ...] | None = None
    seed: int | None = None
    devices: tuple[str, ...] | None = None
    output: Path | None = None


@dataclass(frozen=True)
class Settings:
    """What a build does, with everything decided.

    unlabeled: rows for a teacher to answer. formats, scheme: empty and ``None`` leave the choice
    to each target. lengths: empty lets the
    training text choose. steps: empty lets the planner choose. devices: where else each file must
    answer as it does here. origins: where each value comes
    from, "flag", "default" or the project file's name, by the field names of ``Project``.
    """

    model: str
    targets: tuple[str, ...]
    task: str | None = None
    data: str | None = None
    eval: str | None = None
    unlabeled: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    formats: tuple[Format, ...] = ()
    scheme: Scheme | None = None
    budget: Budget = field(default_factory=Budget)
    lengths: tuple[int, ...] = ()
    steps: tuple[StepSpec, ...] = ()
    seed: int = 0
    devices: tuple[str, ...] = ()
    output: Path = _OUTPUT
    overwrite: bool = False
    allow_random_calibration: bool = False
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Any]:
        """What decides the outcome. Where it is written to does not, and is left out."""
        return {
            "model": self.model,
            "task": self.task,
            "data": self.data,
            "eval": self.eval,
            "unlabeled": list(self.unlabeled),
            "columns": vars(self.columns),
            "targets": list(self.targets),
            "formats": list(self.formats),
            "scheme": self.scheme,
            "budget": self.budget.to_json(),
            "lengths": list(self.lengths),
            "steps": [step.to_json() for step in self.steps],
            "seed": self.seed,
            "devices": list(self.devices),
            "allow_random_calibration": self.allow_random_calibration,
        }


@dataclass(frozen=True)
class _File:
    """The keys of ``edgekit.toml``; what is a list or ``budget`` may be one text as well.

    What is in ``gate`` is for ``edgekit.gating.rules`` to read.
    """

    model: str | None = None
    task: str | None = None
    data: str | None = None
    eval: str | None = None
    unlabeled: tuple[str, ...] | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    target: tuple[str, ...] | None = None
    format: tuple[str, ...] | None = None
    scheme: str | None = None
    budget: str | None = None
    lengths: tuple[int, ...] | None = None
    steps: list[Any] | None = None
    seed: int | None = None
    device: tuple[str, ...] | None = None
    output: str | None = None
    gate: dict[str, Any] | None = None
    __pydantic_config__: ClassVar = {
        "extra": "forbid",
        "alias_generator": lambda name: name.replace("_", "-"),
    }


def load_project(path: Path) -> Project:
    """The project file ``path``, or ``edgekit.toml`` in that folder.

    Paths in it are relative to its folder. Raises ProjectError with line and key.
    """
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ProjectError(f"no project file {path}; write one with: edgekit init")
    fields, text = read_fields(path, ProjectError)
    for key in ("target", "format", "unlabeled"):
        if isinstance(fields.get(key), str):
            fields[key] = [fields[key]]
    if isinstance(fields.get("budget"), dict):
        fields["budget"] = ",".join(f"{name}={value}" for name, value in fields["budget"].items())
    file = validate(fields, _File, ProjectError, source=str(path), text=text)
    values = {key: value for key, value in vars(file).items() if value is not None}
    values.pop("gate", None)
    if "steps" in values:
        values["steps"] = parse_steps(values["steps"], path, text)

    def where(key: str) -> str:
        return f"{place(str(path), find_line(text, [key]))}: {key}"

    return _relative_to(path.parent, _project(values, where, ProjectError))


def find_project(folder: Path) -> Project | None:
    """The project of a folder, or ``None`` when it has no ``edgekit.toml``."""
    return load_project(folder) if (folder / FILE).exists() else None


def find_output(folder: Path) -> Path:
    """Where builds in a folder put their bundles, when no flag says otherwise."""
    project = find_project(folder)
    return (project and project.output) or folder / _OUTPUT


def read_flags(values: Mapping[str, Any]) -> Project:
    """The flags of a command, by their names in ``edgekit.toml``; ``None`` and empty are unsaid.

    ``budget`` and ``lengths`` are texts as typed, ``steps`` a sequence of texts or StepSpecs.
    Raises UsageError naming the flag.
    """
    said = {key: value for key, value in values.items() if value not in (None, (), [])}

    def where(key: str) -> str:
        return "--step" if key == "steps" else "--" + key.replace("_", "-")

    return _project(said, where, UsageError)


def resolve(
    project: Project | None,
    flags: Project,
    *,
    overwrite: bool = False,
    allow_random_calibration: bool = False,
) -> Settings:
    """The settings of a build: flags first, then the project file, then the defaults.

    Raises UsageError when no model or target is named, TargetError for an unknown target.
    """
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name in (each.name for each in dataclasses.fields(Project)):
        for origin, said in (("flag", flags), (FILE, project)):
            if said is not None and getattr(said, name) is not None:
                chosen[name], origins[name] = getattr(said, name), origin
                break
        else:
            origins[name] = "default"
    if "model" not in chosen:
        begin = "edgekit build sample:banking77 --target android-arm64 --budget 30MB"
        missing = f"no model in {FILE}" if project else f"no MODEL, and no {FILE} here"
        raise UsageError(f"{missing}; begin with: {begin} (or write a project: edgekit init)")
    if "targets" not in chosen:
        raise UsageError("no target; name one as in --target android-arm64 (edgekit targets)")
    for name in chosen["targets"]:
        target = load_target(name)
        formats = chosen.get("formats", target.formats)
        refused = scheme_refusal(target, formats, chosen.get("scheme", target.scheme))
        if refused is not None:
            places = {"flag": "--scheme", FILE: f"{FILE}: scheme"}
            raise UsageError(f"{places.get(origins['scheme'], '--format')}: {refused}")
    columns = Columns(*(chosen.pop(name, None) for name in ("text", "text_pair", "label")))
    return Settings(
        **chosen,
        columns=columns,
        overwrite=overwrite,
        allow_random_calibration=allow_random_calibration,
        origins=origins,
    )


def write_project(path: Path, values: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write ``edgekit.toml`` with these values (texts as typed; see ``read_flags``).

    Raises UsageError when the file is there and ``overwrite`` is not given.
    """
    if path.exists() and not overwrite:
        raise UsageError(f"{path} is there already; edit it, or replace it with --overwrite")
    lines = [
        "# What `edgekit build` does in this folder. Flags override these lines;",
        "# `edgekit build --help` lists them.",
    ]
    for key, comment in _COMMENTS.items():
        value = values.get(key.replace("-", "_"))
        if value in (None, (), []):
            continue
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        line = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        lines.append(f"{line}  # {comment}" if comment else line)
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; run edgekit init in a folder that is yours"
        ) from None


_COMMENTS = {
    "model": "",
    "task": "",
    "data": "training rows: calibration and vocabulary come from here only",
    "eval": "rows for the figures only",
    "text": "",
    "text-pair": "",
    "label": "",
    "target": "",
    "budget": "what an app ships for the model",
}


def _project(
    values: Mapping[str, Any], where: Callable[[str], str], error: type[EdgekitError]
) -> Project:
    """Turn raw values into a Project; what is wrong is said after ``where(key)``."""
    read: dict[str, Any] = {}
    for key, value in values.items():
        name, parse = _READERS.get(key, (key, None))
        try:
            read[name] = parse(value) if parse else value
        except EdgekitError as problem:
            raise error(f"{where(key)}: {problem}") from None
    return Project(**read)


def _read_task(value: str) -> str:
    return _choice(value, typing.get_args(Task), "task")


def _read_names(value: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value))


def _read_formats(value: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_choice(each, FORMATS, "format") for each in value))


def _read_scheme(value: str) -> str:
    return _choice(value, SCHEMES, "scheme")


def _read_lengths(value: str | Sequence[int]) -> tuple[int, ...]:
    if isinstance(value, str):
        try:
            value = [int(part) for part in value.split(",")]
        except ValueError:
            raise UsageError(f"'{value}' is not a list of lengths; write it as 16,32,64") from None
    for length in value:
        if length < 1:
            raise UsageError(f"a length is a number of tokens above zero, not {length}")
    return tuple(sorted(set(value)))


def _read_steps(value: Sequence[str | StepSpec]) -> tuple[StepSpec, ...]:
    return tuple(parse_step(each) if isinstance(each, str) else each for each in value)


def check_seed(value: int) -> int:
    """The seed itself. Raises UsageError unless it can be one."""
    if not 0 <= value <= _LARGEST_SEED:
        raise UsageError(f"a seed is a whole number from 0 to {_LARGEST_SEED}, not {value}")
    return value


# Key in the file (and flag) → field of Project, and how its value is read.
_READERS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "task": ("task", _read_task),
    "unlabeled": ("unlabeled", _read_names),
    "target": ("targets", _read_names),
    "format": ("formats", _read_formats),
    "scheme": ("scheme", _read_scheme),
    "budget": ("budget", parse_budget),
    "lengths": ("lengths", _read_lengths),
    "steps": ("steps", _read_steps),
    "seed": ("seed", check_seed),
    "device": ("devices", _read_names),
    "output": ("output", Path),
}


def _choice(value: str, choices: Sequence[str], what: str) -> str:
    if value not in choices:
        near = [each for each in choices if each.startswith(value)]
        near = near or difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UsageError(f"'{value}' is not a {what}; {hint}choose from {', '.join(choices)}")
    return value


def _relative_to(folder: Path, project: Project) -> Project:
    """The project with what it names in its own folder found from here.

    A model, data set or target need not be a path; it is one when it exists in the folder.
    """
    if folder.absolute() == Path.cwd():
        return project

    def found(value: str | None) -> str | None:
        return str(folder / value) if value and (folder / value).exists() else value

    return dataclasses.replace(
        project,
        model=found(project.model),
        data=found(project.data),
        eval=found(project.eval),
        unlabeled=project.unlabeled and tuple(str(found(each)) for each in project.unlabeled),
        targets=project.targets
        and tuple(t if t in target_names() else str(found(t)) for t in project.targets),
        output=folder / (project.output or _OUTPUT),
    )
