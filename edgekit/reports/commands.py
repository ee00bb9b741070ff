"""The commands that repeat what a report shows, as a shell takes them."""

import shlex
from collections.abc import Mapping, Sequence

from edgekit.reports.subject import Subject

# What a person would have to type otherwise than it reads.
_BUDGET = {"size": "B", "latency": "s", "memory": "B", "accuracy_drop": ""}


def build_command(subject: Subject) -> str:
    """The build that made a bundle, with the steps that the user named."""
    settings = subject.settings
    words = ["edgekit", "build", subject.manifest.model.reference]
    for flag, value in _flags(subject):
        words += [flag, value]
    for step in () if subject.evidence is None else subject.evidence.asked:
        words += ["--step", step]
    words += ["--seed", str(settings.seed)] if settings.seed else []
    if settings.allow_random_calibration:
        words.append("--allow-random-calibration")
    return shlex.join([*words, "--output", str(subject.folder.parent)])


def build_commands(subjects: Sequence[Subject]) -> list[str]:
    """The builds that made the bundles, each once."""
    return list(dict.fromkeys(build_command(subject) for subject in subjects))


def report_command(subjects: Sequence[Subject]) -> str:
    return shlex.join(["edgekit", "report", *(str(subject.folder) for subject in subjects)])


def _flags(subject: Subject) -> list[tuple[str, str]]:
    settings, columns = subject.settings, subject.settings.columns
    single = [
        ("--task", settings.task),
        ("--data", settings.data),
        ("--eval", settings.eval),
        ("--text", columns.text),
        ("--text-pair", columns.text_pair),
        ("--label", columns.label),
        ("--scheme", settings.scheme),
        ("--budget", budget_text(subject.manifest.budget)),
        ("--lengths", ",".join(str(length) for length in settings.lengths)),
    ]
    several = [
        ("--target", settings.targets),
        ("--format", settings.formats),
        ("--device", settings.devices),
    ]
    flags = [(flag, str(value)) for flag, value in single if value]
    return flags + [(flag, str(value)) for flag, values in several for value in values]


def budget_text(budget: Mapping[str, float | None]) -> str:
    """Limits as ``--budget`` takes them."""
    limits = [(name, value) for name, value in budget.items() if value is not None]
    return ",".join(f"{n.replace('_', '-')}={_exact(v)}{_BUDGET[n]}" for n, v in limits)


def command(words: str, subject: Subject, *more: str) -> str:
    """``edgekit <words> BUNDLE <more>``."""
    return " ".join(["edgekit", words, shlex.quote(str(subject.folder)), *more])


def inspect_command(subject: Subject, file: str) -> str:
    return f"edgekit inspect {shlex.quote(str(subject.folder / file))}"


def _exact(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"
