"""Write ONNX: one file for every batch size and length, for ONNX Runtime 1.17 and later.

Rules of the file:

1. Opset 20 and IR version 9: what ONNX Runtime 1.17 reads (onnxruntime.ai, "Compatibility").
2. Weights are inside; a constant is stored once, however many names it had.
3. No shapes of intermediate values. torch leaves wrong ones behind where it transposes a weight;
   and where ONNX Runtime 1.31 knows the shapes it replaces a norm and the addition before it by
   one kernel that takes longer than the two (MiniLM int8: 1.47 against 1.21 ms).
4. No documentation strings and no metadata: torch puts stack traces there.
5. The same model gives the same bytes.
6. Weights that are mostly zero are packed (``onnx_sparse``).
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import STATIC, Artifact, Scheme
from edgekit.contents.onnx import (
    all_nodes,
    load_onnx,
    model_inputs,
    model_outputs,
    subgraphs,
)
from edgekit.errors import EdgekitError, ExportError, ModelError
from edgekit.model import Model, export_forward
from edgekit.units import format_bytes

if TYPE_CHECKING:
    import onnx
    from torch import nn

_IR_VERSION = 9
_LARGEST = 2**31 - 1  # bytes of a protobuf
_FILE = "model.onnx"
_INTEGER_MARKS = ("Quantize", "Integer", "QLinear", "QAttention", "QGemm", "NBits")


def export_onnx(
    model: Model, out: Path, *, scheme: Scheme, beside: Path | None = None, bits: int = 8
) -> Artifact:
    """Write ``out/model.onnx``.

    Inputs by the model's names: ids int64 [batch, length], pictures float32 [batch, C, H, W].
    bits: of int8 weights that meet int8 activations, 7 for CPUs that saturate (``Target``).
    Output float32 ``logits`` or ``embedding``, whatever the scheme. Raises ExportError when torch
    cannot export the module, or the file would exceed 2 GB.
    """
    if scheme in STATIC:
        return _write(_packed(_static(model, beside)), out / _FILE, scheme)
    forward = export_forward(model)
    proto = _trace(model, forward)
    _tidy(proto)
    _name_weights(proto.graph, forward)
    if beside is not None:
        _write(proto, beside / _FILE, "fp32")
    return _write(_packed(_apply(proto, scheme, bits)), out / _FILE, scheme)


def _packed(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Rule 6."""
    from edgekit.export.onnx_sparse import pack_constants

    pack_constants(proto)
    return proto


def _static(model: Model, beside: Path | None) -> "onnx.ModelProto":
    from edgekit.export.onnx_static import quantize_static, without_marks
    from edgekit.steps.quantize.static import grids, marked, tables

    found = marked(model, "int8-static", "onnx")
    proto = _trace(model, found.module)
    _fold_transposes(proto.graph)
    _tidy(proto)
    _name_weights(proto.graph, found.module)
    if beside is not None:
        _write(without_marks(proto), beside / _FILE, "fp32")
    quantize_static(proto, grids(found), tables(found))
    _store_once(proto.graph)  # scales and integers of tied layers are the same
    if model.quantized is not None and model.quantized.float_layers:
        from edgekit.export.onnx_weights import quantize_weights

        quantize_weights(proto, "int8-weights")
    return proto


def quantize_onnx_file(source: Path, out: Path, *, scheme: Scheme, bits: int = 8) -> Artifact:
    """Write a float ONNX file, from whatever exporter, as ``out/model.onnx`` in a scheme.

    Raises ModelError when the source is damaged, is not float32 throughout, or has no weights
    that the scheme changes.
    """
    proto = load_onnx(source)
    _tidy(proto)
    if scheme != "fp32":
        _check_float32(proto, source)
        before = proto.ByteSize()
        proto = _apply(proto, scheme, bits)
        if proto.ByteSize() >= before:
            raise ModelError(
                f"{source} holds no weights that {scheme} makes smaller; ship it as is"
            )
    return _write(proto, out / _FILE, scheme)


def _trace(model: Model, forward: "nn.Module") -> "onnx.ModelProto":
    import onnx
    import torch

    from edgekit import __version__
    from edgekit.export.onnx_convert import convert, convert_module
    from edgekit.export.programs import converted, program_of
    from edgekit.export.tracing import (
        example_inputs,
        output_name,
        quiet_tracing,
        root_cause,
    )

    with quiet_tracing():
        example = example_inputs(model, forward)
        varying = {axis: torch.export.Dim.DYNAMIC for axis, _ in enumerate(example.dimensions)}
        shapes = tuple(varying for _ in example.tensors)
        try:
            try:
                program = program_of(forward, example.tensors, shapes)
            except Exception:  # torch.onnx has other ways to trace (an LSTM needs them)
                proto = convert_module(forward, example.tensors, shapes)
            else:
                path = converted(
                    "onnx", program, _FILE, lambda path: _write(convert(program), path, "fp32")
                )
                proto = onnx.load(path)
        except (EdgekitError, OSError):
            raise
        except Exception as error:  # the module's own code runs here, and may raise anything
            raise ExportError(
                f"torch cannot write this model as ONNX ({root_cause(error)}); "
                "try --format torchscript"
            ) from error
    proto.ir_version = _IR_VERSION
    proto.producer_name, proto.producer_version = "edgekit", __version__
    _name_ends(proto.graph, (*model.inputs, output_name(model)))
    _name_dimensions(proto.graph, example.dimensions)
    return proto


def _name_ends(graph: "onnx.GraphProto", names: tuple[str, ...]) -> None:
    """Name the inputs and the output. (torch would, but lets two values have one name.)"""
    ends = (*graph.input, *graph.output)
    wanted = {value.name: name for value, name in zip(ends, names, strict=True)}
    new = {name: f"{name}.inner" for name in names} | wanted
    for value in ends:
        value.name = new[value.name]
    for node in all_nodes(graph):
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]


def _name_dimensions(graph: "onnx.GraphProto", names: tuple[str, ...]) -> None:
    """Call the symbols that torch made up by our names, in inputs and outputs."""
    symbols = {}
    for value in graph.input:
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            symbols[dim.dim_param] = name
            dim.dim_param = name
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_param = symbols[dim.dim_param]


def _tidy(model: "onnx.ModelProto") -> None:
    """Rules 2 to 4."""
    graph = model.graph
    del graph.value_info[:]
    del model.metadata_props[:]
    parts = (graph, *graph.input, *graph.output, *graph.initializer, *graph.node)
    for part in (model, *parts, *model.functions, *(n for f in model.functions for n in f.node)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    _store_once(graph)
    # IR version 3 lists constants among the inputs as well.
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def _store_once(graph: "onnx.GraphProto") -> None:
    """Keep one of the initializers that hold the same."""
    kept: dict[tuple[Any, ...], str] = {}
    names = {}
    for tensor in graph.initializer:
        content = tensor.raw_data or tensor.SerializeToString()
        key = tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest()
        names[tensor.name] = kept.setdefault(key, tensor.name)
    initializers = [tensor for tensor in graph.initializer if names[tensor.name] == tensor.name]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
    _rename_uses(graph, names)


def _fold_transposes(graph: "onnx.GraphProto") -> None:
    """A transposed weight is a weight. torch folds those of one layer, not of several."""
    import numpy as np
    import onnx

    held = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        if node.op_type != "Transpose" or node.input[0] not in held:
            nodes.append(node)
            continue
        order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
        turned = onnx.numpy_helper.to_array(held[node.input[0]]).transpose(order)
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.ascontiguousarray(turned), node.output[0])
        )
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in all_nodes(graph) for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _name_weights(graph: "onnx.GraphProto", forward: "nn.Module") -> None:
    """Call the matrices that torch transposed (``val_44``) as the model calls them."""
    taken = {tensor.name for tensor in graph.initializer}
    known = {
        hashlib.sha256(parameter.detach().numpy().T.tobytes()).digest(): name
        for name, parameter in forward.named_parameters()
        if parameter.ndim == 2 and name not in taken
    }
    names = {}
    for tensor in graph.initializer:
        name = known.pop(hashlib.sha256(tensor.raw_data).digest(), tensor.name)
        names[tensor.name] = tensor.name = name
    _rename_uses(graph, names)


def _rename_uses(graph: "onnx.GraphProto", names: dict[str, str]) -> None:
    for node in all_nodes(graph):
        node.input[:] = [names.get(name, name) for name in node.input]


def _check_float32(model: "onnx.ModelProto", source: Path) -> None:
    """Raise ModelError when a file is quantized already."""
    import onnx

    mend = "give the float32 file that it was made of"
    for node in all_nodes(model.graph):
        if any(mark in node.op_type for mark in _INTEGER_MARKS):
            raise ModelError(f"{source} is quantized already: it has {node.op_type}; {mend}")
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16):
            raise ModelError(f"{source} is in half precision: see {tensor.name}; {mend}")


def _apply(model: "onnx.ModelProto", scheme: Scheme, bits: int) -> "onnx.ModelProto":
    if scheme == "fp16":
        return _halve(model)
    if scheme != "fp32":
        from edgekit.export.onnx_weights import quantize_weights

        quantize_weights(model, scheme, bits)
    return model


def _halve(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Weights and arithmetic in float16; inputs and outputs stay as they are.

    Layer norms still sum in float32 (their ``stash_type``), and so do the softmax kernels of GPUs.
    """
    import warnings

    from onnxruntime.transformers.float16 import convert_float_to_float16

    with warnings.catch_warnings():
        # It warns of constants near zero, such as the smallest length of an embedding.
        warnings.simplefilter("ignore")
        half: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    del half.graph.value_info[:]
    _sort(half.graph)
    return half


def _sort(graph: "onnx.GraphProto") -> None:
    """Every node behind those that it reads from: the conversion puts its casts at the end.

    Still so in onnxruntime 1.31, which runs such files although ONNX forbids them.
    """
    missing = {name for node in graph.node for name in node.output}
    waiting = list(graph.node)
    del graph.node[:]
    while waiting:
        behind = []
        for node in waiting:
            inside = (each for inner in subgraphs(node) for each in all_nodes(inner))
            if missing.isdisjoint(name for each in (node, *inside) for name in each.input):
                missing.difference_update(node.output)
                graph.node.append(node)
            else:
                behind.append(node)
        waiting = behind


def _write(model: "onnx.ModelProto", path: Path, scheme: Scheme) -> Artifact:
    size = model.ByteSize()
    if size > _LARGEST:
        raise ExportError(f"the model takes {format_bytes(size)} and an ONNX file ends at 2.147 GB")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return Artifact(path, "onnx", scheme, model_inputs(model), model_outputs(model))
