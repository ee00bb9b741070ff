"""The plan of a build: which steps, which lengths, and the bytes to expect.

Rules:

1. Steps that the user names are the plan; nothing is added to them.
2. Otherwise steps are added in order of harm, least first, until every target fits the size
   limit: the target's own scheme alone, then a trimmed vocabulary with as many common words
   as there is room for.
3. A static scheme takes its ranges from a step; where none is named, ``calibrate`` comes last.
4. Sizes come from applying the steps to the model on the meta device and counting what the
   writer will store; no weight is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.artifact import Format, Scheme
from edgekit.recipe import StepSpec, parse_table
from edgekit.units import format_bytes


@dataclass(frozen=True)
class Predicted:
    """Bytes that an app will ship for one target, by file format and for the files beside it."""

    target: str
    scheme: str
    models: Mapping[Format, int]
    beside: int

    @property
    def total(self) -> int:
        return sum(self.models.values()) + self.beside


@dataclass(frozen=True)
class Plan:
    """What a build will do.

    lengths: sequence-length buckets, for files that need them. fixed_lengths: the user asked for
    buckets. misfit: why nothing fits the budget, or ``None``.
    """

    steps: tuple[StepSpec, ...]
    lengths: tuple[int, ...]
    fixed_lengths: bool
    predicted: tuple[Predicted, ...]
    original_bytes: int
    misfit: str | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": [step.to_json() for step in self.steps],
            "lengths": list(self.lengths),
            "fixed_lengths": self.fixed_lengths,
            "predicted": [
                {
                    "target": p.target,
                    "scheme": p.scheme,
                    "models": dict(p.models),
                    "beside": p.beside,
                    "total": p.total,
                }
                for p in self.predicted
            ],
            "original_bytes": self.original_bytes,
            "misfit": self.misfit,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> "Plan":
        return Plan(
            steps=tuple(parse_table(step) for step in fields["steps"]),
            lengths=tuple(fields["lengths"]),
            fixed_lengths=fields["fixed_lengths"],
            predicted=tuple(
                Predicted(p["target"], p["scheme"], p["models"], p["beside"])
                for p in fields["predicted"]
            ),
            original_bytes=fields["original_bytes"],
            misfit=fields["misfit"],
            notes=tuple(fields["notes"]),
        )

    def any_length(self, scheme: Scheme) -> bool:
        """Whether a TFLite file gets one signature for any length instead of buckets.

        Faster, and smaller on disk and in memory (``benchmarks/main_job``); but GPU delegates,
        which take the fp16 files, need fixed shapes.
        """
        return scheme != "fp16" and not self.fixed_lengths

    def text(self) -> str:
        """The plan for people, one line a target."""
        steps = " → ".join(str(step) for step in self.steps) or "no steps on the model"
        lines = [f"{format_bytes(self.original_bytes)} original · {steps}"]
        for each in self.predicted:
            formats = " + ".join(each.models)
            lines.append(
                f"{each.target}: {formats} {each.scheme}, about {format_bytes(each.total)}"
            )
        return "\n".join(lines)


def misfit(
    steps: Sequence[StepSpec], predicted: Sequence[Predicted], limit: int | None
) -> str | None:
    """One sentence when the best plan is above the size limit, else ``None``."""
    largest = max(predicted, key=lambda each: each.total)
    if limit is None or largest.total <= limit:
        return None
    done = ", ".join([largest.scheme, *(str(step) for step in steps)])
    return (
        f"{largest.target} does not fit {format_bytes(limit)}: the smallest within reach is "
        f"{format_bytes(largest.total)} ({done}), {format_bytes(largest.total - limit)} too much; "
        "raise --budget or start from a smaller model"
    )
