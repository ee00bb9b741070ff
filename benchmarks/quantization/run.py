"""Every scheme in both formats: bytes, what of the metric is left, and how long it takes.

    python benchmarks/quantization/run.py CHECKPOINT TRAIN EVAL --text text --label category \\
        --record banking77.json

Each row of the record is one `edgekit build`, for linux-x86_64 (ONNX) or android-arm64 (TFLite),
with what that build proved of its file; and `edgekit bench --against` the fp32 and the int8-dynamic
file of the same format: one thread, both files in turns in one process. `--qat` adds rows of
int8-static whose model was trained on its grid, `--row` one of any scheme and steps. The low-bit
record (on the first 1,000 test rows of BANKING77 as ``random.Random(0).shuffle`` orders them), and
the curve of 2 bits, a row for each number of epochs:

    … --record low_bit.json --format tflite --row int4-weights round-weights \\
        --row int4-all round-weights:scheme=int4-all \\
        --row int4-weights trim-vocabulary:common=2500 round-weights
    … --record low_bit.json --format onnx --row int2-weights \\
        quantize-aware-train:scheme=int2-weights,block=32,epochs=4,learning-rate=0.0003

What is in the record under the same command, on the same machine with the same versions, stays
unless `--again`. `--no-times` leaves the comparisons to a later run. Prints the record as a table.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgekit.bundle.manifest import read_manifest
from edgekit.devices.agent import fingerprint
from edgekit.measure.accuracy import primary_metric
from edgekit.store import versions

_TARGETS = {"onnx": "linux-x86_64", "tflite": "android-arm64"}
# int2-weights needs newer runtimes than those promise, and a model that was trained for it.
_NEWER = {"onnx": "onnxruntime-1.31", "tflite": "litert-2.3"}
_SCHEMES = ("fp32", "int8-dynamic", "int8-weights", "int4-weights", "int4-all", "int8-static")
# What the time of a file is a share of.
_AGAINST = ("fp32", "int8-dynamic")
_TRAINING = "quantize-aware-train"
_LOG_WIDTH = 160


class Failed(Exception):
    """A command of edgekit that ended in an error: its sentence."""


@dataclass(frozen=True)
class Variant:
    """A scheme in a format. steps: as for ``--step``."""

    scheme: str
    format: str
    steps: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        newer = self.scheme == "int2-weights"
        return (_NEWER if newer else _TARGETS)[self.format]

    @property
    def bundle(self) -> str:
        """Its folder, below the folder where everything is built."""
        kind = "-".join((self.scheme, *self.steps)).replace("/", "_")
        return f"{self.format}/{kind}/{self.target}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("eval", type=Path)
    parser.add_argument("--text")
    parser.add_argument("--label")
    parser.add_argument("--scheme", action="append", choices=_SCHEMES, help="only this; repeatable")
    parser.add_argument("--format", action="append", choices=_TARGETS, help="only this; repeatable")
    parser.add_argument(
        "--qat",
        action="append",
        nargs="?",
        const="",
        metavar="OPTIONS",
        help=f"a row of int8-static with --step {_TRAINING}[:OPTIONS]; repeatable",
    )
    parser.add_argument(
        "--row",
        action="append",
        nargs="+",
        metavar=("SCHEME", "STEP"),
        help="a row of a scheme with steps; repeatable, and alone without --scheme",
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is learned")
    parser.add_argument("--again", action="store_true", help="measure what is recorded, too")
    parser.add_argument(
        "--no-times",
        action="store_true",
        help="no comparisons, for a busy machine; a later run adds them",
    )
    parser.add_argument("--record", default="results.json", help="a file beside this one")
    options = parser.parse_args()
    path = Path(__file__).parent / options.record
    record = _record(options, path)
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options, Path(name))
        for variant in _variants(options):
            if not options.again and _is_known(record, bench.build_command(variant), options):
                continue
            _put(record, bench.row(variant))
            record.update(bench.original)
            path.write_text(json.dumps(record, indent=1) + "\n")
    _show(record)


def _variants(options: argparse.Namespace) -> list[Variant]:
    formats = options.format or list(_TARGETS)
    schemes = options.scheme or ([] if options.row else _SCHEMES)
    found = [Variant(scheme, each) for scheme in schemes for each in formats]
    for scheme, *wanted in options.row or ():
        found += [Variant(scheme, each, tuple(wanted)) for each in formats]
    steps = [f"{_TRAINING}:{text}" if text else _TRAINING for text in options.qat or ()]
    return found + [Variant("int8-static", each, (step,)) for step in steps for each in formats]


# The record


def _record(options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """What is recorded already; without rows if that was another machine, model or version."""
    machine = fingerprint({"threads": 0}, "")
    head: dict[str, Any] = {
        "machine": {key: machine[key] for key in ("machine", "cpu", "cores", "features", "python")},
        "versions": dict(versions()),
        "model": options.checkpoint.name,
        "data": {"train": options.train.name, "eval": options.eval.name},
    }
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    # A library that the record does not name had no part in it.
    named = {k: v for k, v in head["versions"].items() if k in known.get("versions", {})}
    if all(known.get(key) == value for key, value in (head | {"versions": named}).items()):
        return known
    if known:
        print(f"{path.name} is of another machine, model, data or versions: it starts anew")
    return head | {"rows": []}


def _is_known(record: dict[str, Any], command: str, options: argparse.Namespace) -> bool:
    wanted = "bytes" if options.no_times else "against"
    return any(row["command"] == command and wanted in row for row in record["rows"])


def _put(record: dict[str, Any], row: dict[str, Any]) -> None:
    """The row in place of the one of the same command, or else as the last."""
    rows = record["rows"]
    places = [place for place, each in enumerate(rows) if each["command"] == row["command"]]
    if places:
        rows[places[0]] = row
    else:
        rows.append(row)


# The commands


class Bench:
    """Builds and compares in one folder, where each file is built once."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._built: dict[Variant, dict[str, Any] | Failed] = {}
        self._training_seconds: dict[tuple[str, ...], float] = {}
        self.original: dict[str, Any] = {}

    def build_command(self, variant: Variant) -> str:
        """As it is recorded: files by their last names."""
        return self._shown(self._build_arguments(variant))

    def row(self, variant: Variant) -> dict[str, Any]:
        """One row of the record. An error of edgekit is recorded in its place."""
        row: dict[str, Any] = {
            "scheme": variant.scheme,
            "format": variant.format,
            "target": variant.target,
            "steps": list(variant.steps),
            "command": self.build_command(variant),
        }
        print(row["command"], flush=True)
        try:
            row |= self._build(variant)
        except Failed as error:
            return row | {"error": str(error)}
        if self._options.no_times:
            return row
        others = [Variant(scheme, variant.format) for scheme in _AGAINST]
        row["against"] = {
            other.scheme: self._compare(variant, other) for other in others if other != variant
        }
        return row

    def _build(self, variant: Variant) -> dict[str, Any]:
        """The figures of a build. Raises Failed."""
        if variant not in self._built:
            try:
                self._built[variant] = self._figures(variant)
            except Failed as error:
                self._built[variant] = error
        found = self._built[variant]
        if isinstance(found, Failed):
            raise found
        return found

    def _figures(self, variant: Variant) -> dict[str, Any]:
        started = time.perf_counter()
        document = self._edgekit(self._build_arguments(variant))
        seconds = time.perf_counter() - started
        manifest = read_manifest(self._folder / variant.bundle)
        (entry,) = (each for each in manifest.files if each.role == "model")
        proof = manifest.models[0].proof
        metric = primary_metric(manifest.model.task, manifest.model.problem)
        before, after = (proof["metrics"][each] for each in ("original", "file"))
        self.original = {
            "metric": metric,
            "original": {"bytes": document["plan"]["original_bytes"], **before},
            "eval_rows": proof["rows"],
        }
        figures = {
            "bytes": entry.bytes,
            "dtype_bytes": proof["dtype_bytes"],
            "metrics": after,
            "retained": after[metric] / before[metric],
            "agreement": proof["agreement"],
            "peak_memory": proof["peak_memory"],
            "lineage": manifest.model.lineage,
            "build_seconds": seconds,
        }
        if variant.steps:
            # The other format of the same steps finds the trained model.
            figures["training_minutes"] = (
                self._training_seconds.setdefault(variant.steps, seconds) / 60
            )
        return figures

    def _compare(self, variant: Variant, other: Variant) -> dict[str, Any]:
        """The first's time as a share of the second's."""
        arguments = ["bench", variant.bundle, "--against", other.bundle, "--threads", "1", "--json"]
        found: dict[str, Any] = {"command": self._shown(arguments)}
        try:
            self._build(other)
            comparison = self._edgekit(arguments)["comparison"]
        except Failed as error:
            return found | {"error": str(error)}
        names = ("ratio", "low", "high", "margin", "outcome")
        return found | {name: comparison[name] for name in names}

    def _build_arguments(self, variant: Variant) -> list[str]:
        options = self._options
        arguments = ["build", str(options.checkpoint.resolve())]
        arguments += ["--data", str(options.train.resolve())]
        arguments += ["--eval", str(options.eval.resolve())]
        for flag in ("text", "label"):
            if getattr(options, flag):
                arguments += [f"--{flag}", getattr(options, flag)]
        folder = Path(__file__).with_name("targets") / variant.target
        target = str(folder) if folder.is_dir() else variant.target
        arguments += ["--target", target, "--format", variant.format]
        arguments += ["--scheme", variant.scheme]
        for step in variant.steps:
            arguments += ["--step", step]
        if options.seed:
            arguments += ["--seed", str(options.seed)]
        return [*arguments, "--output", str(Path(variant.bundle).parent), "--json"]

    def _edgekit(self, arguments: list[str]) -> dict[str, Any]:
        """What the command answers as JSON. Raises Failed with the last line that it says."""
        done = subprocess.run(
            [sys.executable, "-m", "edgekit", *arguments],
            cwd=self._folder,
            env={**os.environ, "EDGEKIT_CACHE": str(self._folder / "cache")},
            capture_output=True,
            text=True,
        )
        # An inconclusive comparison answers as well.
        if done.returncode not in (0, 3) or not done.stdout:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Failed(self._named(said[-1].removeprefix("edgekit: ")))
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _shown(self, arguments: list[str]) -> str:
        return shlex.join(["edgekit", *map(self._named, arguments)])

    def _named(self, text: str) -> str:
        """Without the folders of this machine."""
        for path, name in self._names:
            text = text.replace(path, name)
        return text

    @cached_property
    def _names(self) -> list[tuple[str, str]]:
        options = self._options
        given = [
            (str(path), path.name) for path in (options.checkpoint, options.train, options.eval)
        ]
        found = [(str(Path(path).resolve()), name) for path, name in given]
        return [*found, (f"{self._folder}/", ""), (f"{Path(__file__).parent}/", "")]


# The table


def _show(record: dict[str, Any]) -> None:
    # In a log, as wide as it is.
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    if "original" in record:
        console.print(_table(record))
    for row in record["rows"]:
        if "error" in row:
            console.print(f"{row['command']}\n  {row['error']}", markup=False, highlight=False)


def _table(record: dict[str, Any]) -> Table:
    metric = record["metric"]
    original = record["original"]
    table = Table(
        title=f"{record['model']}: {_megabytes(original['bytes'])} in fp32, {metric} "
        f"{original[metric]:.2%} on {record['eval_rows']:,} rows"
    )
    table.add_column("scheme")
    table.add_column("format")
    for name in (
        "bytes",
        "peak memory",
        metric,
        "retained",
        "agreement",
        *(f"p50 / {each}" for each in _AGAINST),
    ):
        table.add_column(name, justify="right")
    table.add_column("minutes", justify="right")
    for row in record["rows"]:
        scheme = " ".join([row["scheme"], *row["steps"]])
        if "error" in row:
            table.add_row(scheme, row["format"], "failed")
            continue
        minutes = row.get("training_minutes")
        table.add_row(
            scheme,
            row["format"],
            _megabytes(row["bytes"]),
            _megabytes(row["peak_memory"]) if row.get("peak_memory") else "–",
            f"{row['metrics'][metric]:.2%}",
            f"{row['retained']:.2%}",
            f"{row['agreement']:.2%}",
            *(_ratio(row, each) for each in _AGAINST),
            "" if minutes is None else f"{minutes:.1f}",
        )
    return table


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _ratio(row: dict[str, Any], other: str) -> str:
    if "against" not in row:
        return "–"
    found = row["against"].get(other)
    if found is None:
        return "1"
    if "error" in found:
        return "failed"
    sure = "" if found["outcome"] != "inconclusive" else " ?"
    return f"{found['ratio']:.2f} ({found['low']:.2f} – {found['high']:.2f}){sure}"


if __name__ == "__main__":
    main()
