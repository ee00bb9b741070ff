"""Runs one model file in a process of its own and writes what it saw as one JSON.

Needs only Python 3.9 or later, numpy and the runtime under test, so that the same file runs on
this host, in an older runtime's environment, under emulation, on a board or on a phone:

    python agent.py JOB.json RESULT.json

The job (see ``read_job``):

    file, format      the model file; "onnx", "tflite" or "torchscript"
    threads           threads that the runtime may use
    lengths           sequence-length buckets of the file; empty when the length is dynamic
    inputs            an .npz with one array per input, rows first, right-padded with the pad id,
                      and "lengths" (true token count per row) for text
    signature_inputs  input names in the order of the file's signature
    passes            what to run, in this order:
        {"name", "kind": "outputs", "rows": [..] or null, "batch": 1, "width": null}
            outputs of the rows, ``batch`` at a time, in the smallest bucket that holds
            them, or padded to ``width`` tokens
        {"name", "kind": "latency", "rows": [..], "batch": 1, "seconds": s, "precision": 0.02}
            wall time of calls, ``batch`` rows at a time at their true length, in random order:
            until the median's interval is narrower than ``precision``, or the seconds are over
        {"name", "kind": "compare", "rows": [..], "seconds": s}
            wall time of single rows on this file and on ``other``, one right after the other
        {"name", "kind": "profile", "rows": [..], "seconds": s}
            seconds of each operator, by the runtime's own profiler, in a session of its own
    other             for "compare": "file", "format", "lengths" and "signature_inputs" of the
                      second file, and "inputs" where the same rows are others to it
    accelerator       optional: "cuda", or "gpu-delegate" for TFLite
    cores, nice       optional: processor cores to stay on, and the process's niceness

The result: outputs (base64 of little-endian arrays), latency samples in seconds, load and
first-run seconds, memory in bytes, and the fingerprint of the device. A row's output keeps only
its true tokens when the model answers per token. ``saturates`` is true where int8 sums may have
overflowed on this CPU (see ``saturating``). On failure ``error`` says what happened.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import math
import os
import platform
import random
import sys
import tempfile
import time
from typing import Any, Callable, Iterator, Optional, Tuple

import numpy as np

Array = np.ndarray[Any, Any]
Feed = dict[str, Array]
Call = Callable[[Feed], Any]
Fields = dict[str, Any]

VERSION = 1


def main(job_path: str, result_path: str) -> int:
    with open(job_path, encoding="utf-8") as stream:
        job = json.load(stream)
    result: Fields = {"agent": VERSION, "passes": {}, "error": None}
    try:
        run(job, result)
    except Refused as error:
        result["error"] = result["refused"] = str(error)
    except Exception as error:  # the parent reads the reason from the result, not from a trace
        result["error"] = f"{type(error).__name__}: {error}"
    partial = result_path + ".partial"
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(result, stream)
    os.replace(partial, result_path)
    return 1 if result["error"] else 0


class Refused(Exception):
    """The job asks for what this machine does not have."""


def run(job: Fields, result: Fields) -> None:
    arrays, lengths = read_inputs(job["inputs"])
    conditions(job)
    memory = Memory()
    memory.sample("start")
    noted: Fields = {"start": resident()}
    call, version = RUNTIMES[job["format"]](job, noted)
    result["load_seconds"] = noted.pop("load_seconds")
    for name in ("coverage", "saturates"):
        if name in noted:
            result[name] = noted.pop(name)
    memory.sample("loaded")

    rows = Rows(arrays, lengths, job["lengths"], job["signature_inputs"])
    started = time.perf_counter()
    call(rows.feed([0]))
    result["first_run_seconds"] = time.perf_counter() - started
    memory.sample("first_run")
    for step in job["passes"]:
        kind = step["kind"]
        if kind == "latency":
            result["passes"][step["name"]] = measure(call, rows, step, memory)
            noted["peak"] = peak()
        elif kind == "compare":
            other = {**job, **job["other"]}
            against, _ = RUNTIMES[other["format"]](other, {})
            inputs = read_inputs(other["inputs"])
            theirs = Rows(*inputs, other["lengths"], other["signature_inputs"])
            result["passes"][step["name"]] = compare((call, rows), (against, theirs), step)
        elif kind == "profile":
            result["passes"][step["name"]] = profile(job, rows, step)
        else:
            result["passes"][step["name"]] = outputs(call, rows, step)
    noted.setdefault("peak", peak())
    if job.get("accelerator") == "cuda" and job["format"] == "torchscript":
        noted["gpu_peak"] = sys.modules["torch"].cuda.max_memory_allocated()
    result["memory"] = {**noted, **memory.noted}
    # Last, since frequency and temperature are those of a device that worked.
    result["fingerprint"] = fingerprint(job, version)


def read_inputs(path: str) -> tuple[Feed, Array | None]:
    """The arrays by input name, and the true lengths where rows have any."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    lengths = arrays.pop("lengths", None)
    return arrays, lengths


def conditions(job: Fields) -> None:
    """Stay on the cores and at the priority that the job names."""
    cores = job.get("cores") or ()
    missing = [core for core in cores if not 0 <= core < (os.cpu_count() or 1)]
    if missing:
        raise Refused(f"there is no core {missing[0]}; they are 0 to {(os.cpu_count() or 1) - 1}")
    if cores:
        os.sched_setaffinity(0, cores)
    if job.get("nice"):
        os.nice(job["nice"])


class Rows:
    """The inputs, cut to what one call takes."""

    def __init__(
        self, arrays: Feed, lengths: Array | None, buckets: list[int], order: list[str]
    ) -> None:
        self.arrays, self.lengths, self.buckets, self.order = arrays, lengths, buckets, order
        self.count = len(next(iter(arrays.values())))

    def width(self, indices: Any) -> int | None:
        """Tokens per row of a call: the longest true length, or the bucket that holds it."""
        if self.lengths is None:
            return None
        longest = int(self.lengths[indices].max())
        if not self.buckets:
            return longest
        return next((b for b in self.buckets if b >= longest), self.buckets[-1])

    def feed(self, indices: Any, width: int | None = None) -> Feed:
        width = width or self.width(indices)
        feed = {}
        for name in self.order:
            array = self.arrays[name][indices]
            if width is not None:
                array = fit(array, width)
            feed[name] = np.ascontiguousarray(array)
        return feed


def fit(array: Array, width: int) -> Array:
    """Cut or pad to ``width`` columns. Zeros do: what the mask hides may be any token."""
    if array.shape[1] >= width:
        return array[:, :width]
    filler = np.zeros((len(array), width - array.shape[1]), array.dtype)
    return np.concatenate([array, filler], axis=1)


def outputs(call: Call, rows: Rows, step: Fields) -> Fields:
    indices = list(range(rows.count)) if step["rows"] is None else step["rows"]
    found: list[Array] = []
    widths: list[int | None] = []
    for first in range(0, len(indices), step["batch"]):
        chunk = np.asarray(indices[first : first + step["batch"]])
        answer = np.asarray(call(rows.feed(chunk, step["width"])), dtype=np.float32)
        found.extend(answer)
        widths.append(step["width"] or rows.width(chunk))
    if found and found[0].ndim == 2 and rows.lengths is not None:
        found = align(found, rows, indices)
    return {
        "outputs": encode(np.stack(found) if found else np.zeros((0,), np.float32)),
        "widths": sorted({w for w in widths if w is not None}),
    }


def align(found: list[Array], rows: Rows, indices: list[int]) -> list[Array]:
    """Per-token answers padded with zeros to the longest row, true tokens only."""
    lengths = rows.lengths
    assert lengths is not None
    longest = int(lengths.max())
    aligned = np.zeros((len(found), longest, found[0].shape[-1]), np.float32)
    for position, (index, answer) in enumerate(zip(indices, found)):
        length = min(int(lengths[index]), len(answer))
        aligned[position, :length] = answer[:length]
    return list(aligned)


# A sample lasts at least so many ticks of the clock, so that a tick is a thousandth of it.
TICKS = 1000
# Share of the time that warming up may take.
WARM_UP = 0.25
# Calls in one point of the warm-up curve, and points that a test of it needs.
POINT, POINTS = 16, 8
# Seconds between looks at how well the median is known.
CHECK = 0.25


def measure(call: Call, rows: Rows, step: Fields, memory: Memory) -> Fields:
    """Wall seconds of one call each, sampled until the median is known or the time is up."""
    chunks = [
        np.asarray(step["rows"][first : first + step["batch"]])
        for first in range(0, len(step["rows"]), step["batch"])
    ]
    feeds = [rows.feed(chunk) for chunk in chunks]
    widths = [rows.width(chunk) or 0 for chunk in chunks]
    clock = time.perf_counter
    repeats = calls_per_sample(call, feeds[0])
    warm, steady = warm_up(call, feeds, widths, step["seconds"] * WARM_UP)
    samples: list[float] = []
    order: list[int] = []
    shuffle = random.Random(0).sample
    deadline = clock() + step["seconds"]
    check = clock() + CHECK
    while True:
        for index in shuffle(range(len(feeds)), len(feeds)):
            feed = feeds[index]
            started = clock()
            for _ in range(repeats):
                call(feed)
            samples.append((clock() - started) / repeats)
            order.append(index)
            if clock() > deadline and len(samples) >= len(feeds):
                break
        if clock() > check:
            memory.sample("running")
            check = clock() + CHECK
            if len(samples) >= 64 and spread(median_interval(samples)) <= step["precision"]:
                break
        if clock() > deadline:
            break
    return {
        "samples": samples,
        "rows": [int(chunks[index][0]) for index in order],
        "widths": [widths[index] for index in order],
        "batch": step["batch"],
        "repeats": repeats,
        "warm_up_calls": warm,
        "steady": steady,
        "overhead_seconds": overhead(),
    }


def calls_per_sample(call: Call, feed: Feed) -> int:
    """How many calls one sample takes, so that the clock's resolution does not count."""
    tick = time.get_clock_info("perf_counter").resolution
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        call(feed)
        best = min(best, time.perf_counter() - started)
    return max(1, math.ceil(TICKS * tick / best))


def warm_up(call: Call, feeds: list[Feed], widths: list[int], seconds: float) -> tuple[int, bool]:
    """Call until no change of pace is left in what was timed; how often, and whether it settled.

    Every call is held against the median of its width, so that a mix of lengths is no change.
    """
    # Every width once, so that none is prepared inside a sample.
    for feed in dict(zip(widths, feeds)).values():
        call(feed)
    clock = time.perf_counter
    deadline = clock() + seconds
    times: list[float] = []
    seen: list[int] = []
    first = 0
    while clock() < deadline:
        for _ in range(POINT):
            index = len(times) % len(feeds)
            started = clock()
            call(feeds[index])
            times.append(clock() - started)
            seen.append(widths[index])
        points = curve(times, seen)[first:]
        if len(points) < POINTS:
            continue
        at, chance = change_point(points)
        if chance > 0.05:
            return len(times), True
        first += at
    return len(times), False


def curve(times: list[float], widths: list[int]) -> Array:
    """Medians of so many calls each, a call's time as a share of the median of its width."""
    values, kinds = np.asarray(times), np.asarray(widths)
    for width in set(widths):
        values[kinds == width] /= np.median(values[kinds == width])
    points: Array = np.median(values[: len(values) // POINT * POINT].reshape(-1, POINT), axis=1)
    return points


def change_point(series: Array) -> tuple[int, float]:
    """Where a series most likely changes level, and how likely such a change is by chance.

    Pettitt, A non-parametric approach to the change-point problem, Applied Statistics 28 (1979).
    """
    signs = np.sign(series[:, None] - series[None, :])
    count = len(series)
    sums = np.array([signs[: t + 1, t + 1 :].sum() for t in range(count - 1)])
    at = int(np.abs(sums).argmax())
    chance = 2 * math.exp(-6 * float(sums[at]) ** 2 / (count**3 + count**2))
    return at + 1, min(1.0, chance)


def median_interval(samples: Any) -> tuple[float, float]:
    """The median's 95 % bootstrap interval (percentile method), without a resample.

    How often a resample's median is each of the sorted samples is known: its rank is near enough
    normal around the middle, with half the root of their number as deviation. Maritz and Jarrett,
    A note on estimating the variance of the sample median, JASA 73 (1978).
    """
    values = np.asarray(samples, dtype=np.float64)
    count = len(values)
    reach = 1.96 * math.sqrt(count) / 2
    low = max(0, math.floor((count - 1) / 2 - reach))
    high = min(count - 1, math.ceil((count - 1) / 2 + reach))
    values = np.partition(values, [low, high])
    return float(values[low]), float(values[high])


def spread(interval: tuple[float, float]) -> float:
    """An interval's width as a share of its middle."""
    low, high = interval
    return (high - low) / ((high + low) / 2)


def overhead() -> float:
    """Seconds that the measuring itself adds to a call."""
    clock = time.perf_counter
    call: Call = len
    feed: Feed = {}
    samples = []
    for _ in range(1000):
        started = clock()
        for _ in range(1):
            call(feed)
        samples.append(clock() - started)
    return float(np.median(samples))


def compare(ours: tuple[Call, Rows], theirs: tuple[Call, Rows], step: Fields) -> Fields:
    """Seconds of the same rows on two files, a pair at a time, in random order within a pair."""
    sides = [
        (call, [rows.feed([index]) for index in step["rows"]]) for call, rows in (ours, theirs)
    ]
    clock = time.perf_counter
    pairs: list[tuple[float, float]] = []
    choose = random.Random(os.getpid())
    deadline = clock() + step["seconds"]
    warm = clock() + step["seconds"] * WARM_UP
    while clock() < deadline or not pairs:
        for index in range(len(step["rows"])):
            found = [0.0, 0.0]
            for side in choose.sample((0, 1), 2):
                call, feeds = sides[side]
                started = clock()
                call(feeds[index])
                found[side] = clock() - started
            if clock() > warm:
                pairs.append((found[0], found[1]))
            if clock() > deadline and pairs:
                break
    return {"pairs": pairs}


# Inferences that a profile takes at most: onnxruntime writes a line of JSON for each operator.
PROFILED = 200
# Of each row in turn. The first may prepare kernels for its length; of those behind it the
# fastest counts, which is the one that nothing else on the machine held up.
IN_A_ROW = 5

# An operator as a profiler saw it: its name, its kind, its place in the file's graph, seconds.
Seen = Tuple[str, str, Optional[int], float]


def profile(job: Fields, rows: Rows, step: Fields) -> Fields:
    """Mean seconds of one inference in each operator, in the order in which they run.

    ``total_seconds`` are those of the inference, with what lies between operators. An operator
    has its name and kind as the runtime says them, and its place in the file's graph where the
    runtime says that. Runtimes count in whole microseconds.
    """
    profiler = {"onnx": profile_onnx, "tflite": profile_tflite}.get(job["format"])
    if profiler is None:
        return unprofiled("the runtime of " + job["format"] + " is not profiled")
    try:
        runs = profiler(job, rows, step)
    except NoProfile as reason:
        return unprofiled(str(reason))
    groups = [runs[first : first + IN_A_ROW] for first in range(0, len(runs), IN_A_ROW)]
    runs = [min(group, key=lambda each: each[0]) for group in groups]
    sums: dict[tuple[int, str], Fields] = {}
    for _, seen in runs:
        for place, (name, kind, index, seconds) in enumerate(seen):
            new = {"name": name, "kind": kind, "index": index, "seconds": 0.0, "calls": 0}
            op = sums.setdefault((place, name), new)
            op["seconds"] += seconds / len(runs)
            op["calls"] += 1
    return {
        "ops": [sums[key] for key in sorted(sums)],
        "total_seconds": sum(total for total, _ in runs) / len(runs),
        "inferences": len(runs),
        "reason": None,
    }


class NoProfile(Exception):
    """Why the runtime gives no profile."""


def unprofiled(reason: str) -> Fields:
    return {"ops": [], "total_seconds": None, "inferences": 0, "reason": reason}


def in_turn(rows: Rows, step: Fields, run_row: Callable[[Feed], None]) -> None:
    """Rows through ``run_row`` until the time is up."""
    deadline = time.perf_counter() + step["seconds"]
    feeds = [rows.feed([index]) for index in step["rows"]]
    for number in range(PROFILED // IN_A_ROW):
        run_row(feeds[number % len(feeds)])
        if time.perf_counter() > deadline:
            break


def profile_onnx(job: Fields, rows: Rows, step: Fields) -> list[tuple[float, list[Seen]]]:
    """Of each inference its seconds and its operators."""
    import tempfile

    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="edgekit-profile-") as folder:
        options = onnx_options(job)
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(
            job["file"], options, providers=["CPUExecutionProvider"]
        )
        call = onnx_call(session)

        def run_row(feed: Feed) -> None:
            for _ in range(1 + IN_A_ROW):
                call(feed)

        in_turn(rows, step, run_row)
        with open(session.end_profiling(), encoding="utf-8") as stream:
            events = json.load(stream)
    runs: list[tuple[float, list[Seen]]] = []
    seen: list[Seen] = []
    for event in events:
        name, seconds = event["name"], event.get("dur", 0) * 1e-6
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            said = event["args"]
            kind = said["op_name"]
            name = name[: -len("_kernel_time")] or kind + " " + str(said.get("node_index", ""))
            seen.append((name, kind, None, seconds))
        elif name == "model_run":
            runs.append((seconds, seen))
            seen = []
    return [run_ for number, run_ in enumerate(runs) if number % (1 + IN_A_ROW)]


# Versions of ai-edge-litert whose C interface is as it is called below.
LITERT_C = ("2.3.",)


def profile_tflite(job: Fields, rows: Rows, step: Fields) -> list[tuple[float, list[Seen]]]:
    """The same from LiteRT, whose profiler is in its C interface and not in Python."""
    import importlib.metadata

    try:
        version = importlib.metadata.version("ai-edge-litert")
    except importlib.metadata.PackageNotFoundError:
        raise NoProfile("tflite-runtime has no profiler for Python") from None
    if not version.startswith(LITERT_C):
        raise NoProfile("LiteRT is profiled in version 2.3, and this is " + version)
    try:
        model = LiteRt(job)
        in_turn(rows, step, model.run_row)
    except (OSError, AttributeError) as error:  # no such library, no such function in it
        raise NoProfile("LiteRT lacks its C interface: " + str(error)) from None
    if not model.runs:
        raise NoProfile("LiteRT's profiler saw no inference")
    return model.runs


class Layout(ctypes.Structure):
    """LiteRtLayout; the eighth bit of ``rank`` says whether there are strides."""

    _fields_ = [
        ("rank", ctypes.c_uint32),
        ("sizes", ctypes.c_int32 * 8),
        ("strides", ctypes.c_uint32 * 8),
    ]


class TensorType(ctypes.Structure):
    """LiteRtRankedTensorType"""

    _fields_ = [("element", ctypes.c_int), ("layout", Layout)]


class Event(ctypes.Structure):
    """ProfiledEventData; ``index`` is the operator's place in the graph, or in the delegate."""

    _fields_ = [
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start", ctypes.c_uint64),
        ("microseconds", ctypes.c_uint64),
        ("memory", ctypes.c_size_t * 6),
        ("index", ctypes.c_uint64),
        ("graph", ctypes.c_uint64),
        ("source", ctypes.c_int),
    ]


# Kinds of events: others, an operator of the graph, and one inside a delegate.
OTHER, OPERATOR, IN_DELEGATE = 1, 2, 8
ELEMENTS = {
    1: "float32",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float16",
}
CPU, WRITE = 1, 1
Handle = ctypes.c_void_p
Size = ctypes.c_size_t
by = ctypes.byref


class LiteRt:
    """A file compiled with its profiler on, through LiteRT's C interface (litert/c/*.h).

    runs: of each profiled inference its seconds and its operators.
    """

    def __init__(self, job: Fields) -> None:
        import ai_edge_litert

        folder = next(iter(ai_edge_litert.__path__))
        self.library = ctypes.CDLL(os.path.join(folder, "libLiteRt.so"))
        self.runs: list[tuple[float, list[Seen]]] = []
        self.names, self.lengths = job["signature_inputs"], job["lengths"]
        self.environment = self.make("CreateEnvironment", 0, None)
        self.file = self.make("CreateModelFromFile", self.environment, job["file"].encode())
        options = self.make("CreateOptions")
        self.do("SetOptionsHardwareAccelerators", options, CPU)
        self.add(options, b"runtime_options_string", b"enable_profiling = true\n")
        self.add(options, b"xnnpack", b"num_threads = %d\n" % job["threads"])
        self.model = self.make("CreateCompiledModel", self.environment, self.file, options)
        self.profiler = self.make("CompiledModelGetProfiler", self.model)

    def do(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, "LiteRt" + name)(*arguments)
        if status:
            raise NoProfile("LiteRt" + name + " fails with status " + str(status))

    def make(self, name: str, *arguments: Any) -> Handle:
        """What a function writes to its last argument."""
        made = Handle()
        self.do(name, *arguments, by(made))
        return made

    def number(self, name: str, *arguments: Any) -> int:
        found = Size()
        self.do(name, *arguments, by(found))
        return found.value

    def add(self, options: Handle, name: bytes, text: bytes) -> None:
        """Options that LiteRT reads as TOML; it frees the text."""
        libc = ctypes.CDLL(None)
        libc.strdup.restype = Handle
        free = ctypes.cast(libc.free, Handle)
        opaque = self.make("CreateOpaqueOptions", name, Handle(libc.strdup(text)), free)
        self.do("AddOpaqueOptions", options, opaque)

    def run_row(self, feed: Feed) -> None:
        """One row: an inference to warm up, and then those that are profiled."""
        at = Size(self.signature(feed[self.names[0]].shape))
        signature = self.make("GetModelSignature", self.file, at)
        taken = self.inputs(signature, at, feed)
        count = self.number("GetNumSignatureOutputs", signature)
        layouts = (Layout * count)()
        update = ctypes.c_bool(True)
        self.do("GetCompiledModelOutputTensorLayouts", self.model, at, Size(count), layouts, update)
        inputs = [self.filled(at, *each) for each in taken]
        outputs = []
        for number, layout in enumerate(layouts):
            element = self.tensor_type("Output", signature, number).element
            outputs.append(self.buffer("Output", at, number, TensorType(element, layout)))
        given, got = (Handle * len(inputs))(*inputs), (Handle * count)(*outputs)
        arguments = self.model, at, Size(len(inputs)), given, Size(count), got
        self.do("RunCompiledModel", *arguments)
        self.do("ResetProfiler", self.profiler)
        self.do("StartProfiler", self.profiler)
        for _ in range(IN_A_ROW):
            self.do("RunCompiledModel", *arguments)
        self.do("StopProfiler", self.profiler)
        self.read_events()
        for buffer in (*inputs, *outputs):
            self.library.LiteRtDestroyTensorBuffer(buffer)

    def signature(self, shape: tuple[int, ...]) -> int:
        """The one for these sizes, or the only one."""
        for number in range(self.number("GetNumModelSignatures", self.file)):
            signature = self.make("GetModelSignature", self.file, Size(number))
            layout = self.tensor_type("Input", signature, 0).layout
            if not self.lengths or layout.sizes[1] == shape[1]:
                return number
        raise NoProfile("LiteRT knows no signature for " + str(list(shape)))

    def inputs(self, signature: Handle, at: Size, feed: Feed) -> list[tuple[int, int, Array]]:
        """Number, type and values of each input, which is given the values' shape."""
        found = []
        for number in range(self.number("GetNumSignatureInputs", signature)):
            name = ctypes.c_char_p()
            self.do("GetSignatureInputName", signature, Size(number), by(name))
            # Without signatures LiteRT names inputs after tensors; they are in our order then.
            array = feed.get((name.value or b"").decode(), feed[self.names[number]])
            kind = self.tensor_type("Input", signature, number)
            if min(kind.layout.sizes[: kind.layout.rank & 127], default=0) < 0:
                sizes, rank = (ctypes.c_int * array.ndim)(*array.shape), Size(array.ndim)
                place = self.model, at, Size(number)
                self.do("CompiledModelResizeInputTensor", *place, sizes, rank)
            found.append((number, kind.element, array))
        return found

    def tensor_type(self, end: str, signature: Handle, number: int) -> TensorType:
        tensor = self.make(f"GetSignature{end}TensorByIndex", signature, Size(number))
        found = TensorType()
        self.do("GetRankedTensorType", tensor, by(found))
        return found

    def buffer(self, end: str, at: Size, number: int, kind: TensorType) -> Handle:
        needs = self.make(f"GetCompiledModel{end}BufferRequirements", self.model, at, Size(number))
        create = "CreateManagedTensorBufferFromRequirements"
        return self.make(create, self.environment, by(kind), needs)

    def filled(self, at: Size, number: int, element: int, array: Array) -> Handle:
        kind = TensorType(element)
        place = self.model, at, Size(number)
        self.do("GetCompiledModelInputTensorLayout", *place, by(kind.layout))
        buffer = self.buffer("Input", at, number, kind)
        values = np.ascontiguousarray(array, ELEMENTS.get(element))
        size = self.number("GetTensorBufferPackedSize", buffer)
        if size != values.nbytes:
            raise NoProfile(f"LiteRT takes {size} bytes as an input and gets {values.nbytes}")
        address = Handle()
        self.do("LockTensorBuffer", buffer, by(address), WRITE)
        ctypes.memmove(address, values.ctypes.data, values.nbytes)
        self.do("UnlockTensorBuffer", buffer)
        return buffer

    def read_events(self) -> None:
        """Add the profiled inferences to ``runs``; each begins with an event that spans it."""
        count = ctypes.c_int()
        self.do("GetNumProfilerEvents", self.profiler, by(count))
        if not count.value:
            return
        events = (Event * count.value)()
        self.do("GetProfilerEvents", self.profiler, count, events)
        for event in events:
            name, seconds = (event.tag or b"").decode(errors="replace"), event.microseconds * 1e-6
            if event.kind == OTHER and name == "Invoke":
                self.runs.append((seconds, []))
            elif event.kind in (OPERATOR, IN_DELEGATE) and self.runs:
                index = event.index if event.kind == OPERATOR else None
                self.runs[-1][1].append((name, name.split(" (")[0], index, seconds))


def load_onnx(job: Fields, memory: Fields) -> tuple[Call, str]:
    import onnxruntime

    memory["imported"] = resident()
    options = onnx_options(job)
    providers = ["CPUExecutionProvider"]
    cuda = job.get("accelerator") == "cuda"
    if cuda:
        providers.insert(0, "CUDAExecutionProvider")
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries, where pip put them
    started = time.perf_counter()
    exact = any(step["kind"] == "outputs" for step in job["passes"]) and saturating()
    try:
        if exact:
            options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(job["file"], options, providers=providers)
    except Exception:
        # onnxruntime 1.31 cannot where a weight or a zero point is read twice. Products between
        # QuantizeLinear and DequantizeLinear are left unfused then, in float; others may overflow.
        if not exact:
            raise
        options.add_session_config_entry("session.x64quantprecision", "0")
        level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.graph_optimization_level = level
        session = onnxruntime.InferenceSession(job["file"], options, providers=providers)
        memory["saturates"] = True
    memory["load_seconds"] = time.perf_counter() - started
    # Without a word onnxruntime takes the CPU when it cannot have the GPU.
    if cuda and "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("onnxruntime ran on the CPU instead of CUDA; install onnxruntime-gpu")
    memory["loaded"] = resident()
    return onnx_call(session), "onnxruntime " + onnxruntime.__version__


def onnx_options(job: Fields) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def saturating() -> bool:
    """Whether this CPU sums int8 products in 16 bits, where they overflow: x86 without VNNI.

    Answers are then asked for with 8-bit weights read as unsigned, whose kernels do not overflow:
    they are those of Arm and of x86 with VNNI, to the bit. Times are of the kernels as they come.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return {"avx512_vnni", "avx_vnni"}.isdisjoint(cpu_features())


def onnx_call(session: Any) -> Call:
    kinds = {i.name: np.dtype(ONNX_TYPES.get(i.type, "float32")) for i in session.get_inputs()}

    def call(feed: Feed) -> Any:
        return session.run(None, {n: a.astype(kinds[n], copy=False) for n, a in feed.items()})[0]

    return call


ONNX_TYPES = {
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
}


def load_tflite(job: Fields, memory: Fields) -> tuple[Call, str]:
    try:
        import ai_edge_litert.interpreter as runtime

        package = "ai-edge-litert"
    except ImportError:
        import tflite_runtime.interpreter as runtime

        package = "tflite-runtime"
    import importlib.metadata

    version = package + " " + importlib.metadata.version(package)
    memory["imported"] = resident()
    if job.get("accelerator") == "gpu-delegate":
        return gpu_delegate(job, memory), version
    started = time.perf_counter()
    interpreter = runtime.Interpreter(job["file"], num_threads=job["threads"])
    signatures = interpreter.get_signature_list()
    if not signatures:
        return plain_tflite(interpreter, job, memory, started), version
    runners = {}
    for key in signatures:
        runner = interpreter.get_signature_runner(key)
        shapes = {name: d["shape"] for name, d in runner.get_input_details().items()}
        first = shapes[job["signature_inputs"][0]]
        width = int(first[1]) if job["lengths"] else None
        runners[width] = runner
    some = next(iter(runners.values()))
    inputs = some.get_input_details()
    output, ending = next(iter(some.get_output_details().items()))
    memory["load_seconds"] = time.perf_counter() - started
    memory["loaded"] = resident()

    def call(feed: Feed) -> Any:
        width = next(iter(feed.values())).shape[1] if job["lengths"] else None
        ready = {name: quantized(array, inputs[name]) for name, array in feed.items()}
        return dequantized(runners[width](**ready)[output], ending)

    return call, version


def gpu_delegate(job: Fields, memory: Fields) -> Call:
    """The file on LiteRT's GPU accelerator, which leaves to the CPU what it does not take."""
    from ai_edge_litert.compiled_model import CompiledModel, HardwareAccelerator

    started = time.perf_counter()
    with spoken() as said:
        model = CompiledModel.from_file(
            job["file"], HardwareAccelerator.GPU | HardwareAccelerator.CPU
        )
    memory["load_seconds"] = time.perf_counter() - started
    memory["loaded"] = resident()
    memory["coverage"] = {
        "fully_accelerated": model.is_fully_accelerated(),
        "on_cpu": unsupported(said),
    }
    runs = {}
    for key, ends in model.get_signature_list().items():
        run = signature_on_gpu(model, key, ends, job["signature_inputs"])
        first = next(iter(model.get_input_tensor_details(key).values()))
        runs[int(first["shape"][1]) if job["lengths"] else None] = run

    def call(feed: Feed) -> Any:
        width = next(iter(feed.values())).shape[1] if job["lengths"] else None
        return runs[width](feed)

    return call


def signature_on_gpu(model: Any, key: str, ends: Fields, names: list[str]) -> Call:
    inputs = {name: model.create_input_buffer_by_name(key, name) for name in ends["inputs"]}
    outputs = {name: model.create_output_buffer_by_name(key, name) for name in ends["outputs"]}
    details = model.get_input_tensor_details(key)
    output = ends["outputs"][0]
    shape = model.get_output_tensor_details(key)[output]["shape"]
    for name, detail in details.items():
        if detail["dtype"] not in ("float32", "int32"):
            raise ValueError(f"input {name} is {detail['dtype']}; give a float file to a GPU")
    # A file without signatures has names of its own: there the order counts.
    order = names if set(names) == set(inputs) else ends["inputs"]

    def call(feed: Feed) -> Any:
        for name, array in zip(order, feed.values()):
            fixed = details[name]["shape"]
            if array.shape != tuple(fixed):
                raise ValueError(
                    f"input {name} has the fixed shape {fixed} on a GPU and this row {array.shape};"
                    " export buckets of fixed lengths"
                )
            inputs[name].write(array.astype(details[name]["dtype"], copy=False))
        model.run_by_name(key, inputs, outputs)
        return outputs[output].read(int(np.prod(shape)), np.float32).reshape(shape)

    return call


@contextlib.contextmanager
def spoken() -> Iterator[list[str]]:
    """What C++ writes to stderr meanwhile, as lines, once it is over."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as stream:
        os.dup2(stream.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            stream.seek(0)
            lines += stream.read().decode(errors="replace").splitlines()


def unsupported(lines: list[str]) -> list[str]:
    """The operators that the GPU delegate left, with its reasons: from its own list of them."""
    found: set[str] = set()
    listing = False
    for line in lines:
        if "operations are not supported by GPU delegate" in line:
            listing = True
        elif "run on the CPU" in line:
            listing = False
        elif listing and ":" in line:
            name, _, reason = line.partition(":")
            reason = reason.strip().removeprefix(name + ":").strip().rstrip(".")
            found.add(f"{name.strip()} ({reason})" if reason else name.strip())
    return sorted(found)


def plain_tflite(interpreter: Any, job: Fields, memory: Fields, started: float) -> Call:
    """A file without signatures: inputs in the order of the graph, one fixed shape."""
    interpreter.allocate_tensors()
    memory["load_seconds"] = time.perf_counter() - started
    memory["loaded"] = resident()
    details = interpreter.get_input_details()
    output = interpreter.get_output_details()[0]

    def call(feed: Feed) -> Any:
        for detail, name in zip(details, job["signature_inputs"]):
            interpreter.set_tensor(detail["index"], quantized(feed[name], detail))
        interpreter.invoke()
        return dequantized(interpreter.get_tensor(output["index"]), output)

    return call


def quantized(array: Array, detail: Fields) -> Array:
    """A float input on an integer tensor's grid; everything else as it is."""
    scale, zero = detail["quantization"]
    if array.dtype == np.float32 and scale and np.issubdtype(detail["dtype"], np.integer):
        limits = np.iinfo(detail["dtype"])
        array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max)
    return array.astype(detail["dtype"], copy=False)


def dequantized(array: Array, detail: Fields) -> Array:
    """The numbers that an output's integers stand for; floats as they are."""
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * scale if scale else array


def load_torchscript(job: Fields, memory: Fields) -> tuple[Call, str]:
    import torch

    device = "cpu"
    if job.get("accelerator") == "cuda":
        if not torch.cuda.is_available():
            raise RuntimeError("this torch sees no CUDA; install its CUDA build")
        device = "cuda"
    memory["imported"] = resident()
    torch.set_num_threads(job["threads"])
    started = time.perf_counter()
    module = torch.jit.load(job["file"], map_location=device).eval()
    memory["load_seconds"] = time.perf_counter() - started
    memory["loaded"] = resident()

    def call(feed: Feed) -> Any:
        tensors = [torch.from_numpy(a).to(device) for a in feed.values()]
        tensors = [t.long() if t.dtype == torch.int32 else t for t in tensors]
        with torch.inference_mode():
            # On a GPU the copy back waits until all is computed.
            return module(*tensors).float().cpu().numpy()

    return call, "torch " + torch.__version__


RUNTIMES = {"onnx": load_onnx, "tflite": load_tflite, "torchscript": load_torchscript}


def encode(array: Array) -> Fields:
    array = np.ascontiguousarray(array, dtype="<f4")
    return {
        "dtype": "float32",
        "shape": list(array.shape),
        "data": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def resident() -> int | None:
    """Bytes of this process in memory now (kernel's accounting), or None."""
    return status("VmRSS")


def peak() -> int | None:
    """Most bytes that this process ever had in memory (kernel's accounting), or None."""
    found = status("VmHWM")
    if found is None:
        import resource

        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found *= 1 if sys.platform == "darwin" else 1024
    return found


class Memory:
    """The most that was ever sampled of this process's share of memory, in bytes (Linux).

    Proportional: a page that several processes map counts in part. Pages of mapped files, which
    the kernel can drop and read again, are counted apart. ``timeline`` holds every sample as
    [seconds since the first, bytes, when].
    """

    def __init__(self) -> None:
        self.noted: Fields = {"share": None, "mapped": None, "timeline": []}
        self.started = time.perf_counter()

    def sample(self, when: str) -> None:
        share, mapped = status("Pss", "smaps_rollup"), status("Pss_File", "smaps_rollup")
        if share is None:
            return
        self.noted["share"] = max(share, self.noted["share"] or 0)
        self.noted["mapped"] = max(mapped or 0, self.noted["mapped"] or 0)
        self.noted["share_" + when] = share
        self.noted["timeline"].append([time.perf_counter() - self.started, share, when])


def status(key: str, table: str = "status") -> int | None:
    try:
        with open("/proc/self/" + table, encoding="ascii") as stream:
            for line in stream:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def fingerprint(job: Fields, runtime: str) -> Fields:
    """What a measurement depends on besides the file. What cannot be read is None."""
    cpu = next(iter(cpu_lines("model name", "Hardware", "CPU part")), "")
    features = cpu_features()
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "allowed_cores": sorted(allowed),
        "features": [name for name in FEATURES if name in features],
        "governor": first("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "frequency": scaled("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1e3),
        "temperature": scaled("/sys/class/thermal/thermal_zone0/temp", 1e-3),
        "memory": total_memory(),
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "runtime": runtime,
        "threads": job["threads"],
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def cpu_lines(*keys: str) -> list[str]:
    """What the kernel says of its processors under these keys, in its order."""
    fields = (line.partition(":") for line in lines("/proc/cpuinfo"))
    return [value.strip() for key, _, value in fields if key.strip() in keys]


def cpu_features() -> set[str]:
    return {name for line in cpu_lines("flags", "Features") for name in line.split()}


FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)


def lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().splitlines()
    except OSError:
        return []


def first(path: str) -> str | None:
    return next(iter(lines(path)), None)


def scaled(path: str, factor: float) -> float | None:
    """A number of the kernel's in our unit: Hz, degrees Celsius."""
    found = first(path)
    return float(found) * factor if found and found.lstrip("-").isdigit() else None


def total_memory() -> int | None:
    for line in lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
