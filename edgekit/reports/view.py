"""What a report says, section by section, as plain values; the page and the card lay it out.

Rules:

1. Every figure comes from a manifest or its evidence; none is worked out from anything else.
2. What is not there is ``None``, and whoever lays it out names the command that would find it.
3. A difference of accuracy has the interval of matched pairs (Agresti and Min, Simple improved
   confidence intervals for comparing matched proportions, Statistics in Medicine 24, 2005).
4. Bundles are compared when they come from the same model and the same eval rows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from edgekit.budget import format_limit
from edgekit.measure.accuracy import interval, primary_metric
from edgekit.reports.proof import Device, Proof
from edgekit.reports.subject import Subject, SubjectFile
from edgekit.units import format_bytes, format_percent, format_seconds, format_signed_points

# Metrics that are not shares of rows, and so have no percentage.
_COEFFICIENTS = ("matthews", "spearman", "pearson")
_Z = 1.959964


@dataclass(frozen=True)
class Card:
    """One target at a glance."""

    target: str
    outcome: str
    ships: str
    smaller: str
    metric: str
    score: str
    change: str
    latency: str
    memory: str
    device: str


@dataclass(frozen=True)
class Score:
    """A row of the accuracy table. ``sort`` is what its primary metric sorts by."""

    name: str
    rows: int
    score: str
    sort: float
    interval: str
    change: str
    agreement: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class Limit:
    """A budget bar: ``share`` of the limit that is used, 1 and more when it is broken."""

    name: str
    outcome: str
    value: str
    limit: str
    share: float
    reason: str


def title(subjects: Sequence[Subject]) -> str:
    """The model's name: the last part of its reference."""
    names = dict.fromkeys(subject.manifest.model.reference for subject in subjects)
    return ", ".join(PurePath(name).name or name for name in names)


def card(subject: Subject) -> Card:
    manifest = subject.manifest
    proofs, metric = subject.proofs, primary(subject)
    before = proofs[0].metrics.original
    worst = None
    if metric in before:
        worst = min(proof.metrics.file[metric] for proof in proofs)
    original = None if subject.evidence is None else subject.evidence.original_bytes
    peaks = [proof.peak_memory for proof in proofs if proof.peak_memory is not None]
    return Card(
        target=manifest.target,
        outcome=subject.verdict.outcome,
        ships=format_bytes(manifest.shipped_bytes),
        smaller=""
        if original is None
        else f"{original / max(1, manifest.shipped_bytes):.1f}× smaller",
        metric=name_of(metric) if worst is not None else "agreement with the original",
        score=format_percent(min(proof.agreement for proof in proofs))
        if worst is None
        else score_text(metric, worst),
        change="" if worst is None else change_text(metric, worst - before[metric]),
        latency=format_seconds(max(proof.latency.p50 for proof in proofs)),
        memory=format_bytes(max(peaks)) if peaks else "not known",
        device=device_text(proofs[0]),
    )


def plans(subjects: Sequence[Subject]) -> list[list[Subject]]:
    """Bundles by their plan: the same steps on the same model, for the same budget."""
    found: dict[str, list[Subject]] = {}
    for subject in subjects:
        steps = None if subject.evidence is None else subject.evidence.steps
        model = subject.manifest.model
        key = repr((model.reference, model.digest, steps, subject.manifest.budget))
        found.setdefault(key, []).append(subject)
    return list(found.values())


def targets(subjects: Sequence[Subject]) -> str:
    return ", ".join(subject.manifest.target for subject in subjects)


def limits(subject: Subject) -> list[Limit]:
    """Budget bars of a bundle."""
    return [
        Limit(
            name=check.name.replace("-", " "),
            outcome=check.outcome,
            value="not measured" if check.value is None else format_limit(check.name, check.value),
            limit=format_limit(check.name, check.limit),
            share=max(0.0, (check.value or 0.0) / check.limit),
            reason=check.reason,
        )
        for check in subject.verdict.checks
    ]


def groups(subjects: Sequence[Subject]) -> list[list[SubjectFile]]:
    """Files that can be held against one another (rule 4)."""
    found: dict[tuple[Any, ...], list[SubjectFile]] = {}
    for subject in subjects:
        for file in subject.files:
            key = (
                subject.manifest.model.digest,
                subject.settings.eval,
                subject.settings.data,
                file.proof.rows,
            )
            found.setdefault(key, []).append(file)
    return list(found.values())


def score_rows(files: Sequence[SubjectFile], names: Sequence[str]) -> list[Score]:
    """The original, and each file: on all eval rows. Empty without labels."""
    metric = primary(files[0].subject)
    before = files[0].proof.metrics.original
    if metric not in before:
        return []
    rows = files[0].proof.rows
    others = [each for each in before if each != metric]
    found = [_score("original", rows, metric, before, before, others, "", "")]
    for file, name in zip(files, names, strict=True):
        after = file.proof.metrics.file
        change = change_text(metric, after[metric] - before[metric]) + _paired(file, metric)
        agreement = format_percent(file.proof.agreement)
        found.append(_score(name, rows, metric, after, before, others, change, agreement))
    return found


def _score(
    name: str,
    rows: int,
    metric: str,
    scores: Mapping[str, float],
    before: Mapping[str, float],
    others: Sequence[str],
    change: str,
    agreement: str,
) -> Score:
    value = scores[metric]
    return Score(
        name,
        rows,
        score_text(metric, value),
        value,
        _interval_text(metric, value, rows),
        change,
        agreement,
        tuple(score_text(each, scores[each]) for each in others if each in before),
    )


def stage_rows(
    files: Sequence[SubjectFile], names: Sequence[str]
) -> tuple[int, list[tuple[str, str, str]]]:
    """How many rows every stage ran on; stage, score and interval: the original, the model after
    each step, and the files of that model. Empty without steps or labels."""
    evidence = files[0].subject.evidence
    if evidence is None or not evidence.stages:
        return 0, []
    metric, count = primary(files[0].subject), evidence.sample
    stages = [(stage.stage, stage.score) for stage in evidence.stages]
    for file, name in zip(files, names, strict=True):
        if file.evidence is not None and file.evidence.sample_score is not None:
            stages.append((f"file for {name}", file.evidence.sample_score))
    return count, [
        (name, score_text(metric, score), _interval_text(metric, score, count))
        for name, score in stages
    ]


def intervals(
    files: Sequence[SubjectFile], names: Sequence[str]
) -> tuple[list[str], list[tuple[float, float, float]]]:
    """Names and (score, low, high) for a picture; empty where the metric is no share of rows."""
    metric = primary(files[0].subject)
    before = files[0].proof.metrics.original
    if metric != "accuracy" or metric not in before:
        return [], []
    rows = files[0].proof.rows
    scores = [before[metric], *(file.proof.metrics.file[metric] for file in files)]
    return ["original", *names], [(score, *interval(max(0.0, score), rows)) for score in scores]


def pareto(
    files: Sequence[SubjectFile],
) -> tuple[str, list[tuple[int, float]], list[bool]]:
    """What is held against shipped bytes, the points, and which of them no other beats."""
    metric = primary(files[0].subject)
    scored = all(metric in file.proof.metrics.file for file in files)
    shares = [file.proof.metrics.file[metric] if scored else file.proof.agreement for file in files]
    points = [(file.subject.manifest.shipped_bytes, share) for file, share in zip(files, shares)]
    front = [not any(_beats(other, point) for other in points) for point in points]
    return name_of(metric if scored else "agreement"), points, front


def _beats(other: tuple[int, float], point: tuple[int, float]) -> bool:
    return other[0] <= point[0] and other[1] >= point[1] and other != point


@dataclass(frozen=True)
class Proven:
    """A file that ran somewhere: on how many rows, and how its answers compare with ``beside``."""

    where: str
    runtime: str
    rows: int
    same: str
    gap: str
    beside: str


def proven(file: SubjectFile) -> list[Proven]:
    """Only what was run."""
    proof = file.proof
    alone, device = proof.parity["alone"], proof.device
    here = f"the host of the build ({device.machine}, {device.system})"
    return [
        Proven(
            here,
            device.runtime,
            proof.rows,
            format_percent(alone.agreement),
            f"{alone.max:.2g}",
            "the fp32 model that was exported",
        ),
        *(
            Proven(
                found.device,
                found.runtime,
                found.rows,
                format_percent(found.agreement),
                f"{found.max_difference:.2g}",
                "the same file on the host",
            )
            for found in proof.elsewhere
        ),
    ]


def environment(device: Device) -> list[tuple[str, str]]:
    """The device that the figures are of."""
    facts = {
        "processor": device.cpu or device.machine,
        "machine": f"{device.machine}, {device.system} {device.release or ''}",
        "cores": device.cores,
        "threads used": device.threads,
        "instructions": ", ".join(device.features),
        "governor": device.governor,
        "frequency": None if device.frequency is None else f"{device.frequency / 1e9:.2f} GHz",
        "memory": None if device.memory is None else format_bytes(device.memory),
        "runtime": device.runtime,
        "Python": device.python,
        "numpy": device.numpy,
    }
    return [(name, str(value)) for name, value in facts.items() if value]


def name_of(metric: str) -> str:
    """``macro_f1`` as people write it."""
    return metric.replace("_", " ").replace("f1", "F1").replace("matthews", "Matthews")


def score_text(metric: str, score: float) -> str:
    return f"{score:.4f}" if metric in _COEFFICIENTS else format_percent(score)


def change_text(metric: str, change: float) -> str:
    return f"{change:+.4f}" if metric in _COEFFICIENTS else format_signed_points(change)


def device_text(proof: Proof) -> str:
    device = proof.device
    threads = f"{device.threads} thread" + ("s" if device.threads > 1 else "")
    return f"{device.cpu or device.machine}, {threads}, {device.runtime}"


def metrics(subject: Subject) -> list[str]:
    """The metrics that were scored, the deciding one first."""
    metric = primary(subject)
    found = subject.proofs[0].metrics.original
    return [metric, *(each for each in found if each != metric)] if metric in found else []


def primary(subject: Subject) -> str:
    """The metric that decides about a bundle."""
    return primary_metric(subject.manifest.model.task, subject.manifest.model.problem)


def _interval_text(metric: str, score: float, rows: int) -> str:
    if metric != "accuracy":
        return ""
    low, high = interval(max(0.0, score), rows)
    return f"{format_percent(low, 1)} to {format_percent(high, 1)}"


def _paired(file: SubjectFile, metric: str) -> str:
    """The 95 % interval of the change, where answers are rows (rule 3)."""
    seen = None if file.evidence is None else file.evidence.changes
    if metric != "accuracy" or seen is None or seen.lost is None or seen.won is None:
        return ""
    count, lost, won = seen.answers + 2, seen.lost + 0.5, seen.won + 0.5
    change = (won - lost) / count
    reach = _Z * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / count)) / count
    return f" ({100 * (change - reach):+.2f} to {100 * (change + reach):+.2f})"
