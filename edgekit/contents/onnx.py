"""Read an ONNX file: a protobuf of nodes and initializers (onnx.ai/onnx/repo-docs/IR.html)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import Tensor
from edgekit.contents import Contents, StoredTensor
from edgekit.errors import ModelError

if TYPE_CHECKING:
    import onnx


def read_onnx(path: Path) -> Contents:
    """Contents of an ONNX file. Raises ModelError when it is damaged or no ONNX."""
    model = parse_onnx(path)
    beside = sum(file.stat().st_size for file in files_beside(model, path))
    return Contents(
        format="onnx",
        bytes=path.stat().st_size + beside,
        inputs=model_inputs(model),
        outputs=model_outputs(model),
        signatures=(),
        ops=dict(Counter(_operations(model)).most_common()),
        tensors=tuple(_stored_tensors(model.graph, packed_matrices(model.graph))),
    )


def load_onnx(path: Path) -> "onnx.ModelProto":
    """A file with all its weights, wherever it keeps them, and those that are packed expanded.

    Raises ModelError as ``read_onnx``.
    """
    import onnx

    from edgekit.export.onnx_sparse import expand_constants

    model = parse_onnx(path)
    if files_beside(model, path):
        onnx.load_external_data_for_model(model, str(path.parent))
    expand_constants(model)
    return model


def model_inputs(model: "onnx.ModelProto") -> tuple[Tensor, ...]:
    """What a caller feeds. IR version 3 listed the initializers among the inputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return tuple(_tensor(v) for v in model.graph.input if v.name not in constants)


def model_outputs(model: "onnx.ModelProto") -> tuple[Tensor, ...]:
    """What a caller gets."""
    return tuple(_tensor(value) for value in model.graph.output)


def all_nodes(graph: Any) -> Iterator["onnx.NodeProto"]:
    """Nodes of a graph (or function) and of the graphs inside them."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def subgraphs(node: "onnx.NodeProto") -> Iterator["onnx.GraphProto"]:
    """The graphs inside a node: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def parse_onnx(path: Path) -> "onnx.ModelProto":
    """A file's structure, checked; weights that it keeps in files beside it stay there.

    Raises ModelError when it is damaged, or names files that are not in its folder.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(str(path))  # by path: it looks for the files beside it
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{path} is damaged or no ONNX file ({reason}); export it again") from None
    for tensor in model.graph.initializer:
        needed = _bytes_of(tensor)
        if tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
            raise ModelError(
                f"{path} is damaged: {tensor.name} holds {len(tensor.raw_data)} bytes and its "
                f"shape {list(tensor.dims)} needs {needed}; export it again"
            )
    return model


def files_beside(model: "onnx.ModelProto", path: Path) -> list[Path]:
    """The files that hold the weights of this one; the checker has seen that they are there."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    places = {entry.value for entry in entries if entry.key == "location"}
    return [path.parent / place for place in sorted(places)]


def _tensor(value: "onnx.ValueInfoProto") -> Tensor:
    kind = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in kind.shape.dim
    )
    return Tensor(value.name, dtype_name(kind.elem_type), shape)


def _operations(model: "onnx.ModelProto") -> Iterator[str]:
    graphs = [model.graph, *model.functions]
    for node in (node for graph in graphs for node in all_nodes(graph)):
        if node.op_type != "Constant":
            yield f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def packed_matrices(graph: "onnx.GraphProto") -> dict[str, tuple[str, tuple[int, int]]]:
    """The matrices that MatMulNBits keeps packed in bytes: dtype and shape [outputs, inputs]."""
    import onnx

    found = {}
    for node in all_nodes(graph):
        options = {e.name: e.i for e in node.attribute if e.type == onnx.AttributeProto.INT}
        if node.op_type == "MatMulNBits" and {"N", "K"} <= options.keys() and len(node.input) > 1:
            dtype = f"int{options.get('bits', 4)}"
            found[node.input[1]] = dtype, (options["N"], options["K"])
    return found


def _stored_tensors(
    graph: "onnx.GraphProto", packed: dict[str, tuple[str, tuple[int, int]]]
) -> Iterator[StoredTensor]:
    for tensor in graph.initializer:
        if tensor.name in packed:
            yield StoredTensor(tensor.name, *packed[tensor.name], _bytes_of(tensor))
        else:
            yield _stored(tensor.name, tensor)
    for sparse in graph.sparse_initializer:
        yield _stored(sparse.values.name, sparse.values)
        yield _stored(f"{sparse.values.name} (indices)", sparse.indices)
    for node in graph.node:
        if node.op_type == "Constant":
            yield from _constant(node)
        for inner in subgraphs(node):
            yield from _stored_tensors(inner, packed)


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
    return StoredTensor(name, dtype_name(tensor.data_type), tuple(tensor.dims), _bytes_of(tensor))


def _bytes_of(tensor: "onnx.TensorProto") -> int:
    import onnx

    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    count = int(np.prod(tensor.dims, dtype=np.int64))
    if dtype_name(tensor.data_type) in ("int4", "uint4", "float4e2m1"):
        return (count + 1) // 2
    return count * np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize


def dtype_name(data_type: int) -> str:
    import onnx

    name: str = onnx.TensorProto.DataType.Name(data_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
