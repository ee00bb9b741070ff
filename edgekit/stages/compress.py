"""The plan's steps, applied to the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.events import Event
from edgekit.plan.propose import Plan
from edgekit.stages.stage import read_record, run_stage, step_fields
from edgekit.store import Entry
from edgekit.workbench import Workbench

if TYPE_CHECKING:
    from edgekit.filemodel import FileModel
    from edgekit.model import Model

# How a sentence of a search's trace begins: dozens, which only the report shows.
_TRACE = "tried in "


@dataclass(frozen=True)
class Compressed:
    """The model after the plan's steps, and the text files that an app ships beside it."""

    work: Workbench
    plan: Plan
    entry: Entry

    @cached_property
    def model(self) -> "Model | FileModel":
        """The model itself, loaded when first needed."""
        from edgekit.model import identify, load_model

        if not self.plan.steps:
            return self.work.original
        return load_model(identify(str(self.checkpoint)))

    @property
    def checkpoint(self) -> Path:
        """Where the changed model is, if there are steps."""
        return self.entry.path / "checkpoint"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Task, problem, labels and lineage."""
        return read_record(self.entry.path / "facts.json")

    @cached_property
    def scored(self) -> dict[str, Any]:
        """``rows``: how many were scored (``Workbench.scored``); ``scores``: the primary metric
        on them, of the original and after each step. None where there are no steps or labels."""
        return read_record(self.entry.path / "scores.json")

    @property
    def app_files(self) -> dict[str, str]:
        folder = self.entry.path / "app"
        return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.iterdir())}

    @property
    def app_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.app_files.values())

    @property
    def app_download_bytes(self) -> int:
        from edgekit.measure.size import deflated_bytes

        return sum(deflated_bytes(text.encode()) for text in self.app_files.values())


def compress(
    work: Workbench,
    plan: Plan,
    *,
    launcher: Sequence[str] = (),
    tensorboard: Path | None = None,
) -> Compressed:
    """Apply the plan's steps to the model.

    launcher: the command that runs them as several processes (``launch.py``). tensorboard: where
    trainings write their curves. Neither is part of the key.
    """
    inputs = {**work.identity, "steps": [step_fields(spec) for spec in plan.steps]}

    def produce(folder: Path) -> None:
        from edgekit.bundle.write import app_files
        from edgekit.launch import apply_launched
        from edgekit.model import identify, load_model, save_model
        from edgekit.step import Context, apply_steps
        from edgekit.train_curves import curves_in

        model: Model | FileModel = work.outline
        scores: list[dict[str, Any]] = []

        def score(model: "Model | FileModel") -> None:
            names = ["original", *(str(spec) for spec in plan.steps)]
            found = work.score_some(model)
            if found is not None:
                scores.append({"stage": names[len(scores)], "score": found})

        if plan.steps:
            scratch = work.store.scratch("compress", inputs)
            if launcher:
                made = apply_launched(
                    launcher, work.settings, plan.steps, scratch, tensorboard, work.on_event
                )
                made.rename(folder / "checkpoint")
                model = load_model(identify(str(folder / "checkpoint")))
            else:
                context = Context(
                    work.data.train,
                    work.settings.seed,
                    folder=scratch,
                    on_progress=lambda fraction, text: work.on_event(
                        Event("progress", "compress", text, fraction=fraction)
                    ),
                    unlabeled=work.data.unlabeled,
                )
                steps = [spec.step for spec in plan.steps]
                score(work.original)
                with curves_in(tensorboard):
                    model = apply_steps(steps, cast("Model", work.original), context, score)
                save_model(model, folder / "checkpoint")
        (folder / "app").mkdir()
        for name, text in app_files(model).items():
            (folder / "app" / name).write_text(text, encoding="utf-8")
        facts = {
            "task": model.task,
            "problem": model.problem,
            "labels": list(model.labels),
            "lineage": list(model.lineage),
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        rows = len(work.scored) if scores else 0
        (folder / "scores.json").write_text(json.dumps({"rows": rows, "scores": scores}))

    title = "applying " + ", ".join(str(step) for step in plan.steps) if plan.steps else "preparing"
    made = Compressed(work, plan, run_stage(work, "compress", title, inputs, produce))
    for sentence in made.facts["lineage"][len(work.outline.lineage) :] if plan.steps else ():
        if not sentence.startswith(_TRACE):
            work.on_event(Event("note", "compress", sentence))
    return made
