"""One file on one device: every figure of a run, in one schema.

The published schema is ``measurement.schema.json`` beside this file, written from these classes.
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edgekit.artifact import Artifact
from edgekit.contents.static import Static, static_figures
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.devices.run import Pass, run_agent
from edgekit.measure.instructions import instructions_of_a_row
from edgekit.measure.latency import PRECISION, summarize
from edgekit.preprocess import Encoded

SCHEMA = Path(__file__).with_name("measurement.schema.json")
_BATCH = 8
# Shares of the seconds: batches need fewer, since a call of theirs is longer.
_BATCH_SHARE = 0.2


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LatencyEntry(_Part):
    """Seconds of one call at the rows' true lengths, one row a call."""

    p50: float
    p90: float | None
    p99: float | None = Field(description="from 500 samples on")
    low: float | None = Field(
        description="the median's 95 % bootstrap interval; null where a tool keeps no samples"
    )
    high: float | None
    wide: bool = Field(description="the interval is wider than 2 % of the median")
    steady: bool = Field(description="the pace had settled before the first sample")
    samples: int
    lengths: dict[int, float] = Field(description="the median by length in tokens")


class Throughput(_Part):
    batch: int
    rows_per_second: float


class Memory(_Part):
    """Bytes. ``peak`` is the kernel's high-water mark; ``above_empty`` subtracts ``empty``."""

    empty: int | None = Field(description="interpreter and inputs, before the runtime")
    loaded: int | None
    peak: int | None
    above_empty: int | None
    share: int | None = Field(description="most proportional set size sampled (Linux)")
    mapped: int | None = Field(description="of that, pages of mapped files")


class StaticEntry(_Part):
    """What needs no clock: of one row of ``length`` tokens (``edgekit.contents.static``)."""

    macs: int | None
    weight_bytes: int | None
    activation_bytes: int | None
    ops: dict[str, int]
    parameters: int | None
    length: int | None


class Measurement(_Part):
    """Times are seconds, and ``None`` where the device's times mean nothing."""

    schema_version: Literal[1] = 1
    file: str
    format: Literal["onnx", "tflite", "torchscript"]
    bytes: int
    device: str
    timed: bool
    load_seconds: float | None
    first_run_seconds: float | None
    threads: int
    latency: LatencyEntry | None
    one_thread: LatencyEntry | None = Field(description="the latency with one thread, if more ran")
    throughput: Throughput | None
    overhead_seconds: float | None = Field(description="what measuring adds to a call")
    instructions: float | None = Field(
        None, description="of one row, one thread, in user space, where this host's processor tells"
    )
    memory: Memory
    fingerprint: dict[str, Any]
    static: StaticEntry
    conditions: dict[str, Any] | None = Field(description="a phone's cores, temperature, charge")


def measure(
    artifact: Artifact,
    encoded: Encoded,
    device: Device,
    *,
    threads: int,
    seconds: float,
    cores: tuple[int, ...] = (),
    nice: int = 0,
) -> Measurement:
    """Run the file on the device for about ``seconds``. Raises DeviceError."""
    rows = list(range(len(encoded)))
    passes = [Pass("latency", "latency", rows, seconds=seconds, precision=PRECISION)]
    batched = not isinstance(artifact.inputs[0].shape[0], int)
    if not device.timed:
        passes = [Pass("outputs", "outputs", rows[:1])]
    elif batched:
        many = np.resize(rows, max(_BATCH, len(rows) // _BATCH * _BATCH)).tolist()
        spent = seconds * _BATCH_SHARE
        passes.append(Pass("batch", "latency", many, batch=_BATCH, seconds=spent))
    found = run_agent(
        artifact, encoded, passes, threads=threads, device=device, cores=cores, nice=nice
    )
    single = None
    if device.timed and threads > 1:
        single = run_agent(
            artifact, encoded, passes[:1], threads=1, device=device, cores=cores, nice=nice
        )
    counted = instructions_of_a_row(artifact, encoded) if device is HOST else None
    static = static_figures(artifact.path, middle_length(encoded))
    return _measurement(artifact, device, found, single, counted, static)


def middle_length(encoded: Encoded) -> int | None:
    """The length in tokens that half of the rows are no longer than; ``None`` without lengths."""
    lengths = encoded.lengths
    return None if lengths is None else int(np.sort(lengths)[(len(lengths) - 1) // 2])


def _measurement(
    artifact: Artifact,
    device: Device,
    found: dict[str, Any],
    single: dict[str, Any] | None,
    counted: float | None,
    static: Static,
) -> Measurement:
    passes, timed = found["passes"], device.timed
    memory = found["memory"]
    latency = passes.get("latency") if timed else None
    batch = passes.get("batch") if timed else None
    return Measurement(
        file=artifact.path.name,
        format=artifact.format,
        bytes=artifact.bytes,
        device=device.name,
        timed=timed,
        load_seconds=found["load_seconds"] if timed else None,
        first_run_seconds=found["first_run_seconds"] if timed else None,
        threads=found["fingerprint"]["threads"],
        latency=_latency(latency) if latency else None,
        one_thread=_latency(single["passes"]["latency"]) if single else None,
        throughput=Throughput(
            batch=batch["batch"],
            rows_per_second=batch["batch"] / float(np.median(batch["samples"])),
        )
        if batch
        else None,
        overhead_seconds=latency.get("overhead_seconds") if latency else None,
        instructions=counted,
        memory=Memory(
            empty=memory.get("start"),
            loaded=memory.get("loaded"),
            peak=memory.get("peak"),
            above_empty=above_empty(memory),
            share=memory.get("share"),
            mapped=memory.get("mapped"),
        ),
        fingerprint=found["fingerprint"],
        static=StaticEntry(**static.to_json()),
        conditions=found.get("conditions"),
    )


def _latency(found: dict[str, Any]) -> LatencyEntry:
    """From samples, or from the rounds of a tool that keeps none: one for each length."""
    if "samples" in found:
        return LatencyEntry(**summarize(found).to_json())
    lengths = {each["width"]: each["p50"] or each["mean"] for each in found["rounds"]}
    return LatencyEntry(
        p50=float(np.median(list(lengths.values()))),
        p90=None,
        p99=None,
        low=None,
        high=None,
        wide=True,
        steady=True,
        samples=sum(each["count"] for each in found["rounds"]),
        lengths={width or 0: seconds for width, seconds in lengths.items()},
    )


def above_empty(memory: dict[str, Any]) -> int | None:
    """Peak bytes above an empty process, or ``None`` where the system tells no memory."""
    start, peak = memory.get("start"), memory.get("peak")
    return peak - start if start and peak else None


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(Measurement.model_json_schema(), indent=2) + "\n")
