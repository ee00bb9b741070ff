"""What differs between two model files or bundles: bytes, operators, dtypes, and the answers.

Texts are tokenized for each file by the tokenizer beside it, since a trimmed vocabulary has other
ids for the same words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import SUFFIXES, Artifact
from edgekit.bundle.golden import golden_inputs, read_golden
from edgekit.bundle.manifest import FILE, check_files, read_manifest
from edgekit.bundle.verify import artifacts
from edgekit.contents.diff import FileDiff, diff_files
from edgekit.data import Columns, Rows, load_data
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DataError, DeviceError, ModelError, UsageError
from edgekit.events import Event, silent
from edgekit.filemodel import FileModel, read_file_model
from edgekit.measure.departure import Departure, first_departure
from edgekit.measure.parity import Difference, compare
from edgekit.preprocess import Encoded


@dataclass(frozen=True)
class Numerics:
    """Both files' answers to the same rows. difference: the second's from the first's; nothing,
    and a ``reason``, where they cannot be compared."""

    inputs: str
    rows: int
    difference: Difference | None = None
    departure: Departure | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "rows": self.rows,
            "difference": None if self.difference is None else self.difference.to_json(),
            "departure": None if self.departure is None else self.departure.to_json(),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Comparison:
    """Two files. numerics: none without inputs."""

    files: FileDiff
    numerics: Numerics | None

    def to_json(self) -> dict[str, Any]:
        numerics = None if self.numerics is None else self.numerics.to_json()
        return {**self.files.to_json(), "numerics": numerics}


def diff(
    first: Path,
    second: Path,
    *,
    inputs: str | None = None,
    on_event: Callable[[Event], None] = silent,
) -> tuple[Comparison, ...]:
    """Compare two model files, or the model files of two bundles format by format.

    inputs: rows to feed both files (``--data``'s kinds of file); without them the golden inputs
    of a bundle, where one of the two is or lies in one. Raises ModelError or BundleError for what
    is damaged, DataError for rows that do not fit, UsageError when there is nothing to pair.
    """
    return tuple(
        _compare(one, other, inputs, on_event)
        for one, other in _pairs(_files(first), _files(second))
    )


@dataclass(frozen=True)
class _File:
    path: Path
    golden: dict[str, Any] | None = None
    artifact: Artifact | None = None


def _files(path: Path) -> list[_File]:
    """The model files of a bundle or folder, or the one file."""
    folder = path if path.is_dir() else path.parent
    if (folder / FILE).is_file():
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        golden = read_golden(folder)
        found = [_File(a.path, golden, a) for a in artifacts(folder, manifest)]
        return [each for each in found if path.is_dir() or each.path.name == path.name]
    if not path.is_dir():
        return [_File(path)]
    found = [_File(p) for p in sorted(path.iterdir()) if p.suffix in SUFFIXES.values()]
    if not found:
        raise ModelError(f"{path} holds no model file; name a file, or a folder that build wrote")
    return found


def _pairs(ones: list[_File], others: list[_File]) -> list[tuple[_File, _File]]:
    """Files of the same format; where each side has one file, those."""
    if len(ones) == len(others) == 1:
        return [(ones[0], others[0])]
    found = [(a, b) for a in ones for b in others if a.path.suffix == b.path.suffix]
    if not found:
        kinds = " and ".join(", ".join(f.path.name for f in side) for side in (ones, others))
        raise UsageError(f"there is nothing to pair among {kinds}; name one file of each")
    return found


def _compare(
    one: _File, other: _File, inputs: str | None, on_event: Callable[[Event], None]
) -> Comparison:
    title = f"comparing {one.path} with {other.path}"
    on_event(Event("stage-start", "diff", title))
    files = diff_files(one.path, other.path)
    numerics = None
    if inputs is not None or one.golden or other.golden:
        numerics = _numerics(one, other, inputs)
    on_event(Event("stage-end", "diff", title))
    return Comparison(files, numerics)


def _numerics(one: _File, other: _File, inputs: str | None) -> Numerics:
    models = [read_file_model(each.path, None) for each in (one, other)]
    pair = [each.artifact or model.artifact for each, model in zip((one, other), models)]
    if inputs is not None:
        said, encoded = inputs, _read(inputs, models, pair)
    else:
        said = f"the golden inputs of {(one if one.golden else other).path.parent}"
        encoded = _golden(one.golden or other.golden or {}, models, pair)
    rows = len(encoded[0])
    try:
        found = [
            run_agent(artifact, each, [Pass("rows", "outputs")], threads=1)["passes"]["rows"]
            for artifact, each in zip(pair, encoded)
        ]
    except DeviceError as error:
        return Numerics(said, rows, reason=str(error))
    answers, others = (each["outputs"] for each in found)
    departure = first_departure(pair[0], pair[1], encoded[0], encoded[1])
    if answers.shape != others.shape:
        reason = f"answers of different shapes: {list(answers.shape)} and {list(others.shape)}"
        return Numerics(said, rows, departure=departure, reason=reason)
    model = models[0]
    # One answer a row, also where a file answers for each token or pixel.
    width = answers.shape[-1] if answers.ndim > 1 else 1
    answers, others = answers.reshape(-1, width), others.reshape(-1, width)
    difference = compare(others, answers, task=model.task, problem=model.problem)
    return Numerics(said, rows, difference, departure)


def _read(reference: str, models: list[FileModel], pair: list[Artifact]) -> list[Encoded]:
    """The rows of a file, as each model takes them."""
    model = models[0]
    texts = model.preprocessor is not None and not reference.endswith(".npz")
    task = model.task if texts else "module"
    data = load_data(None, reference, task=task, problem=model.problem, columns=Columns(), seed=0)
    rows = data.eval
    if rows is None or not len(rows):
        raise DataError(f"{reference} has no rows; give some")
    if texts:
        return [_encode(each, rows, reference) for each in models]
    arrays = dict(rows.arrays or {})
    for artifact in pair:
        missing = [t.name for t in artifact.inputs if t.name not in arrays]
        if missing:
            have = ", ".join(arrays) or "nothing"
            raise DataError(
                f"{reference} has no array '{missing[0]}', which {artifact.path.name} takes (it "
                f"has: {have}); name its arrays like the inputs"
            )
    return [Encoded(arrays, None)] * 2


def _golden(
    content: dict[str, Any], models: list[FileModel], pair: list[Artifact]
) -> list[Encoded]:
    rows = content["rows"]
    if all("text" in row for row in rows) and all(m.preprocessor is not None for m in models):
        pairs = tuple(row["text_pair"] for row in rows) if "text_pair" in rows[0] else None
        texts = Rows(texts=tuple(row["text"] for row in rows), pairs=pairs)
        return [_encode(model, texts, "golden.json") for model in models]
    return [golden_inputs(content, artifact) for artifact in pair]


def _encode(model: FileModel, rows: Rows, source: str) -> Encoded:
    if model.preprocessor is None:
        raise DataError(
            f"{source} has texts, and no tokenizer.json lies beside {model.artifact.path}; give an "
            ".npz with its inputs"
        )
    return model.preprocessor.encode(rows)
