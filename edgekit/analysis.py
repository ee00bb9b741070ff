"""What matters inside a model: every score of importance on its training rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import ModelError, OutputError
from edgekit.events import Event, silent
from edgekit.measure.importance import Importance, importances
from edgekit.measure.importance_plot import draw
from edgekit.project import Settings


@dataclass(frozen=True)
class Analysis:
    """The scores that the model and its data have, and why others are missing."""

    model: str
    found: tuple[Importance, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "importance": [each.to_json() for each in self.found],
            "notes": list(self.notes),
        }

    def plot(self, path: Path) -> None:
        """Write the scores as an SVG. Raises OutputError."""
        try:
            path.write_text(draw(self.model, self.found), encoding="utf-8")
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; name a file in a folder that is there"
            ) from None


def analyze(settings: Settings, *, on_event: Callable[[Event], None] = silent) -> Analysis:
    """Score the layers, heads and neurons of the settings' model on its training rows.

    Raises ModelError for what is no text model with layers, DataError for rows that do not fit,
    UsageError for a seed that is none.
    """
    from edgekit.filemodel import FileModel
    from edgekit.project import check_seed
    from edgekit.step import Context
    from edgekit.store import Store
    from edgekit.workbench import open_workbench

    check_seed(settings.seed)
    work = open_workbench(settings, Store(), on_event)
    outline = work.outline
    described = None if isinstance(outline, FileModel) else outline.architecture
    if described is None or (described.reads_text and described.layers is None):
        raise ModelError(f"{settings.model} has no layers that are known here; give a checkpoint")
    if not described.reads_text:
        raise ModelError(f"{settings.model} reads pictures, and only text models can be analyzed")
    train = work.data.train
    assert not isinstance(work.original, FileModel)
    told = list(importances(work.original, Context(train, settings.seed)))
    return Analysis(
        settings.model,
        tuple(each for each in told if isinstance(each, Importance)),
        tuple(each for each in told if isinstance(each, str)),
    )
