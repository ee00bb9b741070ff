"""The page about a build's bundles."""

from collections.abc import Sequence
from pathlib import Path

from edgekit.stages.stage import run_stage
from edgekit.workbench import Workbench


def report(work: Workbench, bundles: Sequence[Path], place: Path) -> None:
    """Write the page about the bundles; the one in the store, where it is of these very bundles."""
    from edgekit.bundle.manifest import read_manifest
    from edgekit.reports import source_digest
    from edgekit.reports.write import write_text

    inputs = {
        "bundles": [[str(folder), read_manifest(folder).seal] for folder in bundles],
        "report": source_digest(),
    }

    def produce(folder: Path) -> None:
        from edgekit.reports.subject import read_subjects
        from edgekit.reports.write import render

        text = render(read_subjects(bundles), "html")
        (folder / place.name).write_text(text, encoding="utf-8")

    entry = run_stage(work, "report", "writing the report", inputs, produce)
    write_text(place, (entry.path / place.name).read_text(encoding="utf-8"))
