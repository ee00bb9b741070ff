"""The original's answers, which every file is held against."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.stages.stage import read_record, run_stage
from edgekit.store import Entry
from edgekit.workbench import Workbench, answers_of, encode

if TYPE_CHECKING:
    from edgekit.measure.expected import Expected


@dataclass(frozen=True)
class Answers:
    """The original's outputs on the eval rows."""

    work: Workbench
    entry: Entry

    @cached_property
    def expected(self) -> "Expected":
        from edgekit.measure.expected import Expected

        original = self.work.original
        with np.load(self.entry.path / "outputs.npz", allow_pickle=False) as archive:
            outputs = archive["outputs"]
        return Expected(
            task=original.task,
            problem=original.problem,
            outputs=outputs,
            labels=self.work.eval_labels(),
            label_names=original.labels,
            scores=read_record(self.entry.path / "scores.json"),
        )


def answer_originally(work: Workbench) -> Answers:
    """Run the fp32 original on the eval rows: what every file is held against.

    Raises ProofError when its metric is no better than guessing.
    """

    def produce(folder: Path) -> None:
        from edgekit.measure import accuracy
        from edgekit.measure.expected import per_answer

        model = work.original
        encoded = encode(model, work.eval_rows)
        outputs = answers_of(model, encoded)
        labels = work.eval_labels()
        scores = {}
        if labels is not None:
            task, problem = model.task, model.problem
            scores = accuracy.score(
                outputs,
                labels,
                task=task,
                problem=problem,
                labels=model.labels,
                encoded=encoded,
            )
            accuracy.refuse_vacuous(scores, labels, task=task, problem=problem)
        np.savez(folder / "outputs.npz", outputs=per_answer(outputs, encoded))
        (folder / "scores.json").write_text(json.dumps(scores))

    title = "running the fp32 original on the eval rows"
    return Answers(work, run_stage(work, "reference", title, work.identity, produce))
