"""What a report shows of a file beyond its figures: which answers changed, and how times spread.

All of it is made from what the proof runs anyway, and is JSON-able.

Rules:

1. An answer changed when ``accuracy.same`` says that the file's is not the original's.
2. Examples are at most ``_EXAMPLES``: answers that became wrong first, then those that became
   right, then the rest; of each kind those that the original was surest of.
3. The confusion is that of the classes with the most changed answers, true or given; every other
   answer is one column more.
4. Times are grouped by true length: each length by itself while they are few, else in powers of
   two.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Lengths that are few enough to be told apart.
_FEW_LENGTHS = 6
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Kind = Literal["lost", "won", "other"]
# Far beyond what any device does; more is no measurement.
Seconds = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=0, le=10**15)]
# Of any metric: a correlation can be below zero.
Score = Annotated[float, Field(ge=-1, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Example(_Part):
    """A row whose answer changed. ``word``: which of the row's words, in token classification."""

    row: Count
    place: str | None
    text: str | None
    text_pair: str | None
    word: str | None
    picture: str | None = Field(
        description="a thumbnail, as a data URI", pattern=r"^data:image/png;base64,[\w+/=]+$"
    )
    truth: str | None
    original: str
    original_share: Share | None = Field(description="softmax of the answer's output")
    file: str
    file_share: Share | None
    kind: Kind = Field(description="became wrong, became right, or neither")


class ClassCount(_Part):
    """One class: rows that are of it, and how many of those each side answers rightly."""

    label: str
    rows: Count
    original: Count
    file: Count
    changed: Count = Field(description="changed answers that have to do with this class")


class Confusion(_Part):
    """Counts [true class][answer]; the last column is every class that has no row here."""

    labels: list[str]
    original: list[list[Count]]
    file: list[list[Count]]

    @model_validator(mode="after")
    def _shape(self) -> "Confusion":
        size = len(self.labels)
        for table in (self.original, self.file):
            if [len(row) for row in table] != [size + 1] * size:
                raise ValueError(
                    "not one row for each label, with one column for each and one more"
                )
        return self


class Changes(_Part):
    """Answers of the file that are not the original's. lost, won: became wrong, became right."""

    answers: Count
    changed: Count
    lost: Count | None
    won: Count | None
    examples: list[Example]
    classes: list[ClassCount] = Field(description="with a changed answer, most changed first")
    confusion: Confusion | None


class Lengths(_Part):
    """Seconds of single calls with more than ``above`` and up to ``longest`` tokens.

    Both are ``None`` where rows have no length. quantiles: 5, 25, 50, 75 and 95 %.
    """

    above: Count | None
    longest: Count | None
    samples: Count
    quantiles: tuple[Seconds, Seconds, Seconds, Seconds, Seconds]


class MemorySample(_Part):
    """``bytes`` of the process at ``seconds`` after its inputs were read."""

    seconds: Seconds
    bytes: Count
    when: str


class LayerTime(_Part):
    layer: str
    seconds: Seconds
    share: Annotated[float, Field(ge=0, le=1e3)]


class Profile(_Part):
    """Seconds of one inference by layer, the mean of ``inferences``; ``reason``: why there are
    none."""

    reason: str | None
    inferences: Count
    total_seconds: Seconds | None
    layers: list[LayerTime]


class StageScore(_Part):
    """The primary metric on the sample of eval rows, after a stage."""

    stage: str
    score: Score


class FileEvidence(_Part):
    """Of one model file. sample_score: its metric on the rows that every stage ran on."""

    changes: Changes
    lengths: list[Lengths]
    memory: list[MemorySample]
    profile: Profile
    sample_score: Score | None


def lengths_of(found: Mapping[str, Any]) -> list[Lengths]:
    """What a latency pass of the agent sampled, by length (rule 4)."""
    samples = np.asarray(found["samples"], dtype=np.float64)
    widths = np.asarray(found["widths"])
    edges = [int(width) for width in np.unique(widths)]
    if edges == [0]:
        return [_lengths(None, None, samples)]
    if len(edges) > _FEW_LENGTHS:
        powers = [2**n for n in range(3, 32)]
        edges = [power for power in powers if power // 2 < edges[-1] or power == powers[0]]
    groups, above = [], 0
    for longest in edges:
        inside = samples[(widths > above) & (widths <= longest)]
        if len(inside):
            groups.append(_lengths(above, longest, inside))
        above = longest
    return groups


def _lengths(above: int | None, longest: int | None, samples: npt.NDArray[Any]) -> Lengths:
    p5, p25, p50, p75, p95 = map(float, np.quantile(samples, _QUANTILES))
    return Lengths(
        above=above, longest=longest, samples=len(samples), quantiles=(p5, p25, p50, p75, p95)
    )


def memory_of(timeline: Sequence[Sequence[Any]]) -> list[MemorySample]:
    """The agent's samples of memory, in order."""
    return [MemorySample(seconds=at, bytes=count, when=when) for at, count, when in timeline]


def profile_of(profile: Mapping[str, Any]) -> Profile:
    """Layers with their seconds, of what ``edgekit.measure.profile`` found."""
    from edgekit.measure.profile import by_layer

    return Profile(
        reason=profile["reason"],
        inferences=profile["inferences"],
        total_seconds=profile["total_seconds"],
        layers=[LayerTime(**layer) for layer in by_layer(profile)],
    )
