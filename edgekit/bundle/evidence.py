"""``report.json``: what a report shows and the manifest does not hold. It is not shipped."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.errors import BundleError
from edgekit.measure.evidence import Count, FileEvidence, StageScore

FILE = "report.json"


class Prediction(BaseModel):
    """Bytes that the plan expected: each format's file, and the files beside them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scheme: str
    models: dict[str, Count]
    beside: Count


class Evidence(BaseModel):
    """The plan of the build, the model after each step, and what was seen of each file.

    original_bytes: of the original's weights in fp32. steps, asked: those that were applied, and
    those of them that the user named; as ``--step`` takes them. sample, stages: how many of the
    eval rows the model was scored on before the first and after each step, and the scores.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    original_bytes: Count
    steps: list[str]
    asked: list[str]
    lengths: list[int] = Field(description="length buckets, of files that have them")
    predicted: Prediction
    sample: Count
    stages: list[StageScore]
    files: dict[str, FileEvidence]


def evidence_text(evidence: Evidence) -> str:
    """The file's content."""
    return evidence.model_dump_json() + "\n"


def read_evidence(folder: Path) -> Evidence | None:
    """What is in a bundle; ``None`` for one from before there were reports.

    Raises BundleError when the file is not what it should be.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Evidence.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{path}: {key:.200}: {first['msg']}; build the bundle again") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from None
