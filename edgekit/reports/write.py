"""Write a report: a page, or a model card, whole or not at all.

Only a report of ours is written over; any other file of that name stays.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgekit.errors import OutputError
from edgekit.reports.subject import Subject, read_subjects

Kind = Literal["html", "markdown"]
# What a report is called where it is not said, and what each one holds near its beginning.
NAMES: dict[Kind, str] = {"html": "report.html", "markdown": "model-card.md"}
_MARK = b"edgekit"
_LOOK = 2000


def report(bundles: Sequence[Path], *, output: Path | None, kind: Kind) -> Path:
    """Write the report of bundles, or of folders of bundles; where it is.

    output: beside the first bundle when left out. Raises BundleError for a bundle that is none or
    does not match its digests, OutputError for a place that cannot be written.
    """
    subjects = read_subjects(bundles)
    place = subjects[0].folder.parent / NAMES[kind] if output is None else output
    check_place(place)
    write_text(place, render(subjects, kind))
    return place


def render(subjects: Sequence[Subject], kind: Kind) -> str:
    """The report's text. Raises ModelError for a model file that is damaged."""
    if kind == "markdown":
        from edgekit.reports.card import render_card

        return render_card(subjects)
    from edgekit.reports.page import render_page

    return render_page(subjects)


def check_place(place: Path) -> None:
    """Raise OutputError for a folder, and for a file that is no report."""
    if place.is_dir():
        raise OutputError(f"{place} is a folder; name a file with --output")
    if not place.exists():
        return
    try:
        with place.open("rb") as stream:
            ours = _MARK in stream.read(_LOOK)
    except OSError as error:
        raise OutputError(f"cannot read {place}: {error.strerror or error}") from None
    if not ours:
        raise OutputError(f"{place} is there and is no report of edgekit's; choose another place")


def write_text(place: Path, text: str) -> None:
    """Put the text there, which appears when it is whole. Raises OutputError."""
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(place)
    except OSError as error:
        raise OutputError(
            f"cannot write {place}: {error.strerror or error}; choose another --output"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
