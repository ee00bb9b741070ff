"""Read an ONNX file: a protobuf of nodes and initializers (onnx.ai/onnx/repo-docs/IR.html)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Tensor
from edgekit.errors import ModelError
from edgekit.inspect import Contents, StoredTensor

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path) -> Contents:
    """Contents of an ONNX file. Raises ModelError when it is damaged or no ONNX."""
    model = load_onnx(path)
    return Contents(
        format="onnx",
        bytes=path.stat().st_size + _bytes_beside(path),
        inputs=model_inputs(model),
        outputs=tuple(_tensor(value) for value in model.graph.output),
        signatures=(),
        ops=dict(Counter(_operations(model)).most_common()),
        tensors=tuple(_stored_tensors(model.graph)),
    )


def load_onnx(path: Path) -> "onnx.ModelProto":
    """Load and check a file, with weights that it keeps in files beside it.

    Raises ModelError when it is truncated, damaged, or names weights outside its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{path} is damaged or no ONNX file ({reason}); export it again") from error
    for tensor in model.graph.initializer:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != _expected_bytes(tensor):
            raise ModelError(
                f"{path} is damaged: {tensor.name} holds {len(tensor.raw_data)} bytes, its shape "
                f"{list(tensor.dims)} needs {_expected_bytes(tensor)}; export it again"
            )
    return model


def model_inputs(model: "onnx.ModelProto") -> tuple[Tensor, ...]:
    """What a caller feeds. IR version 3 listed the initializers among the inputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_tensor(v) for v in model.graph.input if v.name not in constants)


def model_outputs(model: "onnx.ModelProto") -> tuple[Tensor, ...]:
    """What a caller gets."""
    return tuple(_tensor(value) for value in model.graph.output)


def _tensor(value: "onnx.ValueInfoProto") -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in kind.shape.dim
    )
    return Tensor(value.name, _dtype_name(kind.elem_type), shape)


def _operations(model: "onnx.ModelProto") -> Iterator[str]:
    graphs = [model.graph, *model.functions]
    for node in (node for graph in graphs for node in _nodes(graph)):
        if node.op_type != "Constant":
            yield f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _stored_tensors(graph: "onnx.GraphProto") -> Iterator[StoredTensor]:
    for tensor in graph.initializer:
        yield _stored(tensor.name, tensor)
    for sparse in graph.sparse_initializer:
        yield _stored(sparse.values.name, sparse.values)
        yield _stored(f"{sparse.values.name} (indices)", sparse.indices)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from _constant(node)
        for inner in _subgraphs(node):
            yield from _stored_tensors(inner)


def _constant(node: "onnx.NodeProto") -> Iterator[StoredTensor]:
    import onnx

    attribute = node.attribute[0]
    value: Any = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        yield _stored(node.output[0], value)
    elif attribute.name in ("value_float", "value_floats", "value_int", "value_ints"):
        dtype = np.float32 if "float" in attribute.name else np.int64
        array = np.asarray(value, dtype)
        yield StoredTensor(node.output[0], array.dtype.name, array.shape, array.nbytes)


def _stored(name: str, tensor: "onnx.TensorProto") -> StoredTensor:
    return StoredTensor(
        name, _dtype_name(tensor.data_type), tuple(tensor.dims), _expected_bytes(tensor)
    )


def _expected_bytes(tensor: "onnx.TensorProto") -> int:
    import onnx

    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if _dtype_name(tensor.data_type) in ("int4", "uint4", "float4e2m1"):
        return (count + 1) // 2
    return count * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize


def _dtype_name(data_type: int) -> str:
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _nodes(graph: Any) -> Iterator["onnx.NodeProto"]:
    for node in graph.node:
        yield node
        for inner in _subgraphs(node):
            yield from _nodes(inner)


def _subgraphs(node: "onnx.NodeProto") -> Iterator["onnx.GraphProto"]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _bytes_beside(path: Path) -> int:
    """Bytes of the files beside this one that hold its weights."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    places = {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum((path.parent / place).stat().st_size for place in places)
