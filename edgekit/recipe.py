"""A recipe: the ordered steps of a build, as text, as TOML tables, or as a file of them.

Rules:

1. ``trim-vocabulary:min-count=2,words=words.txt`` is a step with options; the name alone takes
   every default. In TOML the same is a table: ``name = "trim-vocabulary"``, ``min-count = 2``.
2. A step is a frozen dataclass; its fields are its options, spelled with dashes. Several paths
   in one option are parted by ``;``, or in TOML a list.
3. Names come from the entry point group ``edgekit.steps``, so that any installed package can
   add a step; edgekit's own are known without it.
"""

import dataclasses
import difflib
import functools
import importlib.metadata
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError
from edgekit.toml import find_line, place, read_fields

if TYPE_CHECKING:
    from edgekit.step import Step

_GROUP = "edgekit.steps"
_BUILT_IN = {
    "calibrate": "edgekit.steps.quantize.calibrate:Calibrate",
    "cerberus": "edgekit.steps.distill.cerberus:Cerberus",
    "distill": "edgekit.steps.distill.distill:Distill",
    "drop-layers": "edgekit.steps.prune.drop_layers:DropLayers",
    "factorize": "edgekit.steps.factorize.factorize:Factorize",
    "factorize-embedding": "edgekit.steps.factorize.embedding:FactorizeEmbedding",
    "finetune": "edgekit.steps.finetune.finetune:Finetune",
    "postprocess": "edgekit.steps.postprocess:Postprocess",
    "pretrain-mlm": "edgekit.steps.finetune.pretrain_mlm:PretrainMlm",
    "prune-accuracy-driven": "edgekit.steps.prune.accuracy_driven:PruneAccuracyDriven",
    "prune-channels": "edgekit.steps.prune.channels:PruneChannels",
    "prune-contrastive": "edgekit.steps.prune.contrastive:PruneContrastive",
    "prune-ffn": "edgekit.steps.prune.ffn:PruneFfn",
    "prune-heads": "edgekit.steps.prune.heads:PruneHeads",
    "prune-neurons": "edgekit.steps.prune.neurons:PruneNeurons",
    "quantize-aware-train": "edgekit.steps.quantize.quantize_aware_train:QuantizeAwareTrain",
    "round-weights": "edgekit.steps.quantize.round_weights:RoundWeights",
    "smooth-activations": "edgekit.steps.quantize.smooth_activations:SmoothActivations",
    "sparsify": "edgekit.steps.prune.sparsify:Sparsify",
    "student": "edgekit.steps.distill.student:Student",
    "student-bilstm": "edgekit.steps.distill.bilstm:StudentBilstm",
    "student-cmow": "edgekit.steps.distill.cmow:StudentCmow",
    "student-cnn": "edgekit.steps.distill.cnn:StudentCnn",
    "student-ngram": "edgekit.steps.distill.ngram:StudentNgram",
    "tie-layers": "edgekit.steps.factorize.tie_layers:TieLayers",
    "trim-vocabulary": "edgekit.steps.vocabulary.trim_vocabulary:TrimVocabulary",
}


@dataclass(frozen=True)
class StepSpec:
    """A step with its options set, and the name that it is registered under."""

    name: str
    step: "Step"

    def options(self) -> dict[str, Any]:
        """All options by their dashed names."""
        fields = dataclasses.fields(typing.cast(Any, self.step))
        return {_dashed(field.name): getattr(self.step, field.name) for field in fields}

    def to_json(self) -> dict[str, Any]:
        """The TOML table of this step, with every option written out."""
        return {"name": self.name, **{k: _plain(v) for k, v in self.options().items()}}

    def __str__(self) -> str:
        """The text form, with the options that differ from their defaults."""
        defaults = {option.name: option.default for option in step_options(self.name)}
        changed = [f"{k}={_shown(v)}" for k, v in self.options().items() if v != defaults[k]]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


@dataclass(frozen=True)
class Option:
    """One option of a step. ``default`` is ``None`` also where the option has none to show."""

    name: str
    type: str
    default: Any
    required: bool


def step_names() -> tuple[str, ...]:
    """Names of all steps, edgekit's own and those that installed packages add, sorted."""
    return tuple(sorted(_entries()))


def step_summary(name: str) -> str:
    """The first line of the step's docstring."""
    return (step_class(name).__doc__ or "").strip().partition("\n")[0]


def step_options(name: str) -> tuple[Option, ...]:
    """The options of a step, in the order of its fields."""
    kind = step_class(name)
    hints = typing.get_type_hints(kind)
    return tuple(
        Option(
            name=_dashed(field.name),
            type=_type_name(hints[field.name]),
            default=None if field.default is dataclasses.MISSING else field.default,
            required=field.default is field.default_factory is dataclasses.MISSING,
        )
        for field in dataclasses.fields(kind)
    )


def step_class(name: str) -> type[Any]:
    """The dataclass registered as ``name``.

    Raises RecipeError for an unknown step (suggesting the nearest) or one that does not load.
    """
    entries = _entries()
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = (
            f"did you mean '{near[0]}'?" if near else f"known steps: {', '.join(sorted(entries))}"
        )
        raise RecipeError(f"unknown step '{name}'; {hint}")
    try:
        kind = entries[name].load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"step '{name}' cannot be loaded from {entries[name].value}: {error}; "
            "mend or remove the package that registers it"
        ) from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise RecipeError(f"step '{name}' is not a dataclass ({entries[name].value})")
    return kind


def parse_step(text: str) -> StepSpec:
    """A step from its text form. Raises RecipeError."""
    name, colon, rest = text.strip().partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        option, equals, value = part.partition("=")
        if not equals or not option.strip():
            raise RecipeError(
                f"step '{text}': write options as name=value, as in {name}:name=value,name=value"
            )
        if option.strip() in options:
            raise RecipeError(f"step '{text}': '{option.strip()}' is given twice")
        options[option.strip()] = value.strip()
    return make_step(name.strip(), options)


def parse_table(table: Mapping[str, Any]) -> StepSpec:
    """A step from its TOML table. Raises RecipeError."""
    options = dict(table)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise RecipeError('a step needs a name, as in name = "trim-vocabulary"')
    return make_step(name, options)


def make_step(name: str, options: Mapping[str, Any]) -> StepSpec:
    """A step with these options (dashed names; texts are turned into the option's type)."""
    kind = step_class(name)
    known = {option.name: option for option in step_options(name)}
    for option in options:
        if option not in known:
            listed = f"its options are {', '.join(known)}" if known else "it has none"
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise RecipeError(f"step {name} has no option '{option}'; {hint}{listed}")
    for missing in [o.name for o in known.values() if o.required and o.name not in options]:
        raise RecipeError(f"step {name} needs its option '{missing}'")
    hints = typing.get_type_hints(kind)
    values = {
        option.replace("-", "_"): _coerce(name, option, value, hints[option.replace("-", "_")])
        for option, value in options.items()
    }
    return StepSpec(name, kind(**values))


def parse_steps(items: list[Any], path: Path, text: str) -> tuple[StepSpec, ...]:
    """The value of ``steps`` in the TOML file ``path``: texts, tables, or both.

    Paths among the options are relative to the file's folder. ``text`` is the file's content,
    for the line of what is wrong.
    """
    steps = []
    for index, item in enumerate(items):
        try:
            if isinstance(item, str):
                spec = parse_step(item)
            elif isinstance(item, dict):
                spec = parse_table(item)
            else:
                raise RecipeError(f"{item!r} is no step; write its name or a table")
        except RecipeError as error:
            where = place(str(path), _step_line(text, index))
            raise RecipeError(f"{where}: steps: {error}") from None
        steps.append(_relative_to(path.parent, spec))
    return tuple(steps)


def load_recipe(path: Path) -> tuple[StepSpec, ...]:
    """The steps of a recipe file: a TOML file with ``[[steps]]`` and nothing else."""
    fields, text = read_fields(path, RecipeError)
    others = [key for key in fields if key != "steps"]
    if others:
        where = place(str(path), find_line(text, others[:1]))
        raise RecipeError(f"{where}: {others[0]}: a recipe file holds only [[steps]]")
    steps = fields.get("steps")
    if not isinstance(steps, list) or not steps:
        raise RecipeError(f'{path} holds no steps; begin with [[steps]] and name = "…"')
    return parse_steps(steps, path, text)


@functools.cache
def _entries() -> dict[str, EntryPoint]:
    own = {name: EntryPoint(name, value, _GROUP) for name, value in _BUILT_IN.items()}
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=_GROUP)} | own


def _coerce(step: str, option: str, value: Any, hint: Any) -> Any:
    import pydantic

    if isinstance(value, str) and hint == tuple[Path, ...]:
        value = [part.strip() for part in value.split(";") if part.strip()]
    try:
        return pydantic.TypeAdapter(hint).validate_python(value)
    except pydantic.ValidationError as problem:
        raise RecipeError(
            f"step {step}: {option} must be {_type_name(hint)}, is {value!r}"
        ) from problem


def paths_in(value: Any) -> tuple[Path, ...]:
    """The paths that an option's value is or holds."""
    listed = value if isinstance(value, tuple) else (value,)
    return tuple(each for each in listed if isinstance(each, Path))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ";".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _relative_to(folder: Path, spec: StepSpec) -> StepSpec:
    paths = {
        option.replace("-", "_"): folder / value
        if isinstance(value, Path)
        else tuple(folder / each for each in value)
        for option, value in spec.options().items()
        if paths_in(value)
    }
    step: Any = spec.step
    return StepSpec(spec.name, dataclasses.replace(step, **paths))


def _type_name(hint: Any) -> str:
    """``int``, ``text``, or the choices of a Literal, as a person would put it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return "|".join(str(choice) for choice in parts)
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_name(part) for part in parts if part is not type(None))
    if origin is tuple:
        return "paths"
    names = {float: "number", str: "text", bool: "true|false", Path: "path"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _step_line(text: str, index: int) -> int | None:
    """The line of the step's ``[[steps]]``, or of ``steps = [``."""
    lines = text.splitlines()
    tables = [n for n, line in enumerate(lines, 1) if line.replace(" ", "").startswith("[[steps]]")]
    return tables[index] if index < len(tables) else find_line(text, ["steps"])


def _dashed(name: str) -> str:
    return name.replace("_", "-")
