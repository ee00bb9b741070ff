"""Write ONNX: one file for every batch size and length, for ONNX Runtime 1.17 and later.

Rules of the file:

1. Opset 20 and IR version 9: what ONNX Runtime 1.17 reads (onnxruntime.ai, "Compatibility").
2. Weights are inside; a constant is stored once, however many names it had.
3. No shapes of intermediate values. torch leaves wrong ones behind where it transposes a weight;
   and where ONNX Runtime 1.31 knows the shapes it replaces a norm and the addition before it by
   one kernel that takes longer than the two (MiniLM int8: 1.47 against 1.21 ms).
4. No documentation strings and no metadata: torch puts stack traces there.
5. The same model gives the same bytes.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, Scheme
from edgekit.errors import ExportError, ModelError
from edgekit.inspect.onnx import load_onnx, model_inputs, model_outputs
from edgekit.model import Model, export_forward

if TYPE_CHECKING:
    import onnx
    from torch import nn

_OPSET = 20
_IR_VERSION = 9
_LARGEST = 2**31 - 1  # bytes of a protobuf
_FILE = "model.onnx"
_INTEGER_MARKS = ("Quantize", "Integer", "QLinear", "QAttention", "QGemm", "NBits")


def export_onnx(model: Model, out: Path, *, scheme: Scheme) -> Artifact:
    """Write ``out/model.onnx``.

    Inputs by the model's names: ids int64 [batch, length], pictures float32 [batch, C, H, W].
    Output float32 ``logits`` or ``embedding``, whatever the scheme. Raises ExportError when torch
    cannot export the module, or the file would exceed 2 GB.
    """
    forward = export_forward(model)
    proto = _trace(model, forward)
    _name_weights(proto, forward)
    return _write(_apply(proto, scheme), out / _FILE, scheme)


def quantize_onnx_file(source: Path, out: Path, *, scheme: Scheme) -> Artifact:
    """Write a float ONNX file, from whatever exporter, as ``out/model.onnx`` in a scheme.

    Raises ModelError when the source is damaged, is not float32 throughout, or has no weights
    that the scheme changes.
    """
    proto = load_onnx(source)
    if scheme != "fp32":
        _check_float32(proto, source)
        before = proto.graph.ByteSize()
        proto = _apply(proto, scheme)
        if proto.graph.ByteSize() >= before:
            raise ModelError(f"{source} holds no weights that {scheme} makes smaller; ship it as is")
    return _write(proto, out / _FILE, scheme)


def _trace(model: Model, forward: "nn.Module") -> "onnx.ModelProto":
    import torch

    from edgekit.export.tracing import example_inputs, output_name, quiet_tracing

    with quiet_tracing():
        example = example_inputs(model, forward)
        dimension = torch.export.Dim.DYNAMIC
        dynamic = {axis: dimension for axis, _ in enumerate(example.dimensions)}
        try:
            program = torch.onnx.export(
                forward,
                example.tensors,
                dynamo=True,
                dynamic_shapes=tuple(dynamic for _ in example.tensors),
                input_names=list(model.inputs),
                output_names=[output_name(model)],
                opset_version=_OPSET,
                verbose=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            reason = _last_line(error)
            raise ExportError(f"torch cannot write this model as ONNX: {reason}") from error
        assert program is not None
        proto: onnx.ModelProto = program.model_proto
    proto.ir_version = _IR_VERSION
    _name_dimensions(proto.graph, example.dimensions)
    return proto


def _name_dimensions(graph: "onnx.GraphProto", names: tuple[str, ...]) -> None:
    """Call the symbols that torch made up by our names, in inputs and outputs."""
    symbols = {}
    for value in graph.input:
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            symbols[dim.dim_param] = name
            dim.dim_param = name
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbols.get(dim.dim_param, dim.dim_param)


def _name_weights(proto: "onnx.ModelProto", forward: "nn.Module") -> None:
    """Give the matrices that torch transposed (``val_44``) the names that they have in the model."""
    named = {
        _digest(tensor.detach().T.contiguous().numpy()): name
        for name, tensor in forward.named_parameters()
        if tensor.ndim == 2
    }
    taken = {tensor.name for tensor in proto.graph.initializer}
    names = {}
    for tensor in proto.graph.initializer:
        name = named.get(hashlib.sha256(tensor.raw_data).hexdigest())
        if len(tensor.dims) == 2 and name is not None and name not in taken:
            names[tensor.name] = tensor.name = name
    ...


def _apply(proto: "onnx.ModelProto", scheme: Scheme) -> "onnx.ModelProto":
    if scheme == "int8-dynamic":
        from edgekit.export.onnx_int8 import quantize_weights

        quantize_weights(proto)
    elif scheme == "fp16":
        return _halve(proto)
    return proto
