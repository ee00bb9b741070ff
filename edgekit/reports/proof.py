"""What a report reads of the parts of a manifest that have no schema of their own, checked."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from edgekit.measure.evidence import Count, Score, Seconds, Share

Outcome = Literal["pass", "fail", "inconclusive"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Device(_Part):
    machine: str
    system: str
    runtime: str
    threads: int
    cpu: str | None = None
    release: str | None = None
    cores: int | None = None
    features: list[str] = []
    governor: str | None = None
    frequency: FiniteFloat | None = None
    memory: Count | None = None
    python: str | None = None
    numpy: str | None = None


class Latency(_Part):
    p50: Seconds
    p90: Seconds
    p99: Seconds | None
    low: Seconds
    high: Seconds
    samples: Count


class Parity(_Part):
    max: FiniteFloat
    agreement: Share


class Metrics(_Part):
    original: dict[str, Score]
    file: dict[str, Score]


class Elsewhere(_Part):
    device: str
    runtime: str
    rows: Count
    agreement: Share
    max_difference: FiniteFloat


class Ratio(_Part):
    ratio: FiniteFloat


class Proof(_Part):
    """``ModelFile.proof``, as far as a report shows it."""

    rows: Count
    agreement: Share
    parity: dict[str, Parity]
    metrics: Metrics
    load_seconds: Seconds
    first_run_seconds: Seconds
    latency: Latency
    peak_memory: Count | None
    device: Device
    elsewhere: list[Elsewhere] = []
    against_float: Ratio | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Proof":
        if "alone" not in self.parity:
            raise ValueError("no parity of rows by themselves")
        if set(self.metrics.original) - set(self.metrics.file):
            raise ValueError("a metric of the original that the file has not")
        return self


class Check(_Part):
    name: Literal["size", "latency", "memory", "accuracy-drop"]
    limit: Annotated[FiniteFloat, Field(gt=0, le=1e15)]
    value: Annotated[FiniteFloat, Field(ge=-1, le=1e15)] | None
    outcome: Outcome
    reason: str


class Verdict(_Part):
    """``Manifest.verdict``."""

    outcome: Outcome
    checks: list[Check]


class Columns(_Part):
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


class Settings(_Part):
    """``Manifest.settings``, as far as a command repeats them."""

    task: str | None
    data: str | None
    eval: str | None
    columns: Columns
    targets: list[str]
    formats: list[str]
    scheme: str | None
    lengths: list[int]
    seed: int
    devices: list[str]
    allow_random_calibration: bool
