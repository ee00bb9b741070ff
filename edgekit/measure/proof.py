"""What is proven of a file, by running the file itself in a fresh process.

Two things are held apart. *Parity*: a sample of eval rows, against the fp32 model that was
exported; alone, padded to every bucket, and in batches, which must not change what the file
answers. *Quality*: the file's metric on all eval rows, beside the original's; what a lossy step
costs shows here. Peak memory counts from the process with interpreter and inputs, before the
runtime is imported.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.contents import read_contents
from edgekit.contents.static import static_figures
from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError
from edgekit.measure import accuracy
from edgekit.measure.changes import changes
from edgekit.measure.evidence import FileEvidence, Profile, lengths_of, memory_of, profile_of
from edgekit.measure.expected import Expected, per_answer
from edgekit.measure.golden import golden_rows, pick_rows
from edgekit.measure.latency import summarize
from edgekit.measure.measurement import above_empty, middle_length
from edgekit.measure.parity import compare
from edgekit.measure.profile import profile
from edgekit.measure.size import check_scheme
from edgekit.preprocess import Encoded

_SAMPLE = 256
_VARIANT = 32
_LATENCY_ROWS = 256
# How long operators are timed.
_PROFILE_SECONDS = 0.5


def prove(
    artifact: Artifact,
    encoded: Encoded,
    expected: Expected,
    *,
    exported: Callable[[Encoded], npt.NDArray[np.float32]],
    rows: Rows,
    threads: int,
    seconds: float,
    scored: Sequence[int] = (),
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Run the file on the rows and hold it against what was exported, and the original.

    exported: gives the outputs of the fp32 model that was exported. seconds: how long latency is
    sampled. scored: rows on which the model was scored after each step, to score the file on
    them too. Returns a JSON-able record of the figures, golden inputs with the file's answers, and
    the fields of a ``FileEvidence``.
    ``right`` in the record: a bit for each row, whether the file's class is the label, the first
    row in the highest bit of the first byte, in base64; ``None`` for other kinds of answers.
    Raises DeviceError when the runtime refuses the file, and ProofError when it does not hold the
    weights that its scheme promises.
    """
    contents = read_contents(artifact.path)
    check_scheme(artifact, contents)
    picked = np.asarray(_spread(_by_length(encoded), _SAMPLE))
    sample = encoded.rows(picked)
    variants = _variants(artifact, sample)
    latency = Pass("latency", "latency", _latency_rows(encoded), seconds=seconds)
    measured = run_agent(artifact, encoded, [latency], threads=threads)
    # Answers need no more than one thread, and come faster with one where the machine is busy.
    passes = [replace(each, rows=picked[list(each.rows or ())].tolist()) for each in variants]
    answered = run_agent(artifact, encoded, [Pass("eval", "outputs"), *passes], threads=1)
    outputs = answered["passes"]["eval"]["outputs"]
    memory = measured["memory"]
    timeline = memory.pop("timeline", [])
    reference = exported(sample)

    def parity(found: npt.NDArray[np.float32], places: Sequence[int]) -> dict[str, Any]:
        """The answers ``found`` for those places in the sample, against the exported model's."""
        part = sample.rows(places)
        return compare(
            per_answer(found, part),
            per_answer(reference[places], part),
            task=expected.task,
            problem=expected.problem,
        ).to_json()

    scores, drop, chance, right = {}, None, None, None
    if expected.labels is not None:
        scores = accuracy.score(
            outputs,
            expected.labels,
            task=expected.task,
            problem=expected.problem,
            labels=expected.label_names,
            encoded=encoded,
        )
        primary = accuracy.primary_metric(expected.task, expected.problem)
        drop = expected.scores[primary] - scores[primary]
        chance = accuracy.chance(expected.labels, expected.task, expected.problem)
        if primary == "accuracy":
            answers = accuracy.predict(outputs, expected.task, expected.problem)
            right = _bits(answers == np.asarray(expected.labels))
    record = {
        "rows": len(encoded),
        "rows_digest": rows.digest(),
        "agreement": accuracy.agreement(
            per_answer(outputs, encoded), expected.outputs, expected.task, expected.problem
        ),
        "parity": {
            "alone": parity(outputs[picked], range(len(sample))),
            **{
                each.name: parity(answered["passes"][each.name]["outputs"], each.rows or ())
                for each in variants
            },
        },
        "metrics": {
            "primary": accuracy.primary_metric(expected.task, expected.problem),
            "original": dict(expected.scores),
            "file": scores,
            "drop": drop,
            "chance": chance,
        },
        "right": right,
        "dtype_bytes": contents.bytes_per_dtype(),
        "static": static_figures(artifact.path, middle_length(encoded)).to_json(),
        "load_seconds": measured["load_seconds"],
        "first_run_seconds": measured["first_run_seconds"],
        "latency": summarize(measured["passes"]["latency"]).to_json(),
        "memory": memory,
        "peak_memory": above_empty(memory),
        "device": measured["fingerprint"],
        "saturates": answered.get("saturates", False),
    }
    chosen = pick_rows(encoded)
    golden = golden_rows(encoded, rows, chosen, artifact, outputs[chosen])
    evidence = FileEvidence(
        changes=changes(per_answer(outputs, encoded), expected, rows, encoded),
        lengths=lengths_of(measured["passes"]["latency"]),
        memory=memory_of(timeline),
        profile=_profile(artifact, encoded, threads),
        sample_score=_score_some(outputs, expected, encoded, scored),
    )
    return record, golden, evidence.model_dump(mode="json")


def _profile(artifact: Artifact, encoded: Encoded, threads: int) -> Profile:
    """Where the time goes. A profiler that fails fails no proof."""
    if artifact.format == "torchscript":
        return _no_profile("TorchScript is not profiled")
    picked = pick_rows(encoded)
    try:
        found = profile(artifact, encoded, picked, threads=threads, seconds=_PROFILE_SECONDS)
    except DeviceError as error:
        return _no_profile(str(error))
    return profile_of(found)


def _no_profile(reason: str) -> Profile:
    return Profile(reason=reason, inferences=0, total_seconds=None, layers=[])


def _score_some(
    outputs: npt.NDArray[np.float32],
    expected: Expected,
    encoded: Encoded,
    rows: Sequence[int],
) -> float | None:
    """The primary metric on some of the rows; ``None`` without labels, or without rows."""
    if expected.labels is None or not rows:
        return None
    labels = [expected.labels[row] for row in rows]
    if len(encoded) == 2 * len(expected.labels):
        # Pairs of an embedding are two rows: all first texts, then all second ones.
        rows = [*rows, *(row + len(expected.labels) for row in rows)]
    scores = accuracy.score(
        outputs[list(rows)],
        labels,
        task=expected.task,
        problem=expected.problem,
        labels=expected.label_names,
        encoded=encoded.rows(list(rows)),
    )
    return scores[accuracy.primary_metric(expected.task, expected.problem)]


def _bits(flags: npt.NDArray[np.bool_]) -> str:
    return base64.b64encode(np.packbits(flags).tobytes()).decode()


def _variants(artifact: Artifact, sample: Encoded) -> list[Pass]:
    """Passes over some of the sample that must not change an answer: buckets, padding, batches."""
    order = _by_length(sample)
    if sample.lengths is None:
        dynamic = bool(artifact.inputs) and not isinstance(artifact.inputs[0].shape[0], int)
        return [Pass("batched", "outputs", _spread(order, _VARIANT), batch=8)] if dynamic else []
    if artifact.lengths:
        fitting = {n: order[sample.lengths[order] <= n] for n in artifact.lengths}
        return [
            Pass(f"length-{length}", "outputs", _spread(rows, _VARIANT // 4), width=length)
            for length, rows in fitting.items()
            if len(rows)
        ]
    some = _spread(order, _VARIANT)
    passes = [Pass("padded", "outputs", some, width=int(sample.lengths[some].max()))]
    if artifact.inputs[0].shape[0] != 1:
        passes.append(Pass("batched", "outputs", some, batch=8))
    return passes


def _by_length(encoded: Encoded) -> npt.NDArray[Any]:
    """Rows in the order of their true lengths, or as they are."""
    if encoded.lengths is None:
        return np.arange(len(encoded))
    return np.argsort(encoded.lengths, kind="stable")


def _spread(rows: npt.NDArray[Any], count: int) -> list[int]:
    """At most ``count`` of the rows, evenly spread over their order, always with the last."""
    picks = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [int(row) for row in rows[picks]]


def _latency_rows(encoded: Encoded) -> list[int]:
    """Rows in file order, evenly picked: their true lengths come mixed, as an app meets them."""
    return _spread(np.arange(len(encoded)), _LATENCY_ROWS)
