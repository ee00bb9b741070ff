"""The values inside a model file as it runs. Run in a process of its own:

    python tensors.py JOB.json VALUES.npz

The job has ``file``, ``format``, ``inputs`` (an .npz with ``ROW/NAME``), ``rows`` and ``names``:
the values to keep. ``VALUES.npz`` has ``ROW/NUMBER`` by the place of a name in that list. The file
runs as it is written: no operators fused, no delegate. A file that makes its runtime crash takes
only this process with it.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_MOST = 2**29  # bytes of values that are kept, of all rows together

Feed = Mapping[str, Any]
Run = Callable[[Feed], dict[str, Any]]


def main(job_path: str, result: str) -> None:
    with open(job_path, encoding="utf-8") as stream:  # noqa: PTH123
        job = json.load(stream)
    run = {"onnx": onnx_values, "tflite": tflite_values}[job["format"]](job)
    kept: dict[str, Any] = {}
    left = _MOST
    with np.load(job["inputs"], allow_pickle=False) as inputs:
        for row in range(job["rows"]):
            names = [key for key in inputs.files if key.startswith(f"{row}/")]
            found = run({key.partition("/")[2]: inputs[key] for key in names})
            for number, name in enumerate(job["names"]):
                value = found.get(name)
                if value is not None and value.nbytes <= left:
                    kept[f"{row}/{number}"] = value
                    left -= value.nbytes
    np.savez(result, **kept)


def onnx_values(job: Mapping[str, Any]) -> Run:
    """Every value becomes an output of a copy that is never written."""
    import onnx
    import onnxruntime

    model = onnx.load(job["file"])
    known = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output if name}
    wanted = [name for name in job["names"] if name in made | known]
    for name in wanted:
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float16)": "float16"}
    types = {entry.name: kinds.get(entry.type) for entry in session.get_inputs()}

    def run(feed: Feed) -> dict[str, Any]:
        ready = {n: a.astype(types[n]) if types[n] else a for n, a in feed.items() if n in types}
        values = session.run(wanted, ready)
        return {n: np.asarray(v) for n, v in zip(wanted, values) if isinstance(v, np.ndarray)}

    return run


def tflite_values(job: Mapping[str, Any]) -> Run:
    """The interpreter keeps every tensor, and says the scales of those that are integers."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        job["file"],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    ends = {detail["name"]: detail for detail in interpreter.get_input_details()}
    for key in list(interpreter.get_signature_list())[:1]:
        ends = interpreter.get_signature_runner(key).get_input_details()

    def run(feed: Feed) -> dict[str, Any]:
        for name, detail in ends.items():
            interpreter.resize_tensor_input(detail["index"], feed[name].shape)
        interpreter.allocate_tensors()
        for name, detail in ends.items():
            interpreter.set_tensor(detail["index"], _stored(feed[name], detail))
        interpreter.invoke()
        values = {}
        wanted = set(job["names"])
        for detail in interpreter.get_tensor_details():
            if detail["name"] in wanted:
                try:
                    values[detail["name"]] = _meant(interpreter.get_tensor(detail["index"]), detail)
                except ValueError:  # not allocated
                    continue
        return values

    return run


def _stored(array: Any, detail: Mapping[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    if scale and array.dtype.kind == "f" and np.issubdtype(detail["dtype"], np.integer):
        limits = np.iinfo(detail["dtype"])
        array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max)
    return array.astype(detail["dtype"])


def _meant(array: Any, detail: Mapping[str, Any]) -> Any:
    scale, zero = detail["quantization"]
    return (array.astype(np.float32) - zero) * np.float32(scale) if scale else array


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
