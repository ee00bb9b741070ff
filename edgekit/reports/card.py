"""A model card in Markdown: what the bundles are, how they were made, figures, limits, and use.

Mitchell et al., Model Cards for Model Reporting, 2019 (arXiv 1810.03993). Text from a bundle is
escaped, so that it reads as it is and formats nothing.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from edgekit import __version__
from edgekit.reports import commands, view
from edgekit.reports.subject import Subject
from edgekit.units import format_bytes, format_percent, format_seconds

# What begins markup. A hyphen or a number does so at a line's beginning alone.
_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&$])")
_ILLEGAL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\s]+")
_CLIP = 200
_LABELS = 100


def render_card(subjects: Sequence[Subject]) -> str:
    """The card. Raises BundleError when a bundle does not hold what it shows."""
    return "\n".join(_card(subjects)) + "\n"


def _card(subjects: Sequence[Subject]) -> Iterator[str]:
    first = subjects[0].manifest
    task = first.model.task.replace("-", " ")
    yield f"# {_text(view.title(subjects))}"
    yield ""
    targets = ", ".join(dict.fromkeys(_text(subject.manifest.target) for subject in subjects))
    made = f"compressed and verified by edgekit {__version__} for {targets}"
    yield f"A model for {_text(task)}, {made}."
    yield ""
    yield "## What it is"
    yield ""
    yield f"- Made from: {_text(first.model.reference)} (digest {_text(first.model.digest[:24])})"
    if first.model.labels:
        shown = ", ".join(_text(label, 60) for label in first.model.labels[:_LABELS])
        more = len(first.model.labels) - _LABELS
        yield f"- Labels ({len(first.model.labels)}): {shown}" + (
            f", and {more} more" if more > 0 else ""
        )
    yield from _making(subjects)
    yield ""
    yield "## Figures"
    yield ""
    yield from _figures(subjects)
    yield ""
    yield "## Limits"
    yield ""
    yield from _limits(subjects)
    yield ""
    yield "## How to run it"
    yield ""
    for subject in subjects:
        runtime = subject.manifest.runtime
        files = ", ".join(_text(model.file) for model in subject.manifest.models)
        oldest = f"{runtime.get('package', '')} {runtime.get('oldest', '')}"
        yield (
            f"- {_text(subject.manifest.target)}: {files}, with {_text(oldest)} or later; the "
            f"README\\.md in {_text(str(subject.folder))} has the code, golden\\.json the inputs "
            "and answers to test it with."
        )
    yield ""
    yield "## How to repeat it"
    yield ""
    lines = [
        *commands.build_commands(subjects),
        *(commands.command("verify", subject) for subject in subjects),
        *(commands.command("bench", subject, "--profile") for subject in subjects),
    ]
    yield from _fenced(lines)


def _making(subjects: Sequence[Subject]) -> Iterator[str]:
    yield ""
    yield "## How it was made"
    yield ""
    for plan in view.plans(subjects):
        subject, targets = plan[0], view.targets(plan)
        steps = None if subject.evidence is None else subject.evidence.steps
        schemes = ", ".join(
            dict.fromkeys(f"{m.format} in {m.scheme}" for s in plan for m in s.manifest.models)
        )
        what = "The plan was not kept" if steps is None else "The model itself is unchanged"
        if steps:
            what = "Steps: " + ", then ".join(_text(step) for step in steps)
        yield f"- {_text(targets)}: {what}; files: {_text(schemes)}."
        for line in dict.fromkeys([*subject.manifest.model.lineage, *subject.manifest.notes]):
            yield f"  - {_text(line)}"


def _figures(subjects: Sequence[Subject]) -> Iterator[str]:
    cards = [view.card(subject) for subject in subjects]
    rows = [
        ("to ship", [f"{card.ships} {card.smaller}" for card in cards]),
        (cards[0].metric, [f"{card.score} {card.change}" for card in cards]),
        ("p50 of one call", [card.latency for card in cards]),
        ("peak memory", [card.memory for card in cards]),
        ("measured on", [card.device for card in cards]),
        ("verdict", [card.outcome for card in cards]),
    ]
    yield from _table(["", *(card.target for card in cards)], [[n, *cells] for n, cells in rows])
    named = [(file.name, file) for subject in subjects for file in subject.files]
    for group in view.groups(subjects):
        scores = view.score_rows(group, [file.name for file in group])
        if scores:
            metrics = view.metrics(group[0].subject)
            head = ["", view.name_of(metrics[0]), "95 % interval", "change (95 %)", "same answers"]
            head += [*(view.name_of(metric) for metric in metrics[1:]), "rows"]
            yield ""
            yield from _table(
                head,
                [
                    [s.name, s.score, s.interval, s.change, s.agreement, *s.others, f"{s.rows:,}"]
                    for s in scores
                ],
            )
    yield ""
    yield from _table(
        ["file", "bytes", "predicted", "p50", "p90", "load", "peak memory"],
        [
            [
                name,
                format_bytes(_bytes(file.subject, file.model.packed or file.model.file)),
                format_bytes(file.model.predicted_bytes) if file.model.predicted_bytes else "",
                format_seconds(file.proof.latency.p50),
                format_seconds(file.proof.latency.p90),
                format_seconds(file.proof.load_seconds),
                format_bytes(file.proof.peak_memory) if file.proof.peak_memory else "not known",
            ]
            for name, file in named
        ],
    )


def _bytes(subject: Subject, name: str) -> int:
    return next(entry.bytes for entry in subject.manifest.files if entry.path == name)


def _limits(subjects: Sequence[Subject]) -> Iterator[str]:
    """What was held, what was not, and what was never run."""
    for subject in subjects:
        for limit in view.limits(subject):
            yield f"- {_text(subject.manifest.target)}: {_text(limit.reason)}."
        for file in subject.files:
            changes = None if file.evidence is None else file.evidence.changes
            if changes is not None and changes.changed:
                share = format_percent(changes.changed / changes.answers)
                lost = "" if changes.lost is None else f", {changes.lost} of them now wrong"
                yield (
                    f"- {_text(file.name)}: {changes.changed:,} of {changes.answers:,} answers "
                    f"({share}) are not the original's{lost}."
                )
    where = dict.fromkeys(
        f"{file.name} on {found.where} with {found.runtime}"
        for subject in subjects
        for file in subject.files
        for found in view.proven(file)
    )
    yield f"- It was run here and nowhere else: {'; '.join(_text(each) for each in where)}."
    yield "- Times are of that machine; on another one, run `edgekit bench`."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(_text(cell) for cell in head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(_text(cell) for cell in row) + " |"


def _fenced(lines: Iterable[str]) -> Iterator[str]:
    """Commands in a fence that none of them closes."""
    found = [_ILLEGAL.sub(" ", line) for line in lines]
    longest = max((len(run) for line in found for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"{fence}sh", *found, fence)


def _text(words: str, most: int = _CLIP) -> str:
    """Plain words, on one line."""
    words = _ILLEGAL.sub(" ", words).strip()
    words = words if len(words) <= most else words[: most - 1] + "…"
    return _SPECIAL.sub(r"\\\1", words)
