"""Tiny models calibrated for a static scheme; their files read by code that did not write them."""

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Scheme
from edgekit.model import Model, Quantized
from edgekit.steps.quantize.calibrate import observed_ranges
from edgekit.steps.quantize.points import Traced
from edgekit.steps.quantize.static import fake_outputs, snap, traced
from tests.export.cases import Array, Case, case

INT8 = 9  # of TFLite's tensor types


@dataclass(frozen=True)
class Static:
    """A calibrated model; ``fake``: its answers with every number rounded."""

    case: Case
    model: Model
    found: Traced
    fake: Array

    @property
    def step(self) -> float:
        return list(self.found.points.values())[-1].grid.scale

    def steps(self, outputs: Array) -> float:
        """How many steps of the output's grid the farthest answer is away."""
        ours, theirs = self.case.answers(outputs), self.case.answers(self.fake)
        return float(np.abs(ours - theirs).max() / self.step)


@functools.cache
def static_case(
    family: str, task: str = "text-classification", scheme: Scheme = "int8-static"
) -> Static:
    made = case(family, task)
    model, found = calibrated(made.model, made.rows, scheme)
    return Static(made, model, found, fake_outputs(model, made.rows))


def calibrated(model: Model, rows: Any, scheme: Scheme = "int8-static") -> tuple[Model, Traced]:
    model = replace(model, module=copy.deepcopy(model.module))
    found = traced(model, scheme)
    found.set_ranges(observed_ranges(model, found, rows, "min-max"))
    snap(found)
    model = replace(model, quantized=Quantized(scheme, found.ranges()))
    return model, traced(model)


def constants(path: Path) -> Iterator[tuple[Array, Array | None]]:
    """Every constant of a file, and the scales beside the integers."""
    return _of_onnx(path) if path.suffix == ".onnx" else _of_tflite(path)


def _of_onnx(path: Path) -> Iterator[tuple[Array, Array | None]]:
    import onnx

    graph = onnx.load(path).graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    scales = {n.input[0]: n.input[1] for n in graph.node if n.op_type == "DequantizeLinear"}
    # What a float product reads is widened by a Cast and a Mul.
    scales |= {
        n.input[0]: n.input[1] for n in graph.node if n.op_type == "Mul" and n.input[1] in stored
    }
    # Rows leave a table as integers, and are widened behind that.
    for node in reversed(graph.node):
        if node.input and node.output[0] in scales:
            scales.setdefault(node.input[0], scales[node.output[0]])
    for name, values in stored.items():
        yield values, stored[scales[name]].reshape(-1) if name in scales else None


def _of_tflite(path: Path) -> Iterator[tuple[Array, Array | None]]:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if data is None or tensor.type not in (0, INT8):
                continue
            dtype = np.float32 if tensor.type == 0 else np.int8
            values = np.asarray(data, np.uint8).view(dtype).reshape(list(tensor.shape))
            grid = tensor.quantization
            yield values, None if grid is None or grid.scale is None else np.asarray(grid.scale)


def wide_matrices(path: Path) -> list[tuple[int, ...]]:
    """Shapes of float32 constants that are no vectors."""
    return [
        values.shape
        for values, _ in constants(path)
        if values.dtype == np.float32 and values.size >= 64
        if sum(size > 1 for size in values.shape) > 1
    ]


def holds(path: Path, integers: Array, scales: Array) -> bool:
    """Whether a file has these integers, in whatever layout, on these scales times one number."""
    layouts = [integers, integers.T]
    if integers.ndim == 4:
        layouts += [integers.transpose(0, 2, 3, 1), integers.transpose(1, 2, 3, 0)]
    wanted = {np.ascontiguousarray(layout).tobytes() for layout in layouts}
    for values, found in constants(path):
        if values.dtype != np.int8:
            continue
        content = values.tobytes()
        rows = len(scales) == 1 and len(content) >= 64 and content in integers.tobytes()
        if not rows and content not in wanted:
            continue
        if found is None or len(found) != len(scales):
            continue
        if np.ptp(found.astype(np.float64) / scales) <= 2e-6 * (found / scales).mean():
            return True
    return False
