"""Measure how model files run: a bundle's on its golden inputs, any other file on made-up ones.

The golden inputs are spread over the true lengths of the eval rows that the bundle was built
with, so the figures are those of real use and need no data at hand.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.bundle.golden import golden_inputs, golden_texts, read_golden
from edgekit.bundle.manifest import FILE, check_files, read_manifest
from edgekit.bundle.verify import artifacts
from edgekit.data import Rows
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.errors import UsageError
from edgekit.events import Event, silent
from edgekit.measure.compare import Comparison, compare
from edgekit.measure.measurement import Measurement, measure
from edgekit.preprocess import Encoded

_TOKENS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Bench:
    """What was measured. ``inputs`` says what was fed; ``comparison`` is against another file.

    profiles: of each file, ``ops`` and ``layers`` with their seconds, and the ``roofline``.
    """

    path: Path
    inputs: str
    rows: int
    measurements: tuple[Measurement, ...] = ()
    tokenization_seconds: float | None = None
    comparison: Comparison | None = None
    profiles: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "inputs": self.inputs,
            "rows": self.rows,
            "tokenization_seconds": self.tokenization_seconds,
            "measurements": [each.model_dump(mode="json") for each in self.measurements],
            "profiles": list(self.profiles),
            "comparison": None if self.comparison is None else self.comparison.to_json(),
        }


def bench(
    path: Path,
    *,
    devices: Sequence[Device] = (HOST,),
    against: Path | None = None,
    threads: int | None = None,
    seconds: float = 5.0,
    cores: Sequence[int] = (),
    nice: int = 0,
    profile: bool = False,
    on_event: Callable[[Event], None] = silent,
) -> Bench:
    """Measure each model file on each device, or with ``against`` compare two files.

    path, against: a bundle folder or a model file. threads: as the bundle was built for when left
    out, else 1. seconds: of sampling, at most, for each file on each device. Raises BundleError
    for a damaged bundle, ModelError for a damaged file, DeviceError when a device does not run it.
    """
    subjects = _subjects(path)
    first = subjects[0]
    if against is not None:
        other = _counterpart(first, _subjects(against), against)
        on_event(Event("stage-start", "bench", f"comparing {path} with {against}"))
        comparison = compare(
            first.artifact,
            other.artifact,
            first.encoded,
            # With one thread the ratio is steadier, and is of the same kernels.
            threads=threads or 1,
            seconds=seconds * 2,
            device=devices[0],
            theirs=_inputs_of(other, first.rows),
        )
        on_event(Event("stage-end", "bench", f"comparing {path} with {against}"))
        return Bench(path, first.inputs, len(first.encoded), comparison=comparison)
    measured, profiles = [], []
    for device in devices:
        for subject in subjects:
            if subject.artifact.format not in device.formats and len(subjects) > 1:
                continue
            title = f"running {subject.artifact.path.name} on {device.name}"
            on_event(Event("stage-start", "bench", title))
            found = measure(
                subject.artifact,
                subject.encoded,
                device,
                threads=threads or subject.threads,
                seconds=seconds,
                cores=tuple(cores),
                nice=nice,
            )
            measured.append(found)
            if profile and device.timed:
                profiles.append(_profile(subject, device, threads or subject.threads, found))
            on_event(Event("stage-end", "bench", title))
    return Bench(
        path,
        first.inputs,
        len(first.encoded),
        tuple(measured),
        _tokenization(path, first),
        profiles=tuple(profiles),
    )


def _profile(
    subject: "_Subject", device: Device, threads: int, measured: Measurement
) -> dict[str, Any]:
    """Where the time goes, by operator and by layer, and how near the file comes to the peak."""
    from edgekit.measure.profile import by_layer, profile
    from edgekit.measure.roofline import measure_peak, roofline

    artifact, rows = subject.artifact, list(range(len(subject.encoded)))
    found = profile(artifact, subject.encoded, rows, threads=threads, device=device)
    length, latency = measured.static.length, measured.latency
    seconds = None
    if latency is not None:
        seconds = latency.p50 if length is None else latency.lengths.get(length)
    peak = measure_peak(artifact, threads=threads, device=device)
    share = None
    if seconds is not None:
        share = roofline(measured.static.macs, seconds, peak, artifact.scheme)
    return {
        "file": artifact.path.name,
        "device": device.name,
        **found,
        "layers": by_layer(found),
        "peak": peak,
        "roofline": share,
    }


@dataclass(frozen=True)
class _Subject:
    """A model file with what to feed it. ``rows``: the rows as text, where they are known."""

    artifact: Artifact
    encoded: Encoded
    inputs: str
    threads: int
    rows: Rows | None = None


def _subjects(path: Path) -> list[_Subject]:
    """The model files of a bundle, or the one file."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or (folder / FILE).is_file():
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        content = read_golden(folder)
        return [
            _Subject(
                artifact,
                golden_inputs(content, artifact),
                "the bundle's golden inputs",
                manifest.model_file(artifact.path.name).proof["device"]["threads"],
                golden_texts(content),
            )
            for artifact in artifacts(folder, manifest)
            if path.is_dir() or artifact.path.name == path.name
        ]
    return [_made_up(path)]


def _made_up(path: Path) -> _Subject:
    """A file by itself: text of a few lengths where a tokenizer lies beside it, else noise."""
    from edgekit.filemodel import read_file_model

    model = read_file_model(path, None)
    if model.preprocessor is not None:
        texts = tuple(" ".join(["the"] * (count - 2)) for count in _TOKENS)
        rows = Rows(texts=texts)
        return _Subject(model.artifact, model.preprocessor.encode(rows), "made-up texts", 1, rows)
    assert model.example is not None
    return _Subject(model.artifact, Encoded(dict(model.example), None), "made-up inputs", 1)


def _inputs_of(other: _Subject, rows: Rows | None) -> Encoded | None:
    """The rows as the other file reads them, by the vocabulary that lies beside it."""
    from edgekit.filemodel import read_file_model

    preprocessor = read_file_model(other.artifact.path, None).preprocessor
    return None if rows is None or preprocessor is None else preprocessor.encode(rows)


def _counterpart(first: _Subject, others: Sequence[_Subject], against: Path) -> _Subject:
    """The file of ``against`` to compare with: of the same format where there are several."""
    same = [each for each in others if each.artifact.format == first.artifact.format]
    if len(others) > 1 and not same:
        raise UsageError(f"--against: {against} holds no {first.artifact.format}; name its file")
    return same[0] if same else others[0]


def _tokenization(path: Path, subject: _Subject) -> float | None:
    """Median seconds that one text takes to become ids, on this host."""
    file = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if subject.rows is None or not subject.rows.texts or not file.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    samples = []
    for text in subject.rows.texts * 20:
        started = time.perf_counter()
        tokenizer.encode(text)
        samples.append(time.perf_counter() - started)
    return float(np.median(samples))
