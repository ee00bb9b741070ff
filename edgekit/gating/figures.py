"""The figures that rules are about: their names and units, and where a manifest records them.

What is read of a manifest is also what a baseline keeps, but for the latency: milliseconds of two
machines, or of two runs on one, are never set against each other.
"""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.bundle.manifest import Manifest, ModelFile
from edgekit.errors import BundleError
from edgekit.units import format_bytes, format_percent, format_seconds

Unit = Literal["bytes", "count", "seconds", "share"]
_DTYPES = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "int8",
    "uint8",
    "int4",
    "uint4",
    "int2",
    "uint2",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "bool",
)
# Metrics that are shares of rows, as are F1 scores, nearly.
_CORRELATIONS = ("spearman",)


class Part(BaseModel):
    """What a baseline is made of: strict, and without NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Latency(Part):
    """Seconds of one call, and the ends of the median's 95 % interval."""

    p50: float = Field(ge=0)
    low: float | None
    high: float | None


class Accuracy(Part):
    """How right a file is on its eval rows, and what a comparison of two needs to know of them.

    metric: the one that decides. chance: what the best answer that ignores the input would get.
    digest: of the rows, with their labels. right: a bit for each row, in base64.
    """

    metric: str
    score: float = Field(ge=-1, le=1)
    rows: int = Field(ge=1)
    chance: float = Field(ge=0, le=1)
    digest: str
    right: str | None

    @property
    def correlation(self) -> bool:
        return self.metric in _CORRELATIONS


class FileFigures(Part):
    """Of one model file; ``None`` where nothing is recorded.

    delegated_ops: of all operators, the share that an accelerator takes. device: what the memory
    was measured on.
    """

    sha256: str
    dtype_bytes: dict[str, int]
    parameters: int | None = Field(ge=0)
    macs: int | None = Field(ge=0)
    ops: int | None = Field(ge=0)
    peak_memory: int | None = Field(ge=0)
    device: str
    accuracy: Accuracy | None
    agreement: float | None = Field(ge=0, le=1)
    rows: int = Field(ge=0)
    delegated_ops: float | None = Field(ge=0, le=1)
    latency: Latency | None = Field(default=None, exclude=True)


class BundleFigures(Part):
    """Of one bundle. budget: what it was built to keep, by the names of ``Budget``."""

    model: str
    task: str
    shipped_bytes: int = Field(ge=0)
    download_bytes: int | None = Field(ge=0)
    files: dict[str, FileFigures]
    budget: dict[str, float | None] = Field(default={}, exclude=True)


@dataclass(frozen=True)
class Figure:
    """What a rule can be about. ``read`` finds it in a bundle, and in one of its files if it
    belongs to files. budget: the limit in the manifest that it has to keep, where there is one.
    steady: whether the same build has the same figure again.
    """

    name: str
    unit: Unit
    better: Literal["lower", "higher"]
    read: Callable[[BundleFigures, FileFigures | None], float | None]
    of_files: bool = True
    budget: str | None = None
    steady: bool = True

    def show(self, value: float) -> str:
        """The value in its unit."""
        return show(self.unit, value)


def show(unit: Unit, value: float) -> str:
    """A value in its unit, as people write it."""
    if unit == "bytes":
        return format_bytes(round(value))
    if unit == "seconds":
        return format_seconds(value)
    if unit == "share":
        return format_percent(value)
    return f"{value / 1e6:.4g} M" if abs(value) >= 1e6 else f"{value:.0f}"


def figures_of(manifest: Manifest, folder: Path) -> BundleFigures:
    """What a manifest records. Raises BundleError for what is no such figure, NaN above all."""
    try:
        files = {printable(entry.file): _file_figures(manifest, entry) for entry in manifest.models}
        return BundleFigures(
            model=printable(manifest.model.reference),
            task=printable(manifest.model.task),
            shipped_bytes=manifest.shipped_bytes,
            download_bytes=manifest.download_bytes,
            files=files,
            budget=manifest.budget,
        )
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise BundleError(
            f"{folder}: {printable(key)} is no figure ({first['msg'].lower()}); build the bundle "
            "again"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{folder}: the proof in its manifest is malformed ({printable(str(error))}); build "
            "the bundle again"
        ) from None


def printable(text: str) -> str:
    """A name on one line, without what would steer a terminal or reorder what is read."""
    return "".join("?" if unicodedata.category(each)[0] == "C" else each for each in text)


def _file_figures(manifest: Manifest, entry: ModelFile) -> FileFigures:
    proof = entry.proof
    static = proof.get("static") or {}
    shipped = {each.path: each.sha256 for each in manifest.files}
    latency = proof.get("latency") or {}
    ops: Mapping[str, int] = static.get("ops") or {}
    return FileFigures(
        sha256=shipped[entry.packed or entry.file],
        dtype_bytes=proof.get("dtype_bytes") or {},
        parameters=static.get("parameters"),
        macs=static.get("macs"),
        ops=sum(ops.values()) if ops else None,
        peak_memory=proof.get("peak_memory"),
        device=_device(proof.get("device") or {}),
        accuracy=_accuracy(proof),
        agreement=proof.get("agreement"),
        rows=proof.get("rows", 0),
        delegated_ops=_delegated(proof, ops),
        latency=Latency(p50=latency["p50"], low=latency.get("low"), high=latency.get("high"))
        if latency
        else None,
    )


def _accuracy(proof: Mapping[str, Any]) -> Accuracy | None:
    metrics = proof.get("metrics") or {}
    if metrics.get("primary") not in (metrics.get("file") or {}):
        return None
    return Accuracy(
        metric=metrics["primary"],
        score=metrics["file"][metrics["primary"]],
        rows=proof["rows"],
        chance=metrics["chance"],
        digest=proof["rows_digest"],
        right=proof.get("right"),
    )


def _delegated(proof: Mapping[str, Any], ops: Mapping[str, int]) -> float | None:
    """The least that any accelerator took: all, or all but the kinds that it left to the CPU."""
    shares = []
    for each in proof.get("elsewhere") or ():
        coverage = each.get("coverage")
        if coverage is None:
            continue
        if coverage["fully_accelerated"]:
            shares.append(1.0)
        elif coverage["on_cpu"] and ops:
            left = {str(kind).partition(" ")[0] for kind in coverage["on_cpu"]}
            shares.append(1 - sum(ops.get(kind, 0) for kind in left) / sum(ops.values()))
    return min(shares, default=None)


def _device(fingerprint: Mapping[str, Any]) -> str:
    """What decides how much memory a file takes."""
    parts = (
        fingerprint.get("cpu") or fingerprint.get("machine"),
        f"threads: {fingerprint.get('threads')}",
        fingerprint.get("runtime"),
    )
    return printable(", ".join(str(part) for part in parts))


def _of_file(name: str) -> Callable[[BundleFigures, FileFigures | None], float | None]:
    return lambda bundle, file: None if file is None else getattr(file, name)


def _bytes_of(dtype: str) -> Callable[[BundleFigures, FileFigures | None], float | None]:
    return lambda bundle, file: None if file is None else file.dtype_bytes.get(dtype, 0)


def _score(bundle: BundleFigures, file: FileFigures | None) -> float | None:
    return None if file is None or file.accuracy is None else file.accuracy.score


def _p50(bundle: BundleFigures, file: FileFigures | None) -> float | None:
    return None if file is None or file.latency is None else file.latency.p50


_ALL = (
    Figure(
        "shipped-bytes",
        "bytes",
        "lower",
        lambda bundle, file: bundle.shipped_bytes,
        of_files=False,
        budget="size",
    ),
    Figure(
        "download-bytes",
        "bytes",
        "lower",
        lambda bundle, file: bundle.download_bytes,
        of_files=False,
    ),
    *(Figure(f"{dtype}-bytes", "bytes", "lower", _bytes_of(dtype)) for dtype in _DTYPES),
    Figure("parameters", "count", "lower", _of_file("parameters")),
    Figure("macs", "count", "lower", _of_file("macs")),
    Figure("ops", "count", "lower", _of_file("ops")),
    Figure("peak-memory", "bytes", "lower", _of_file("peak_memory"), budget="memory", steady=False),
    Figure("latency", "seconds", "lower", _p50, budget="latency", steady=False),
    Figure("accuracy", "share", "higher", _score),
    Figure("agreement", "share", "higher", _of_file("agreement")),
    Figure("delegated-ops", "share", "higher", _of_file("delegated_ops")),
)
FIGURES: Mapping[str, Figure] = {figure.name: figure for figure in _ALL}
