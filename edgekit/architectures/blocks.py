"""The clean forward: the arithmetic that encoders share, written once for all exporters.

What makes it clean: integer inputs, our own additive mask built once, positions as a slice of a
constant table (with the row of token type 0 added to it beforehand where types are no input),
and nothing that depends on the batch size or the values of the inputs. It gives what the
original model gives for each row alone: padding on the right does not matter.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.architectures import Layer
from edgekit.hard_attention import largest, top_of
from edgekit.structure import is_absent, projection
from edgekit.unit_length import at_unit_length

if TYPE_CHECKING:
    from edgekit.model import Model

Norm = Callable[[Tensor, nn.Module], Tensor]


class ExportForward(nn.Module):
    """A text model with its task's output.

    Takes ``input_ids`` and ``attention_mask`` (and ``token_type_ids`` where the preprocessor
    makes them), integers [B, L]. Returns logits [B, C] (text-classification) or [B, L, C]
    (token-classification), or unit vectors [B, D] (sentence-embedding).
    """

    def __init__(self, model: "Model", encoder: nn.Module) -> None:
        super().__init__()
        self.module = model.module
        self.encoder = encoder
        self.finish = _FINISHES[model.task]
        assert model.architecture is not None
        self.head = model.architecture.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        states = self.encoder(input_ids, attention_mask, token_type_ids)
        return self.finish(self, states, attention_mask)


class PixelForward(nn.Module):
    """A convolutional model: ``pixel_values`` [B, C, H, W] to logits, as transformers does it."""

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__()
        self.module = model.module

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.module(pixel_values=pixel_values).logits
        return logits


class Encoder(nn.Module):
    """BERT's kind of encoder, from a family's description: ids [B, L] to states [B, L, D].

    When only the first token's state is wanted the last layer works out that one row (from the
    keys and values of all) and returns [B, 1, D]: the same numbers, and a ninth less time for
    six layers.
    """

    def __init__(
        self, model: "Model", decomposed_norm: bool, distances: Tensor | None = None
    ) -> None:
        """``distances`` [2 M - 1, H]: scores to add by how far a key is from its query."""
        super().__init__()
        architecture = model.architecture
        assert architecture is not None and architecture.embeddings and architecture.layers
        encoder: Any = model.module.base_model
        self.embeddings = architecture.embeddings(encoder)
        self.layers = architecture.layers(encoder)
        self.masked_score = architecture.masked_score
        self.first_only = model.task == "text-classification"
        self.norm = norm_function(decomposed_norm)
        self.positions: Tensor
        self.register_buffer("positions", position_rows(model), persistent=False)
        self.distances: Tensor | None
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None) -> Tensor:
        states, bias = self.enter(input_ids, attention_mask, types)
        for index in range(len(self.layers)):
            states = self.run(index, states, bias)
        return states

    def enter(
        self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The states [B, L, D] that the first layer takes, and what all add to their scores."""
        length = input_ids.shape[1]
        embeddings = self.embeddings
        states = embeddings.words(input_ids) + self.positions[:length]
        if types is not None:
            assert embeddings.types is not None
            states = states + embeddings.types(types)
        if embeddings.norm is not None:
            states = self.norm(states, embeddings.norm)
        if embeddings.projection is not None:
            states = embeddings.projection(states)
        bias = mask_bias(attention_mask, states.dtype, self.masked_score)
        if self.distances is not None:
            bias = bias + distance_bias(self.distances, length)
        return states, bias

    def run(self, index: int, states: Tensor, bias: Tensor) -> Tensor:
        """The layer of that number."""
        layer = self.layers[index]
        if not self.first_only or index < len(self.layers) - 1:
            return run_layer(layer, states, states, bias, self.norm)
        # A bias by distance has a row for each query; the mask's has one row for all.
        return run_layer(layer, states[:, :1], states, bias[:, :, :1], self.norm)


def text_forward(model: "Model", decomposed_norm: bool) -> nn.Module:
    """The clean forward of families whose layers are BERT's."""
    return ExportForward(model, Encoder(model, decomposed_norm))


def run_layer(layer: Layer, rows: Tensor, states: Tensor, bias: Tensor, norm: Norm) -> Tensor:
    """One post-norm layer for the states ``rows`` [B, Q, D] among all ``states`` [B, L, D]."""
    if not is_absent(layer.query):
        top = None if layer.attention is None else top_of(layer.attention)
        context = attend(
            layer.query(rows), layer.key(states), layer.value(states), layer.head_width, bias, top
        )
        rows = layer.attention_output(context) + rows
    rows = norm(rows, layer.attention_norm)
    if not is_absent(layer.up):
        rows = layer.down(layer.activation(layer.up(rows))) + rows
    return norm(rows, layer.output_norm)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    bias: Tensor | None = None,
    top: int | None = None,
) -> Tensor:
    """softmax(q k / sqrt(width) + bias) v in heads of ``width`` (Vaswani et al. 2017).

    query [B, Q, H * width], key and value [B, L, H * width], bias broadcasts to [B, H, Q, L];
    returns [B, Q, H * width]. top: how many probabilities of a query count (``hard_attention``).
    """
    q = split_heads(query, width).transpose(1, 2)
    k = split_heads(key, width).permute(0, 2, 3, 1)
    v = split_heads(value, width).transpose(1, 2)
    scores = torch.matmul(q, k) * width**-0.5
    if bias is not None:
        scores = scores + bias
    weights = torch.softmax(scores, dim=-1)
    if top is not None:
        weights = largest(weights, top)
    return join_heads(torch.matmul(weights, v))


def split_heads(states: Tensor, width: int) -> Tensor:
    """[B, L, H * width] to [B, L, H, width]."""
    batch, length, total = states.shape
    return states.reshape(batch, length, total // width, width)


def join_heads(states: Tensor) -> Tensor:
    """[B, H, L, width] to [B, L, H * width]."""
    batch, heads, length, width = states.shape
    return states.transpose(1, 2).reshape(batch, length, heads * width)


def mask_bias(attention_mask: Tensor, dtype: torch.dtype, masked_score: float) -> Tensor:
    """[B, 1, 1, L]: 0 for a token, ``masked_score`` for padding; to be added to the scores."""
    return (1.0 - attention_mask.to(dtype))[:, None, None, :] * masked_score


def distance_bias(distances: Tensor, length: int) -> Tensor:
    """[1, H, L, L] from [2 M - 1, H], whose row M - 1 is for a key at its query's position."""
    place = torch.arange(length, device=distances.device)
    rows = place[None, :] - place[:, None] + distances.shape[0] // 2
    return F.embedding(rows, distances).permute(2, 0, 1)[None]


def position_rows(model: "Model") -> Tensor:
    """The position table from the first token on, with token type 0 added unless it is read."""
    architecture, preprocessor = model.architecture, model.preprocessor
    assert architecture is not None and architecture.embeddings and preprocessor is not None
    embeddings = architecture.embeddings(model.module.base_model)
    assert embeddings.positions is not None
    rows = embeddings.positions.weight.detach()[embeddings.first_position :].clone()
    if embeddings.types is not None and "token_type_ids" not in preprocessor.inputs:
        rows += embeddings.types.weight.detach()[0]
    return rows


def norm_function(decomposed: bool) -> Norm:
    """How a norm module is applied: by itself, or for LayerNorm as its elementary operations.

    LiteRT has no layer norm: the converter's own expansion takes 347 operations for MiniLM,
    ours 268, and runs faster.
    """

    def by_itself(states: Tensor, norm: nn.Module) -> Tensor:
        result: Tensor = norm(states)
        return result

    def by_hand(states: Tensor, norm: nn.Module) -> Tensor:
        if not isinstance(norm, nn.LayerNorm):
            return by_itself(states, norm)
        centred = states - states.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias

    return by_hand if decomposed else by_itself


def activation(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function; transformers' spelled-out tanh forms of GELU as the one operation."""
    tanh_forms = ("NewGELUActivation", "FastGELUActivation", "GELUTanh", "AccurateGELUActivation")
    if type(function).__name__ in tanh_forms:
        return lambda states: F.gelu(states, approximate="tanh")
    return function


def mean_state(states: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, D]: the mean state of the tokens that are no padding."""
    weights = attention_mask.to(states.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    return torch.matmul(weights[:, None, :], states)[:, 0]


def _embed(forward: ExportForward, states: Tensor, attention_mask: Tensor) -> Tensor:
    """Unit vectors [B, D]: the mean state of the tokens that are no padding, normalized.

    Reimers and Gurevych 2019, Sentence-BERT, arXiv 1908.10084.
    """
    # The mean before the norm: a sum's squares would leave the range of fp16.
    mean = mean_state(states, attention_mask)
    if (projected := projection(forward.module)) is not None:
        mean = projected(mean)
    return at_unit_length(mean)


def _classify(forward: ExportForward, states: Tensor, attention_mask: Tensor) -> Tensor:
    assert forward.head is not None
    head = forward.head(forward.module)
    logits: Tensor = head.classifier(head.read(states[:, 0]))
    return logits


def _classify_tokens(forward: ExportForward, states: Tensor, attention_mask: Tensor) -> Tensor:
    module: Any = forward.module
    logits: Tensor = module.classifier(states)
    return logits


_FINISHES = {
    "text-classification": _classify,
    "token-classification": _classify_tokens,
    "sentence-embedding": _embed,
}
