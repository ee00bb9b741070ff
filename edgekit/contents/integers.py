"""The integer weights of a file: read as bytes, by nobody who wrote them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.contents import identify_format

if TYPE_CHECKING:
    import onnx

_SUFFIX = re.compile(r"\.int(8|[42](\.transposed)?)$")
_MOVING = ("Gather", "Slice", "Reshape", "Unsqueeze")
_PACKED = {"int4": 4, "int2": 2}  # types of TFLite


@dataclass(frozen=True)
class StoredIntegers:
    """A constant of 8, 4 or 2 bits and of two dimensions or more, as it lies in the file.

    name: without what a writer puts behind a weight's own. values: a number each, however many
    a byte holds. scales: float32, 1-D, of blocks those of a row one after the other; ``None``
    where the file does not say.
    """

    name: str
    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32] | None

    def in_halves(self) -> "StoredIntegers":
        """Rows [..., D / 2] of int8 that hold two numbers of 4 bits each, as rows [..., D].

        The numbers of the first half of a row are what is left of the second's sixteens.
        """
        wide = self.values.astype(np.int16)
        second = (wide + 8) // 16
        rows = np.concatenate([wide - 16 * second, second], axis=-1).astype(np.int8)
        return replace(self, values=rows)


def read_integers(path: Path) -> list[StoredIntegers]:
    """Every integer weight of an ONNX or TFLite file; none of a TorchScript file.

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
        stem = _SUFFIX.sub("", name)
        scale = stored.get(scale_of.get(name, f"{stem}.scale"))
        scales = None if scale is None else onnx.numpy_helper.to_array(scale).reshape(-1)
        values = onnx.numpy_helper.to_array(tensor)
        yield StoredIntegers(stem.removeprefix("module."), values, scales)
    yield from _blocks_of_onnx(graph, stored)


def _blocks_of_onnx(
    graph: "onnx.GraphProto", stored: "dict[str, onnx.TensorProto]"
) -> Iterator[StoredIntegers]:
    """The weights of MatMulNBits without zero points, which then are in the middle."""
    import onnx

    matrices = {
        node.input[1]: node
        for node in graph.node
        if node.op_type == "MatMulNBits" and len(node.input) == 3 and node.input[1] in stored
    }
    for name, node in matrices.items():
        options = {each.name: each.i for each in node.attribute}
        rows, columns, bits = (options[key] for key in ("N", "K", "bits"))
        numbers = _taken_apart(onnx.numpy_helper.to_array(stored[name]), bits)
        values = numbers.reshape(rows, -1)[:, :columns] - 2 ** (bits - 1)
        scales = onnx.numpy_helper.to_array(stored[node.input[2]]).reshape(-1)
        stem = _SUFFIX.sub("", name).removeprefix("module.")
        yield StoredIntegers(stem, values.astype(np.int8), scales)


def _taken_apart(packed: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int16]:
    """The numbers in bytes, 1-D, the first in the lowest bits."""
    numbers = packed.view(np.uint8).reshape(-1, 1) >> np.arange(0, 8, bits, dtype=np.uint8)
    apart: npt.NDArray[np.int16] = (numbers & (2**bits - 1)).astype(np.int16).reshape(-1)
    return apart


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
        kind = type_name(tensor.type)
        if kind not in ("int8", *_PACKED) or len(tensor.shape) < 2:
            continue
        fields = tensor.fields.quantization
        scales = None if fields is None or fields.scale is None else np.asarray(fields.scale)
        beside = constants.get(f"{name}.scale")
        if beside is not None:
            scales = beside.values().reshape(-1)
        if kind in _PACKED:
            assert tensor.data is not None
            bits = _PACKED[kind]
            numbers = _taken_apart(tensor.data, bits)[: np.prod(tensor.shape)]
            signed = np.where(numbers < 2 ** (bits - 1), numbers, numbers - 2**bits)
            values = signed.astype(np.int8).reshape(tensor.shape)
        else:
            values = tensor.values()
        yield StoredIntegers(_SUFFIX.sub("", name), values, scales)
