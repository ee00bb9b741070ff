"""How much each head or neuron matters: numbers that are compared within a layer.

Rules:

1. ``taylor``: the first-order change of the loss when the unit goes, the sum over batches of
   |dL / dm|, where m = 1 multiplies what the unit gives (Michel et al. 2019, arXiv 1905.10650;
   Xu et al. 2022, arXiv 2112.07198). L is the loss of gold labels: the distance to the model's
   own answers would not do, since its gradient is zero at the model itself.
2. ``magnitude``: the Frobenius norm of the product of the unit's columns and its rows (with their
   bias): of output and value for a head, of down and up for a neuron. It needs no data.
3. ``activation``: the mean length, over tokens, of what the unit adds to the state.
4. 512 training rows are looked at, drawn by the seed, in batches of 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from edgekit.architectures import Layer
    from edgekit.examples import Batch, Examples
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context

Importance = Literal["taylor", "magnitude", "activation"]
Part = Literal["heads", "neurons"]

_ROWS = 512
_BATCH = 32


def need_data(step: str, importance: str, model: Model, context: Context) -> None:
    """The data that an importance needs are there. Raises RecipeError."""
    from edgekit.errors import RecipeError
    from edgekit.steps.gold import need_gold
    from edgekit.steps.needs import need_rows

    try:
        if importance == "taylor":
            need_gold(step, model, context)
        elif importance == "activation":
            need_rows(step, context)
    except RecipeError as error:
        raise RecipeError(f"{error}; importance=magnitude needs no data") from None


def importances(model: Model, context: Context, part: Part, by: Importance) -> list[Array]:
    """Of each layer with weights of its own, float64 [its heads or neurons]; none where gone."""
    import torch

    from edgekit.steps.prune.slicing import own_layers

    layers = own_layers(model)
    if by == "magnitude":
        with torch.no_grad():
            return [_magnitude(layer, part) for layer in layers]
    examples = _examples(model, context, gold=by == "taylor")
    if by == "taylor":
        return _taylor(model, layers, part, examples)
    return _activation(model, layers, part, examples)


def _examples(model: Model, context: Context, gold: bool) -> Examples:
    from edgekit.examples import Examples
    from edgekit.steps.gold import drawn, gold_examples
    from edgekit.workbench import encode

    assert context.rows is not None
    rows = drawn(context.rows, _ROWS, context.seed)
    return gold_examples(model, rows) if gold else Examples(encode(model, rows))


def _units(layer: Layer, part: Part) -> int:
    return layer.heads if part == "heads" else layer.neurons


def _reader(layer: Layer, part: Part) -> Any:
    """The module that reads what the units give, side by side."""
    return layer.attention_output if part == "heads" else layer.down


def _taylor(model: Model, layers: Sequence[Layer], part: Part, examples: Examples) -> list[Array]:
    """Rule 1."""
    import torch

    from edgekit.model import export_forward
    from edgekit.steps.gold import row_losses

    forward = export_forward(model)
    present = [layer for layer in layers if _units(layer, part)]
    if not present:  # torch has no gradients of nothing
        return [np.zeros(0, np.float64) for _ in layers]
    masks = [torch.ones(_units(layer, part), requires_grad=True) for layer in present]

    def masked(mask: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda given: given * mask.repeat_interleave(given.shape[-1] // len(mask))

    sums = [torch.zeros(len(mask), dtype=torch.float64) for mask in masks]
    readers = [_reader(layer, part) for layer in present]
    with _seen(readers, [masked(mask) for mask in masks]):
        for batch in _batches(examples):
            assert batch.labels is not None
            loss = row_losses(model, batch.run(forward), batch.labels).mean()
            gradients = torch.autograd.grad(loss, masks)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.abs()
    found = iter(sums)
    return [
        next(found).numpy() if _units(layer, part) else np.zeros(0, np.float64) for layer in layers
    ]


def _magnitude(layer: Layer, part: Part) -> Array:
    """Rule 2. The norm of A B is that of (AᵀA)(B Bᵀ): no product of the state's width is made."""
    import torch

    units = _units(layer, part)
    if not units:
        return np.zeros(0, np.float64)
    writer: Any = layer.value if part == "heads" else layer.up
    rows = writer.weight.double()
    if writer.bias is not None:
        rows = torch.cat([rows, writer.bias.double()[:, None]], dim=1)
    rows = rows.reshape(units, -1, rows.shape[-1])
    squares = (_columns(layer, part) * (rows @ rows.transpose(1, 2))).sum((1, 2))
    found: Array = squares.clamp_min(0).sqrt().numpy()
    return found


def _columns(layer: Layer, part: Part) -> Tensor:
    """[units, width, width]: each unit's columns of the reader, multiplied with themselves."""
    weight = _reader(layer, part).weight.double()
    columns: Tensor = weight.reshape(weight.shape[0], _units(layer, part), -1).permute(1, 2, 0)
    return columns @ columns.transpose(1, 2)


def _activation(
    model: Model, layers: Sequence[Layer], part: Part, examples: Examples
) -> list[Array]:
    """Rule 3."""
    import torch

    from edgekit.model import export_forward

    present = [layer for layer in layers if _units(layer, part)]
    sums = [torch.zeros(_units(layer, part), dtype=torch.float64) for layer in present]
    tokens = [0] * len(present)
    with torch.no_grad():
        columns = [_columns(layer, part).float() for layer in present]
    mask: Tensor | None = None

    def watch(number: int) -> Callable[[Tensor], Tensor]:
        def see(given: Tensor) -> Tensor:
            # Where a layer works for one token alone, that token is no padding.
            if mask is not None and given.shape[1] == mask.shape[1]:
                chosen = given[mask.bool()]
            else:
                chosen = given.flatten(0, 1)
            units = chosen.reshape(len(chosen), len(sums[number]), -1)
            squares = torch.einsum("nui,uij,nuj->nu", units, columns[number], units)
            sums[number] += squares.clamp_min(0).sqrt().sum(0)
            tokens[number] += len(chosen)
            return given

        return see

    forward = export_forward(model)
    readers = [_reader(layer, part) for layer in present]
    with _seen(readers, [watch(number) for number in range(len(present))]), torch.no_grad():
        for batch in _batches(examples):
            mask = batch.mask
            batch.run(forward)
    found = iter([(total / count).numpy() for total, count in zip(sums, tokens, strict=True)])
    return [next(found) if _units(layer, part) else np.zeros(0, np.float64) for layer in layers]


def _batches(examples: Examples) -> Iterator[Batch]:
    from edgekit.examples import Batch, batches, collate

    for rows in batches(examples.encoded.lengths, len(examples), _BATCH, 0, 0):
        fields: Any = collate(examples, rows)
        yield Batch(**fields)


@contextmanager
def _seen(
    readers: Sequence[torch.nn.Module], changes: Sequence[Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Inside, each reader reads what its function makes of its input."""

    def hook(change: Callable[[Tensor], Tensor]) -> Any:
        return lambda module, inputs: (change(inputs[0]), *inputs[1:])

    handles = [
        reader.register_forward_pre_hook(hook(change))
        for reader, change in zip(readers, changes, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
