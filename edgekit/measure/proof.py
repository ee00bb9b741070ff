"""What is proven of a file, by running the file itself in a fresh process.

The original's outputs on the eval rows are the reference. The file is run on the same rows:
all of them one by one (the figures that count), and a sample of them padded to every bucket
and in batches, which must not change what it answers. Peak memory counts from the process with
interpreter and inputs, before the runtime is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.data import Rows
from edgekit.devices.host import Pass, run_agent
from edgekit.inspect import read_contents
from edgekit.measure import accuracy
from edgekit.measure.latency import summarize
from edgekit.measure.parity import Difference, compare
from edgekit.measure.golden import golden_rows, pick_rows
from edgekit.measure.size import check_scheme
from edgekit.preprocess import Encoded

_SAMPLE = 32
_LATENCY_ROWS = 256


@dataclass(frozen=True)
class Expected:
    """The original's answers: what a file is held against.

    outputs: [N, …]; for token classification [words, classes], the words of all rows in a row.
    labels: gold labels aligned with outputs, or ``None`` when there are none.
    """

    task: str
    problem: str | None
    outputs: npt.NDArray[np.float32]
    labels: Any | None
    label_names: tuple[str, ...]
    scores: Mapping[str, float]


def prove(
    artifact: Artifact,
    encoded: Encoded,
    expected: Expected,
    *,
    rows: Rows,
    threads: int,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run the file on the rows and hold it against the original.

    Returns a JSON-able record of the figures, and golden inputs with the file's answers.

    ``seconds`` is how long latency is sampled. Raises DeviceError when the runtime refuses the
    file, and ProofError when it does not hold the weights that its scheme promises.
    """
    contents = read_contents(artifact.path)
    check_scheme(artifact, contents)
    variants = _variants(artifact, encoded)
    result = run_agent(
        artifact,
        encoded,
        [
            Pass("latency", "latency", _latency_rows(encoded), seconds=seconds, warmup=10),
            Pass("eval", "outputs"),
            *variants,
        ],
        threads=threads,
    )

    def difference(name: str, picked: npt.NDArray[Any] | None) -> Difference:
        part = encoded if picked is None else encoded.rows(picked)
        answers = per_answer(result["passes"][name]["outputs"], part)
        reference = expected.outputs
        if picked is not None:
            reference = reference[_answers(encoded, picked)]
        return compare(answers, reference, task=expected.task, problem=expected.problem)

    outputs = result["passes"]["eval"]["outputs"]
    memory = result["memory"]

    scores, drop = {}, None
    if expected.labels is not None:
        known = {"task": expected.task, "problem": expected.problem}
        scores = accuracy.score(
            outputs, expected.labels, labels=expected.label_names, encoded=encoded, **known
        )
        primary = accuracy.primary_metric(**known)
        drop = expected.scores[primary] - scores[primary]
    record = {
        "rows": len(encoded),
        "parity": difference("eval", None).to_json(),
        "variants": {
            each.name: difference(each.name, np.asarray(each.rows)).to_json() for each in variants
        },
        "metrics": {"original": dict(expected.scores), "file": scores, "drop": drop},
        "dtype_bytes": contents.bytes_per_dtype(),
        "load_seconds": result["load_seconds"],
        "first_run_seconds": result["first_run_seconds"],
        "latency": summarize(result["passes"]["latency"]["samples"]).to_json(),
        "memory": memory,
        "peak_memory": memory["peak"] - memory["start"] if memory["start"] else None,
        "device": result["fingerprint"],
    }
    picked = pick_rows(encoded)
    golden = golden_rows(encoded, rows, picked, artifact, outputs[picked])
    return record, golden


def per_answer(outputs: npt.NDArray[np.float32], encoded: Encoded) -> npt.NDArray[np.float32]:
    """One row per answer: token outputs [N, L, C] become the first sub-words' [words, C].

    A word that was cut off answers zeros, on every side of a comparison.
    """
    if encoded.word_starts is None:
        return outputs
    words = [
        np.where(starts[:, None] >= 0, row[starts], np.float32(0))
        for row, starts in zip(outputs, encoded.word_starts, strict=True)
    ]
    return np.concatenate(words)


def _answers(encoded: Encoded, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Indices into the reference that belong to ``rows``."""
    if encoded.word_starts is None:
        return rows
    ends = np.cumsum([len(starts) for starts in encoded.word_starts])
    begins = np.concatenate([[0], ends[:-1]])
    return np.concatenate([np.arange(begins[row], ends[row]) for row in rows])


def _variants(artifact: Artifact, encoded: Encoded) -> list[Pass]:
    """Passes that must not change an answer: every bucket, padding, batches."""
    if encoded.lengths is None:
        sample = _spread(np.arange(len(encoded)), _SAMPLE)
        dynamic = bool(artifact.inputs) and not isinstance(artifact.inputs[0].shape[0], int)
        return [Pass("batched", "outputs", sample, batch=8)] if dynamic else []
    by_length = np.argsort(encoded.lengths, kind="stable")
    if artifact.lengths:
        found = []
        for bucket in artifact.lengths:
            fitting = by_length[encoded.lengths[by_length] <= bucket]
            if len(fitting):
                rows = _spread(fitting, _SAMPLE // 4)
                found.append(Pass(f"length-{bucket}", "outputs", rows, width=bucket))
        return found
    sample = _spread(by_length, _SAMPLE)
    padded = int(encoded.lengths[sample].max())
    return [
        Pass("padded", "outputs", sample, width=padded),
        Pass("batched", "outputs", sample, batch=8),
    ]


def _spread(rows: npt.NDArray[Any], count: int) -> list[int]:
    """At most ``count`` of the rows, evenly spread over their order, always with the last."""
    picks = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [int(row) for row in rows[picks]]


def _latency_rows(encoded: Encoded) -> list[int]:
    """Rows in file order, evenly picked: their true lengths come mixed, as an app meets them."""
    return _spread(np.arange(len(encoded)), _LATENCY_ROWS)
