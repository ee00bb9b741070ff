"""The integer weights of a file: read as bytes, by nobody who wrote them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekit.contents import identify_format

_SUFFIX = ".int8"
_MOVING = ("Gather", "Slice", "Reshape", "Unsqueeze")


@dataclass(frozen=True)
class StoredIntegers:
    """An int8 constant of two dimensions or more, as it lies in the file.

    name: without what a writer puts behind a weight's own. scales: float32, 1-D; ``None`` where
    the file does not say.
    """

    name: str
    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32] | None


def read_integers(path: Path) -> list[StoredIntegers]:
    """Every int8 weight of an ONNX or TFLite file; none of a TorchScript file.

    Raises ModelError as ``read_contents`` does.
    """
    format = identify_format(path)
    if format == "onnx":
        return list(_of_onnx(path))
    return list(_of_tflite(path)) if format == "tflite" else []


def _of_onnx(path: Path) -> Iterator[StoredIntegers]:
    import onnx

    from edgekit.contents.onnx import load_onnx

    graph = load_onnx(path).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    # Rows leave a table before they are widened.
    moved = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type in _MOVING and node.input[0] in stored
    }
    scale_of = {
        moved.get(node.input[0], node.input[0]): node.input[1]
        for node in graph.node
        if node.op_type == "DequantizeLinear"
    }
    for name, tensor in stored.items():
        if tensor.data_type != onnx.TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        stem = name.removesuffix(_SUFFIX)
        scale = stored.get(scale_of.get(name, f"{stem}.scale"))
        scales = None if scale is None else onnx.numpy_helper.to_array(scale).reshape(-1)
        values = onnx.numpy_helper.to_array(tensor)
        yield StoredIntegers(stem.removeprefix("module."), values, scales)


def _of_tflite(path: Path) -> Iterator[StoredIntegers]:
    from edgekit.export.tflite_file import read_program
    from edgekit.export.tflite_graph import type_name

    program = read_program(path.read_bytes(), str(path))
    constants = {
        tensor.name: tensor
        for graph in program.graphs
        for tensor in graph.tensors()
        if tensor.data is not None
    }
    for name, tensor in constants.items():
        if type_name(tensor.type) != "int8" or len(tensor.shape) < 2:
            continue
        fields = tensor.fields.quantization
        scales = None if fields is None or fields.scale is None else np.asarray(fields.scale)
        beside = constants.get(f"{name}.scale")
        if beside is not None:
            scales = beside.values().reshape(-1)
        yield StoredIntegers(name.removesuffix(_SUFFIX), tensor.values(), scales)
