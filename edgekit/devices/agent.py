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
        {"name", "kind": "latency", "rows": [..], "seconds": s, "samples": n, "warmup": n}
            wall time of single rows at their true length, cycling through the rows until the
            seconds or the samples are reached, and every row once

The result: outputs (base64 of little-endian arrays), latency samples in seconds, load and
first-run seconds, memory in bytes at start, with the runtime imported, after load and at the
peak of the latency pass, and the fingerprint of the device. A row's output keeps only its
true tokens when the model answers per token. On failure ``error`` says what happened.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import platform
import sys
import tempfile
import time
from typing import Any, Callable, Iterator

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
    except Exception as error:  # the parent reads the reason from the result, not from a trace
        result["error"] = f"{type(error).__name__}: {error}"
    partial = result_path + ".partial"
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(result, stream)
    os.replace(partial, result_path)
    return 1 if result["error"] else 0


def run(job: Fields, result: Fields) -> None:
    with np.load(job["inputs"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    lengths = arrays.pop("lengths", None)
    memory: Fields = {"start": resident()}
    call, version = RUNTIMES[job["format"]](job, memory)
    result["load_seconds"] = memory.pop("load_seconds")
    if "coverage" in memory:
        result["coverage"] = memory.pop("coverage")
    result["fingerprint"] = fingerprint(job, version)

    rows = Rows(arrays, lengths, job["lengths"], job["signature_inputs"])
    started = time.perf_counter()
    call(rows.feed([0]))
    result["first_run_seconds"] = time.perf_counter() - started
    for step in job["passes"]:
        if step["kind"] == "latency":
            result["passes"][step["name"]] = measure(call, rows, step)
            memory["peak"] = peak()
        else:
            result["passes"][step["name"]] = outputs(call, rows, step)
    memory.setdefault("peak", peak())
    if job.get("accelerator") == "cuda" and job["format"] == "torchscript":
        memory["gpu_peak"] = sys.modules["torch"].cuda.max_memory_allocated()
    result["memory"] = memory


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


def measure(call: Call, rows: Rows, step: Fields) -> Fields:
    feeds = [rows.feed([index]) for index in step["rows"]]
    widths = [rows.width([index]) for index in step["rows"]]
    for feed in feeds[: step["warmup"]]:
        call(feed)
    # Every bucket once, so that none is prepared inside a sample.
    for feed in dict(zip(widths, feeds)).values():
        call(feed)
    clock = time.perf_counter
    samples, order = [], []
    deadline = clock() + step["seconds"]
    position = 0
    while position < len(feeds) or (clock() < deadline and position < step["samples"]):
        feed = feeds[position % len(feeds)]
        started = clock()
        call(feed)
        samples.append(clock() - started)
        order.append(position % len(feeds))
        position += 1
        if clock() > deadline + 4 * step["seconds"]:
            break
    return {
        "samples": samples,
        "rows": [step["rows"][i] for i in order],
        "widths": [widths[i] for i in order],
    }


def load_onnx(job: Fields, memory: Fields) -> tuple[Call, str]:
    import onnxruntime

    memory["imported"] = resident()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    cuda = job.get("accelerator") == "cuda"
    if cuda:
        providers.insert(0, "CUDAExecutionProvider")
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries, where pip put them
    started = time.perf_counter()
    session = onnxruntime.InferenceSession(job["file"], options, providers=providers)
    memory["load_seconds"] = time.perf_counter() - started
    # Without a word onnxruntime takes the CPU when it cannot have the GPU.
    if cuda and "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("onnxruntime ran on the CPU instead of CUDA; install onnxruntime-gpu")
    memory["loaded"] = resident()
    kinds = {i.name: np.dtype(ONNX_TYPES.get(i.type, "float32")) for i in session.get_inputs()}

    def call(feed: Feed) -> Any:
        return session.run(None, {n: a.astype(kinds[n], copy=False) for n, a in feed.items()})[0]

    return call, "onnxruntime " + onnxruntime.__version__


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
    output = next(iter(next(iter(runners.values())).get_output_details()))
    memory["load_seconds"] = time.perf_counter() - started
    memory["loaded"] = resident()

    kinds = {n: d["dtype"] for n, d in next(iter(runners.values())).get_input_details().items()}

    def call(feed: Feed) -> Any:
        width = next(iter(feed.values())).shape[1] if job["lengths"] else None
        ready = {n: a.astype(kinds[n], copy=False) for n, a in feed.items()}
        return runners[width](**ready)[output]

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
    return array.astype(detail["dtype"])


def dequantized(array: Array, detail: Fields) -> Array:
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


def status(key: str) -> int | None:
    try:
        with open("/proc/self/status", encoding="ascii") as stream:
            for line in stream:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def fingerprint(job: Fields, runtime: str) -> Fields:
    cpu, features = "", list[str]()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                key, _, value = line.partition(":")
                key = key.strip()
                if key == "model name" and not cpu:
                    cpu = value.strip()
                elif key in ("flags", "Features") and not features:
                    known = set(value.split())
                    features = [f for f in FEATURES if f in known]
    except OSError:
        pass
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "features": features,
        "runtime": runtime,
        "threads": job["threads"],
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve")

if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
