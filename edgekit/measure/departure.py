"""Where two files that should do the same first do not: value by value, in the order they run.

Rules:

1. Only files of one format, ONNX or TFLite, have values in common: those of the same name. What
   does not match by name is not guessed; where nothing does, that is said.
2. Both run as written, without fusion or delegates, in a process each (``tensors.py``).
3. A value departs when the root-mean-square difference is more than 0.1 % of the first file's
   standard deviation, which rounding alone stays under.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.contents.graph import Graph
from edgekit.contents.operators import read_graph
from edgekit.measure.parity import TOLERANCE
from edgekit.preprocess import Encoded

_SCRIPT = Path(__file__).with_name("tensors.py")
_ROWS = 4
_PATIENCE = 300  # seconds for one file

Feed = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Value:
    """A value of both files. error: the root-mean-square difference as a share of the first's
    standard deviation. made_by: the first file's operator."""

    name: str
    made_by: str
    error: float


@dataclass(frozen=True)
class Departure:
    """values: those of both files, in the order of the first. first: the first beyond rounding,
    or none. reason: why there is nothing to compare."""

    values: tuple[Value, ...] = ()
    first: Value | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def first_departure(one: Artifact, other: Artifact, inputs: Encoded, others: Encoded) -> Departure:
    """Run both files on up to four rows. inputs, others: the same rows as each file takes them."""
    if one.format != other.format:
        reason = f"files of {one.format} and {other.format} have no values of the same name"
        return Departure(reason=reason)
    if one.format == "torchscript":
        return Departure(reason="the values inside a TorchScript file cannot be read")
    feeds, other_feeds = _feeds(one, inputs), _feeds(other, others)
    if [_shapes(feed) for feed in feeds] != [_shapes(feed) for feed in other_feeds]:
        return Departure(reason="the files take these rows in different shapes")
    length = None if inputs.lengths is None else int(inputs.lengths[0])
    graphs = (read_graph(one.path, length), read_graph(other.path, length))
    made = [_made(graph) for graph in graphs]
    names = [name for name in made[0] if name in made[1]]
    if not names:
        return Departure(reason="no value of one file has the name of one of the other")
    found = _run(one, names, feeds)
    found_there = _run(other, names, other_feeds)
    if isinstance(found, str) or isinstance(found_there, str):
        return Departure(reason=found if isinstance(found, str) else str(found_there))
    values = tuple(_compared(names, made[0], found, found_there))
    if not values:
        return Departure(reason="the values of the same name have different shapes")
    limit = TOLERANCE["fp32"]
    return Departure(values, next((v for v in values if not v.error <= limit), None))


def _made(graph: Graph | None) -> dict[str, str]:
    """The values that operators make, and the kind of each one's operator, in their order."""
    operators = () if graph is None else graph.operators
    return {value.name: op.kind for op in operators for value in op.outputs if value.name}


def _feeds(artifact: Artifact, encoded: Encoded) -> list[Feed]:
    """One row each, as long as it is, or as the file's bucket for it."""
    feeds = []
    for row in range(min(_ROWS, len(encoded))):
        feed = {t.name: encoded.arrays[t.name][row : row + 1] for t in artifact.inputs}
        if encoded.lengths is not None:
            length = int(encoded.lengths[row])
            width = next((b for b in artifact.lengths if b >= length), length)
            feed = {name: _fit(array[:, :length], width) for name, array in feed.items()}
        feeds.append(feed)
    return feeds


def _fit(array: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    return np.pad(array, ((0, 0), (0, max(0, width - array.shape[1]))))


def _shapes(feed: Feed) -> list[tuple[int, ...]]:
    return [array.shape for array in feed.values()]


def _run(artifact: Artifact, names: Sequence[str], feeds: Sequence[Feed]) -> "dict[str, Any] | str":
    """The values by ``row/place``, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="edgekit-values-") as name:
        folder = Path(name)
        arrays = {
            f"{row}/{key}": array for row, feed in enumerate(feeds) for key, array in feed.items()
        }
        np.savez(folder / "inputs.npz", allow_pickle=False, **arrays)
        job = {
            "file": str(artifact.path.absolute()),
            "format": artifact.format,
            "inputs": str(folder / "inputs.npz"),
            "rows": len(feeds),
            "names": list(names),
        }
        (folder / "job.json").write_text(json.dumps(job))
        try:
            done = subprocess.run(
                [sys.executable, "-s", str(_SCRIPT), "job.json", "values.npz"],
                cwd=folder,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": ""},
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
            )
            with np.load(folder / "values.npz", allow_pickle=False) as archive:
                return dict(archive)
        except subprocess.TimeoutExpired:
            return f"{artifact.path.name} did not finish within {_PATIENCE} s"
        except (OSError, ValueError):
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
            return f"{artifact.path.name} does not run with its values kept: {last[0][:200]}"


def _compared(
    names: Sequence[str], made: dict[str, str], found: dict[str, Any], others: dict[str, Any]
) -> "list[Value]":
    values = []
    rows = {key.partition("/")[0] for key in found}
    for number, name in enumerate(names):
        pairs = [(found.get(f"{r}/{number}"), others.get(f"{r}/{number}")) for r in sorted(rows)]
        same = [
            (np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel())
            for a, b in pairs
            if a is not None and b is not None and a.shape == b.shape and a.dtype.kind == "f"
        ]
        if same and len(same) == len(pairs):
            left, right = (np.concatenate(side) for side in zip(*same))
            values.append(Value(name, made[name], _error(left, right)))
    return values


def _error(left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    if not left.size or np.array_equal(left, right, equal_nan=True):
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        return float(np.sqrt(np.mean((left - right) ** 2)) / (left.std() or 1.0))
