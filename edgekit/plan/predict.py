"""How many bytes a file will have, from shapes alone.

The clean forward is run on the meta device and the gradient says which parameters it really
uses; so what a task or a step leaves out is left out here by the same code that leaves it out
of the file. Each used tensor is then counted as the writer stores it. The graph itself (names,
shapes, operators) is estimated from the number of operators that the forward runs; for a real
model it is below 2 % of the file.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.artifact import FLOAT_SCHEMES, MATRIX_BITS, STATIC, Format, Scheme
from edgekit.contents import read_contents
from edgekit.contents.graph import multiplied
from edgekit.contents.operators import read_graph
from edgekit.errors import ExportError
from edgekit.export.onnx_weights import BLOCK
from edgekit.export.packing import table_bits
from edgekit.export.tflite_weights import matrix_bits
from edgekit.filemodel import FileModel

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekit.model import Model

# Buffers of the clean forward that are looked up by row, as word tables are.
_TABLES = ("positions", "distances")

# Bytes that a channel's scale takes, with a zero point where the format wants one; TFLite says
# them anew in each graph.
_PARAMETERS: dict[Format, int] = {"onnx": 4, "tflite": 12, "torchscript": 16}

_WIDENING = 400  # of the two operators that widen a filter in ONNX, and their names

# Bytes of the graph: for each operator that the clean forward runs, and at least. Fitted on files
# of encoders with 2 to 6 layers; schemes add operators of their own. TFLite has one graph for
# each length.
_GRAPH: dict[Format, dict[Scheme, tuple[int, int]]] = {
    "onnx": {
        "fp32": (71, 700),
        "fp16": (71, 700),
        "int8-dynamic": (125, 1100),
        "int8-weights": (135, 900),
        "int4-weights": (99, 1300),
        "int4-all": (99, 1900),
        "int2-weights": (99, 1300),
        "int8-static": (260, 5500),
    },
    "tflite": {
        "fp32": (79, 2300),
        "fp16": (100, 2300),
        "int8-dynamic": (101, 2500),
        "int8-weights": (95, 2700),
        "int4-weights": (86, 2900),
        "int4-all": (86, 4500),
        "int2-weights": (86, 2900),
        "int8-static": (148, 5000),
        "int16x8": (148, 5000),
    },
    "torchscript": {"fp32": (104, 3400), "fp16": (104, 3400), "int8-dynamic": (161, 3700)},
}


def weight_bytes(model: "Model | FileModel") -> int:
    """Bytes of the model's parameters in fp32, tied ones once; of an exported file, its bytes."""
    if isinstance(model, FileModel):
        return model.artifact.bytes
    return 4 * sum(parameter.numel() for parameter in model.module.parameters())


def predicted_bytes(
    model: "Model | FileModel", format: Format, scheme: Scheme, lengths: Sequence[int]
) -> int:
    """Bytes of the file that ``export_artifact`` will write for this model on the meta device.

    lengths: the buckets of a TFLite file; none when it has one signature for any length.
    """
    if isinstance(model, FileModel):
        return _rewritten_bytes(model, scheme)
    from edgekit.export.tflite_light import is_light, written_bytes
    from edgekit.model import export_forward

    if is_light(model):
        if scheme in STATIC:
            raise ExportError(
                f"{scheme} is for models whose activations were calibrated, and a light student's "
                "are not known to be sound in integers; choose --scheme int8-dynamic"
            )
        if format == "tflite":
            return written_bytes(model, scheme, lengths)
    forward = export_forward(model, decomposed_norm=format == "tflite")
    used, operators = _used(forward, model)
    longest = max(lengths, default=0) if format == "tflite" else 0
    graphs = max(1, len(lengths)) if format == "tflite" else 1
    sparse = _sparse(model)
    total = 0
    for owner, name, tensor in used:
        total += _stored(owner, name, tensor, scheme, format, longest, graphs)
        if id(tensor) in sparse:
            total -= _spared(tensor.numel(), model.sparsity, scheme, format)
    per_operator, least = _GRAPH[format][scheme]
    return total + graphs * (least + operators * per_operator)


def _sparse(model: "Model") -> set[int]:
    """Ids of the weights that ``sparsify`` made sparse."""
    from edgekit.steps.prune.zeros import matrices

    return {id(weight) for weight in matrices(model).values()} if model.sparsity else set()


def _spared(count: int, sparsity: float, scheme: Scheme, format: Format) -> int:
    """Bytes that packing a sparse weight takes off what an app ships."""
    from edgekit.export import onnx_sparse, tflite_packed
    from edgekit.steps.prune.sparsify import zeros_of

    kept = count - zeros_of(count, sparsity)
    if scheme == "int4-weights" or format == "torchscript":
        return 0
    if format == "onnx":
        width = {"fp32": 4, "fp16": 2}.get(scheme, 1)
        return count * width - onnx_sparse.packed_bytes(count, kept, width)
    return 0 if scheme in FLOAT_SCHEMES else count - tflite_packed.packed_bytes(count, kept)


def frees_length(model: "Model | FileModel") -> bool:
    """Whether a TFLite file of this model can serve any length with one signature."""
    return model.architecture is not None and model.architecture.frees_length


def _rewritten_bytes(model: FileModel, scheme: Scheme) -> int:
    """An exported file in a scheme: its float matrices shrink, the rest stays."""
    total = model.artifact.bytes
    if scheme == "fp32":
        return total
    path = model.artifact.path
    graph = read_graph(path, None) if scheme in MATRIX_BITS else None
    matrices = {} if graph is None else multiplied(graph)
    for tensor in read_contents(path).tensors:
        if tensor.dtype == "float32" and len(tensor.shape) >= 2:
            total -= tensor.bytes
            if tensor.name in matrices:
                total += _matrix_bytes(tensor.shape, scheme, model.artifact.format, 1)
            else:
                width = tensor.shape[-1]
                bits = table_bits(scheme, (math.prod(tensor.shape) // width, width))
                total += tensor.bytes * (16 if scheme == "fp16" else bits) // 32
    return total


def _used(
    forward: "nn.Module", model: "Model"
) -> tuple[list[tuple[Any, str, "torch.Tensor"]], int]:
    """(module, attribute, tensor) of each tensor in use, and how many operators run."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0
        paused = False

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.calls += 0 if self.paused else 1
            return func(*args, **(kwargs or {}))

    owners = {
        id(tensor): (module, name, tensor)
        for module in forward.modules()
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        )
    }
    # A batch norm's running figures have no gradient; exporters fold it into the convolution.
    leaves = [
        tensor
        for _, name, tensor in owners.values()
        if tensor.is_floating_point() and not name.startswith("running_")
    ]
    kept = [leaf.requires_grad for leaf in leaves]
    try:
        for leaf in leaves:
            leaf.requires_grad_(True)
        with torch.enable_grad(), Count() as count, _as_one_operator(forward, count):
            answer = forward(*_meta_inputs(model))
        gradients = torch.autograd.grad(answer.sum(), leaves, allow_unused=True)
    finally:
        for leaf, before in zip(leaves, kept, strict=True):
            leaf.requires_grad_(before)
    used = [owners[id(t)] for t, g in zip(leaves, gradients, strict=True) if g is not None]
    # Folded, a batch norm leaves a bias; its filter takes a Mul and a Cast in its place.
    norm = torch.nn.BatchNorm2d
    used = [each for each in used if each[1] != "weight" or not isinstance(each[0], norm)]
    return used, count.calls


@contextlib.contextmanager
def _as_one_operator(forward: "nn.Module", count: Any) -> Iterator[None]:
    """An LSTM is one operator in a file; on the meta device it is many for each word."""
    from torch import nn

    def begin(*_: Any) -> None:
        count.calls, count.paused = count.calls + 1, True

    def end(*_: Any) -> None:
        count.paused = False

    parts = [part for part in forward.modules() if isinstance(part, nn.LSTM)]
    hooks = [part.register_forward_pre_hook(begin) for part in parts]
    hooks += [part.register_forward_hook(end) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _meta_inputs(model: "Model") -> list["torch.Tensor"]:
    import torch

    from edgekit.preprocess import ImagePreprocessor

    if isinstance(model.preprocessor, ImagePreprocessor):
        p = model.preprocessor
        return [torch.empty(1, p.channels, p.height, p.width, device="meta")]
    if model.preprocessor is None:
        assert model.example is not None
        return [tensor.to("meta") for tensor in model.example.values()]
    return [torch.empty(1, 8, dtype=torch.long, device="meta") for _ in model.inputs]


def _stored(
    owner: Any,
    name: str,
    tensor: "torch.Tensor",
    scheme: Scheme,
    format: Format,
    longest: int,
    graphs: int,
) -> int:
    """Bytes of one tensor in the file."""
    from torch import nn

    count = tensor.numel()
    if name == "positions" and format == "tflite" and longest:
        count = longest * tensor.shape[-1]
    if scheme in FLOAT_SCHEMES:
        return 2 * count if scheme == "fp16" else 4 * count
    if scheme in STATIC:
        bias = 8 if scheme == "int16x8" else 4
        return _stored_static(owner, name, count, tensor.shape[0], format, graphs, bias)
    if name == "weight" and isinstance(owner, nn.Linear):
        return _matrix_bytes(tuple(tensor.shape), scheme, format, graphs)
    if isinstance(owner, nn.Embedding):
        return _rows_bytes(count, tensor.shape[-1], scheme)
    if name == "weight" and isinstance(owner, nn.Conv1d | nn.Conv2d):
        # TorchScript widens a filter by float32 scales, as a table; ONNX by a Cast and a Mul.
        each = 4 if format == "torchscript" else _PARAMETERS[format] * graphs
        return count + each * tensor.shape[0] + (_WIDENING if format == "onnx" else 0)
    if isinstance(owner, nn.LSTM) and name.startswith("weight"):
        return count + 4 * tensor.shape[0]
    if name in _TABLES and not longest and count >= 1024:
        return _rows_bytes(count, tensor.shape[-1], scheme)
    return 4 * count


def _stored_static(
    owner: Any, name: str, count: int, channels: int, format: Format, graphs: int, bias: int
) -> int:
    """Tables on one scale; products by channel, their biases on the product's scales.

    bias: bytes of a number of a bias.
    """
    from torch import nn

    if isinstance(owner, nn.Embedding) or name in _TABLES:
        return count
    if not isinstance(owner, nn.Linear | nn.Conv2d):
        return 4 * count
    if name == "bias":
        return (bias + _PARAMETERS[format] * graphs) * count
    zero = 1 if format == "onnx" else 0
    return count + (_PARAMETERS[format] + zero) * graphs * channels


def _rows_bytes(count: int, width: int, scheme: Scheme) -> int:
    """Bytes of a table of so many numbers, with a scale for each row."""
    rows = count // width
    return count * table_bits(scheme, (rows, width)) // 8 + 4 * rows


def _matrix_bytes(shape: tuple[int, ...], scheme: Scheme, format: Format, graphs: int) -> int:
    """Bytes of a linear layer's weight with its scales."""
    rows, columns = shape
    if scheme in MATRIX_BITS and format == "onnx":
        blocks = rows * -(-columns // BLOCK)
        return blocks * (BLOCK * MATRIX_BITS[scheme] // 8 + 4)
    bits = matrix_bits(scheme, shape)
    if bits < 8:
        return rows * columns * bits // 8 + _PARAMETERS[format] * graphs * rows
    # A product of int8 numbers in TFLite has its scales in a constant.
    apart = format == "tflite" and scheme != "int8-weights"
    return rows * columns + (4 if apart else _PARAMETERS[format] * graphs) * rows
