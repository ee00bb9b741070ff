"""Write TorchScript: traced, frozen, one file for every batch size and length.

TorchScript is legacy (deprecated since torch 2.10); it is here for programs that embed libtorch.
Rules of the file:

1. A plain zip that ``torch.jit.load`` reads without Python code; no pickled modules.
2. No debug records (they hold the paths of our sources), no class names, no timestamps.
3. No device: what the graph makes anew it makes where its input is, so that a file written
   here loads with ``map_location="cuda"``.
4. ``extra/edgekit.json`` in the archive names the inputs and outputs with dtypes and shapes.
5. The same model gives the same bytes.
6. A weight that several layers share is stored once.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.artifact import Artifact, Scheme, Tensor, cannot_hold
from edgekit.contents.torchscript import SIGNATURE
from edgekit.errors import ExportError
from edgekit.export.tracing import (
    Example,
    example_inputs,
    output_name,
    quiet_tracing,
    root_cause,
)
from edgekit.model import Model, export_forward

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch._C import Graph

_FILE = "model.pt"
_DEBUG = ".debug_pkl"
# Records that torch's writer adds by itself.
_VERSION = (".data/version", "version")  # the newer place, and the one for old versions
_OWN_RECORDS = (*_VERSION, ".data/serialization_id", "byteorder")


def export_torchscript(model: Model, out: Path, *, scheme: Scheme) -> Artifact:
    """Write ``out/model.pt``.

    Inputs in the model's order: ids int64 [batch, length], pictures float32 [batch, C, H, W].
    Output: one float32 tensor, whatever the scheme. fp16 is for GPUs: load it there. Raises
    ExportError when TorchScript cannot hold the scheme, when torch cannot trace the module, or
    when the trace holds for its example only.
    """
    import torch

    refused = cannot_hold("torchscript", scheme)
    if refused is not None:
        raise ExportError(refused)
    forward = export_forward(model)
    with quiet_tracing(), torch.inference_mode(False), torch.no_grad():
        example = example_inputs(model, forward)
        traced = _trace(_halved(forward) if scheme == "fp16" else forward, example)
        inputs, outputs = _signature(model, example, traced(*example.tensors))
        graph = traced.graph.copy()
        graph.eraseInput(0)  # the module itself: a frozen graph holds all that it needs
        for value, name in zip(graph.inputs(), model.inputs, strict=True):
            value.setDebugName(name)
        _follow_device(graph)
        _store_once(graph)
        if scheme == "int8-dynamic":
            from edgekit.export.torchscript_int8 import quantize_weights

            quantize_weights(graph)
        function = torch._C._create_function_from_graph("forward", graph)
        path = out / _FILE
        out.mkdir(parents=True, exist_ok=True)
        described = {"inputs": list(map(vars, inputs)), "outputs": list(map(vars, outputs))}
        record = {SIGNATURE.removeprefix("extra/"): json.dumps(described).encode()}
        _write(function.save_to_buffer(_extra_files=record), path)
    return Artifact(path, "torchscript", scheme, inputs, outputs)


def _trace(forward: "nn.Module", example: Example) -> "torch.jit.ScriptModule":
    """Trace and freeze; check that other sizes give what the module gives."""
    import torch

    try:
        traced: torch.jit.ScriptModule = torch.jit.freeze(
            torch.jit.trace(forward, example.tensors, check_trace=False)
        )
    except Exception as error:  # the module's own code runs here, and may raise anything
        raise ExportError(
            f"torch cannot trace this model ({root_cause(error)}); try --format onnx"
        ) from error
    other = [tensor[:1] if "batch" in example.dimensions else tensor for tensor in example.tensors]
    if "length" in example.dimensions:
        other = [tensor[:, :5] for tensor in other]
    if not torch.allclose(traced(*other), forward(*other), rtol=1e-2, atol=1e-3):
        raise ExportError(
            "the traced model is wrong for other sizes than its example's: its code depends on "
            "them; take sizes from tensors' shapes, or choose --format onnx"
        )
    return traced


def _halved(forward: "nn.Module") -> "nn.Module":
    """A copy in float16 that takes and gives float32."""
    import copy

    from torch import Tensor, nn

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = copy.deepcopy(forward).half()

        def forward(self, *inputs: Tensor) -> Tensor:
            halves = (each.half() if each.is_floating_point() else each for each in inputs)
            result: Tensor = self.inner(*halves)
            return result.float()

    return Halved().eval()


def _follow_device(graph: "Graph") -> None:
    """Rule 3: in place of the device that tracing wrote down, the first input's."""
    for node in list(graph.nodes()):
        if node.kind() == "prim::Constant" and node.output().type().kind() == "DeviceObjType":
            device = graph.create("prim::device", [next(graph.inputs())], 1)
            device.insertBefore(node).output().setType(node.output().type())
            node.output().replaceAllUsesWith(device.output())
            node.destroy()


def _store_once(graph: "Graph") -> None:
    """Rule 6: freezing makes a constant of each use of a weight, and torch stores each."""
    import torch

    kept: dict[tuple[Any, ...], Any] = {}
    for node in list(graph.nodes()):
        tensor: Any = node.output().toIValue() if node.kind() == "prim::Constant" else None
        if isinstance(tensor, torch.Tensor):
            key = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
            first = kept.setdefault(key, node)
            if first is not node:
                node.output().replaceAllUsesWith(first.output())
                node.destroy()


def _signature(
    model: Model, example: Example, answer: "torch.Tensor"
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs as an artifact lists them."""
    names = example.dimensions
    inputs = tuple(
        _described(name, tensor, names)
        for name, tensor in zip(model.inputs, example.tensors, strict=True)
    )
    rows = names if model.task == "token-classification" else names[:1]
    return inputs, (_described(output_name(model), answer, rows),)


def _described(name: str, tensor: "torch.Tensor", names: tuple[str, ...]) -> Tensor:
    shape: tuple[Any, ...] = (*names, *tensor.shape[len(names) :])
    return Tensor(name, str(tensor.dtype).removeprefix("torch."), shape)


def _write(archive: bytes, path: Path) -> None:
    """Copy an archive's records, without those that rule 2 forbids."""
    import io

    import torch

    reader: Any = torch._C.PyTorchFileReader(io.BytesIO(archive))
    writer: Any = torch._C.PyTorchFileWriter(str(path))
    # The version decides how old operators are read; by itself the writer says the oldest.
    place = next(name for name in _VERSION if reader.has_record(name))
    writer.set_min_version(int(reader.get_record(place)))
    for name in reader.get_all_records():
        if not name.endswith(_DEBUG) and name not in _OWN_RECORDS:
            content = reader.get_record(name)
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
