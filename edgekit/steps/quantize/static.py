"""A model on its grids: what calibration and quantization-aware training share.

The model's own parameters are behind the traced forward, so that what either does to a traced
model is done to the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from edgekit.artifact import MATRIX_BITS, STATIC, Scheme, activation_bits, one_of
from edgekit.errors import ExportError, RecipeError
from edgekit.export.static_tables import Tables
from edgekit.export.tracing import example_inputs
from edgekit.model import Model, export_forward
from edgekit.preprocess import Array, Encoded, ImagePreprocessor, TextReader
from edgekit.steps.needs import need_float
from edgekit.steps.quantize.fake import Table, Weight
from edgekit.steps.quantize.graph import tensor_of
from edgekit.steps.quantize.grid import Grid, quantize, quantize_int8
from edgekit.steps.quantize.points import Traced, trace

if TYPE_CHECKING:
    from edgekit.step import Context

# Fewer rows than this leave some ranges to chance.
_ENOUGH = 32


def traced(model: Model, scheme: Scheme = "int8-static") -> Traced:
    """The model's clean forward with points in it, on its ranges where it has them.

    scheme: of a model that has no grids yet. Raises ExportError when torch cannot trace it,
    ModelError when a range is missing.
    """
    forward = export_forward(model)
    example = example_inputs(model, forward)
    scheme = scheme if model.quantized is None else model.quantized.scheme
    float_layers = () if model.quantized is None else model.quantized.float_layers
    bits = activation_bits(scheme)
    found = trace(forward, example.tensors, example.dimensions, model.module, float_layers, bits)
    if model.quantized is not None and model.quantized.scheme in STATIC:
        found.set_ranges(model.quantized.ranges)
    return found


def require_rows(name: str, model: Model, context: Context) -> None:
    """What any step needs that looks at activations. Raises RecipeError."""
    need_float(name, model)
    if context.rows is None:
        raise RecipeError(f"{name}: needs training rows to see its activations; give --data")
    if len(context.rows) < _ENOUGH:
        raise RecipeError(
            f"{name}: {len(context.rows)} training rows say too little about the range of each "
            f"activation; give at least {_ENOUGH}"
        )
    labels = context.rows.labels
    if labels is not None and model.problem == "single-label" and len(set(labels)) < 2:
        raise RecipeError(
            f"{name}: all {len(labels)} training rows have the label {labels[0]!r}; give rows of "
            "every class"
        )


def require_layers(name: str, model: Model) -> None:
    """What a step needs that changes or judges encoder layers. Raises RecipeError."""
    described = model.architecture
    if described is None or described.layers is None:
        raise RecipeError(f"{name}: this model has no encoder layers; leave it out")
    known = set(model.module.modules())
    for layer in described.layers(model.module.base_model):
        if layer.query not in known:
            raise RecipeError(
                f"{name}: this family keeps its projections as plain tensors (XLNet does), which "
                "is not known here; leave it out"
            )


def require_block(name: str, block: int | None, scheme: Scheme) -> None:
    """What a step needs that rounds matrices in blocks. Raises RecipeError."""
    if block is not None and (block < 1 or scheme not in MATRIX_BITS):
        raise RecipeError(f"{name}: block is for {one_of(tuple(MATRIX_BITS))}; leave it out")


def pieces(
    model: Model, encoded: Encoded, size: int, padding: int = 1
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The rows as inputs for a traced forward, ``size`` at a time, short texts first.

    Every batch of texts is ``padding`` tokens longer than its longest (one, so that all see some),
    but none is longer than the model reads.
    """
    order = np.arange(len(encoded))
    if encoded.lengths is not None:
        order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield as_inputs(model, encoded, order[start : start + size], padding)


def as_inputs(
    model: Model, encoded: Encoded, rows: Array, padding: int = 0
) -> tuple[torch.Tensor, ...]:
    """These rows as a traced forward takes them."""
    made = []
    longest = 0 if encoded.lengths is None else int(encoded.lengths[rows].max()) + padding
    if isinstance(model.preprocessor, TextReader):
        longest = min(longest, model.preprocessor.max_length)
    for name in model.inputs:
        array = encoded.arrays[name][rows]
        if encoded.lengths is not None:
            wider = np.zeros((len(rows), longest), np.int64)
            if name == "input_ids" and isinstance(model.preprocessor, TextReader):
                wider += model.preprocessor.pad_id
            width = min(longest, array.shape[1])
            wider[:, :width] = array[:, :width]
            array = wider
        made.append(torch.from_numpy(np.ascontiguousarray(array)))
    return tuple(made)


def snap(found: Traced) -> None:
    """Put the products' weights on their grids, for good.

    A later rounding, even of the weight times a factor that a converter folds into it, gives the
    same integers then.
    """
    with torch.no_grad():
        for name, part in found.weights.items():
            if isinstance(part, Weight):
                tensor = tensor_of(found.module, name)
                tensor.copy_(part.rounded(tensor))


def _integers(tensor: torch.Tensor, part: Weight | Table) -> tuple[Array, Array]:
    values = tensor.detach().numpy()
    if isinstance(part, Table):
        return quantize_int8(values.reshape(1, -1))
    return quantize(values, part.bits, block=part.block)


def integer_weights(found: Traced) -> dict[str, tuple[Array, Array]]:
    """The integers and scales of every weight and table, by the parameter's name.

    A product's scales are float32 [output channels], a table's [1].
    """
    made = {}
    for name, part in found.weights.items():
        tensor = tensor_of(found.module, name)
        integers, scales = _integers(tensor, part)
        made[_first_name(found.module, name)] = integers.reshape(tuple(tensor.shape)), scales
    return made


def _first_name(module: Any, name: str) -> str:
    """What the checkpoint calls a tensor: it comes first where there are several names."""
    tensor = tensor_of(module, name)
    named = itertools.chain(module.named_parameters(), module.named_buffers())
    return short_name(next(known for known, other in named if other is tensor))


def short_name(name: str) -> str:
    """A parameter's name as the checkpoint has it: the clean forward keeps the model inside."""
    return name.removeprefix("module.")


def marked(model: Model, scheme: Scheme, format: Literal["onnx", "tflite"]) -> Traced:
    """The traced forward with a mark at each point, for the exporter of a format.

    For TFLite layer norms are elementary operations. Raises ExportError when the model has no
    ranges for this scheme: nothing was calibrated or trained.
    """
    if model.quantized is None or model.quantized.scheme != scheme:
        raise ExportError(
            f"an {scheme} file needs the range of each activation; add --step "
            f"calibrate:scheme={scheme}"
        )
    found = traced(model)
    found.set_mode("mark-onnx" if format == "onnx" else "mark-tflite")
    if format == "tflite":
        for node in found.module.graph.nodes:
            if node.target is torch.ops.aten.layer_norm.default:
                node.target = _norm_by_hand
        found.module.recompile()
    return found


def grids(found: Traced) -> list[Grid]:
    """The grid of each mark, by its number."""
    by_number = {point.number: point.grid for point in found.points.values()}
    return [by_number[number] for number in range(len(by_number))]


def output_step(model: Model) -> float:
    """What one integer of the output stands for: the unit that files differ by."""
    *_, last = traced(model).points.values()
    return last.grid.scale


def tables(found: Traced) -> Tables:
    """The tables with their scales, for a writer."""
    made = []
    for name, part in found.weights.items():
        if isinstance(part, Table):
            tensor = tensor_of(found.module, name)
            made.append((tensor.detach().numpy(), float(_integers(tensor, part)[1][0])))
    return Tables(made)


def _norm_by_hand(
    states: torch.Tensor,
    shape: Any,
    weight: torch.Tensor,
    bias: torch.Tensor,
    epsilon: float,
    *_: Any,
) -> torch.Tensor:
    centred = states - states.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred * torch.rsqrt(variance + epsilon) * weight + bias


def fake_outputs(model: Model, encoded: Encoded) -> Array:
    """What the model gives with every number rounded as the file rounds it; float32 [N, …].

    For token-classification [N, L, C] with zeros where a row has no token.
    """
    found = traced(model)
    found.set_mode("fake")
    return outputs_of(found, model, encoded)


def outputs_of(found: Traced, model: Model, encoded: Encoded) -> Array:
    """``fake_outputs`` of a model that was traced, in whatever mode it is."""
    outputs: Any = None
    size = 16 if isinstance(model.preprocessor, ImagePreprocessor | TextReader) else 1
    order = np.arange(len(encoded))
    if encoded.lengths is not None:
        order = np.argsort(encoded.lengths, kind="stable")
    if model.preprocessor is None:
        size = len(next(iter((model.example or {}).values())))
    with torch.no_grad():
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            answer = found.module(*as_inputs(model, encoded, rows)).float().numpy()
            if model.task == "token-classification":
                width = next(iter(encoded.arrays.values())).shape[1]
                if outputs is None:
                    outputs = np.zeros((len(encoded), width, answer.shape[-1]), np.float32)
                outputs[rows, : answer.shape[1]] = answer
            else:
                if outputs is None:
                    outputs = np.zeros((len(encoded), *answer.shape[1:]), np.float32)
                outputs[rows] = answer
    found_outputs: Array = outputs
    return found_outputs
