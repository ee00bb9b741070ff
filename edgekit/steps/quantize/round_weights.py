"""Round the matrices to the grid of the file, with training rows for a guide: GPTQ.

Frantar et al. 2022, arXiv 2210.17323, as neural-compressor has it.

Rules:

1. Weights of linear layers are rounded; tables and filters are the writers' to round.
2. A scale is the one of ``grid`` or less of it, whatever has the least squared error
   (``fitted_scales``): for each output channel, as in TFLite files, or with ``block=32`` for each
   32 weights, as in ONNX files.
3. The largest weight of each channel (or block) takes the last integer of the grid. Then its
   magnitude tells the scale, and a writer finds the very integers in what was rounded.
4. ``gptq`` rounds a layer input by input, and changes the weights of the inputs to come so that
   the layer's answers to ``rows`` training rows change least. All layers see the rows as the float
   model has them. Channels with one scale begin at the inputs that are largest.
5. ``rtn`` rounds each weight to its nearest integer; it needs no rows.

neural-compressor's own symmetric grid has an integer below that of rule 2 of ``grid`` (-8 of 4
bits), and nothing holds the largest weight: of MiniLM's 21,197 channels 6,437 would be stored as
other integers. Hence the algorithm is the library's and the grid is ours.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgekit.artifact import MATRIX_BITS
from edgekit.errors import RecipeError
from edgekit.steps.needs import need_float
from edgekit.steps.prune.zeros import as_sparse_as_it_is

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.model import Model
    from edgekit.preprocess import Encoded
    from edgekit.step import Context

Rounded = Literal["int4-weights", "int4-all", "int8-dynamic", "int8-weights"]

_LIBRARY = "neural_compressor"
_BATCH = 16
# How many inputs are rounded before the weights of all others follow; it changes no answer.
_AT_ONCE = 128


@dataclass(frozen=True)
class RoundWeights:
    """Rounds the weights of linear layers to 4 or 8 bits better than one by one.

    method: gptq sees training rows, rtn does not. scheme: the file's. block: weights to a scale,
    below 8 bits. rows: how many training rows gptq looks at.
    """

    method: Literal["gptq", "rtn"] = "gptq"
    scheme: Rounded = "int4-weights"
    block: int | None = None
    rows: int = 512

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.quantize.static import require_block, require_rows

        need_float("round-weights", model)
        require_block("round-weights", self.block, self.scheme)
        if not _linears(model):
            raise RecipeError("round-weights: this model has no linear layer; leave the step out")
        if self.method == "rtn":
            return
        require_rows("round-weights", model, context)
        if self.rows < 32:
            raise RecipeError(f"round-weights: rows must be at least 32, is {self.rows}")
        if importlib.util.find_spec(_LIBRARY) is None:
            raise RecipeError(
                "round-weights: gptq needs neural-compressor-pt; pip install 'edgekit[rounding]', "
                "or choose method=rtn"
            )

    def apply(self, model: Model, context: Context) -> Model:
        from edgekit.model import Quantized

        quantized = Quantized(self.scheme, {}, block=self.block)
        if context.folder is None:
            return replace(model, quantized=quantized)
        bits = MATRIX_BITS.get(self.scheme, 8)
        made = replace(model, module=copy.deepcopy(model.module), quantized=quantized)
        if self.method == "gptq":
            from edgekit.steps.quantize.calibrate import draw

            context.on_progress(0.0, "running the training rows")
            self._gptq(made, draw(model, context, self.rows), bits)
            how = f"gptq on {min(self.rows, len(context.rows or ()))} training rows"
        else:
            for linear in _linears(made).values():
                _replace(linear, _nearest(linear.weight, bits, self.block))
            how = "rtn"
        note = f"weights rounded for {self.scheme} ({how})"
        return as_sparse_as_it_is(replace(made, lineage=(*model.lineage, note)))

    def ensures(self, before: Model, after: Model) -> None:
        if after.quantized is None:
            raise RecipeError("round-weights: left no grid behind; a bug of edgekit")

    def _gptq(self, made: Model, encoded: Encoded, bits: int) -> None:
        """Rule 4."""
        import torch

        linears = _linears(made)
        with torch.no_grad():
            for name, state in _watched(made, encoded).items():
                if state.nsamples:
                    _replace(linears[name], _rounded(state, bits, self.block))
                else:
                    # Nothing runs it: a part that the task has no use for.
                    _replace(linears[name], _nearest(linears[name].weight, bits, self.block))


def _linears(model: Model) -> dict[str, nn.Linear]:
    from torch import nn

    return {n: part for n, part in model.module.named_modules() if isinstance(part, nn.Linear)}


def _replace(linear: nn.Linear, weight: Tensor) -> None:
    linear.weight.data = weight.contiguous()


def _watched(model: Model, encoded: Encoded) -> dict[str, Any]:
    """The library's state of each linear layer, which has seen all inputs of the layer."""
    from edgekit.model import export_forward
    from edgekit.steps.quantize.static import pieces

    library = _library()
    forward = export_forward(model)
    found, hooks = {}, []
    for name, linear in _linears(model).items():
        found[name] = state = library.GPTQ(linear, linear.weight.detach())

        def see(_: Any, inputs: Any, state: Any = state) -> None:
            state.add_batch(inputs[0], None)

        hooks.append(linear.register_forward_pre_hook(see))
    for inputs in pieces(model, encoded, _BATCH):
        forward(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def _rounded(state: Any, bits: int, block: int | None) -> Tensor:
    """The weight by rule 4."""
    import torch

    weight = state.layer.weight.detach().clone()
    order = torch.arange(weight.shape[1])
    if block is None:
        order = torch.argsort(torch.diag(state.H), descending=True, stable=True)
        state.H = state.H[order][:, order]
    state.quantizer = _Grid(bits)
    *_, rounded = state.fasterquant(
        weight[:, order], blocksize=block or _AT_ONCE, groupsize=block or -1
    )
    answer: Tensor = rounded[:, torch.argsort(order)]
    return answer


class _Grid:
    """The grid, as the library asks for it: ``scale`` [rows, 1] and the numbers of a column."""

    def __init__(self, bits: int) -> None:
        import torch

        self.bits = bits
        self.maxq = 0  # the library's grid; not read here
        self.zero = torch.zeros(1, 1)
        self.scale: Tensor | None = None

    def ready(self) -> bool:
        return self.scale is not None

    def find_params(self, matrix: Tensor, weight: bool = True) -> None:
        """Begin with a matrix [rows, columns], or a block of its columns."""
        import torch

        from edgekit.steps.quantize.grid import fitted_scales

        self.scale = torch.from_numpy(fitted_scales(matrix.numpy(), self.bits))[:, None]
        self.largest = matrix.abs().argmax(1, keepdim=True)
        self.sign = matrix.gather(1, self.largest).sign()
        self.column = 0

    def quantize(self, column: Tensor, *_: Any) -> Tensor:
        """The next column [rows, 1], rounded (rule 3)."""
        import torch

        from edgekit.steps.quantize.grid import largest

        assert self.scale is not None
        top = largest(self.bits)
        integers = (column / self.scale).round().clamp(-top, top)
        integers = torch.where(self.largest == self.column, self.sign * top, integers)
        self.column += 1
        return integers * self.scale


def _nearest(weight: Tensor, bits: int, block: int | None) -> Tensor:
    """The weight by rule 5; the scales of rule 2 clip, so that rule 3 holds by itself."""
    import torch
    import torch.nn.functional as F

    from edgekit.steps.quantize.grid import dequantize, fitted_scales, to_integers

    outputs, inputs = weight.shape
    width = block or inputs
    rows = F.pad(weight.detach(), (0, -inputs % width)).reshape(-1, width).numpy()
    scales = fitted_scales(rows, bits)
    rounded = torch.from_numpy(dequantize(to_integers(rows, scales, bits), scales))
    return rounded.reshape(outputs, -1)[:, :inputs]


def _library() -> Any:
    """neural-compressor's module of GPTQ, without what it has to say."""
    logging.getLogger(_LIBRARY).disabled = True
    # What it finds imported it takes for known when it runs.
    import transformers  # noqa: F401
    from neural_compressor.common import set_workspace

    # Its default is a folder where the user stands, made by the import below.
    set_workspace(tempfile.gettempdir())
    from neural_compressor.torch.algorithms.weight_only import gptq

    return gptq
