"""XLNet, as an encoder: one stream, no memory. Yang et al. 2019, arXiv 1906.08237.

Attention knows the distance between tokens and whether they are of the same segment, nothing
absolute; so padding may stand on the right although XLNet's tokenizers put it on the left. The
summary token is the last one, and a segment of its own: a checkpoint that was trained with token
types reads them for single texts, too.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.architectures import Architecture, Embeddings, Head, Layer
from edgekit.architectures.blocks import (
    ExportForward,
    activation,
    join_heads,
    mask_bias,
    norm_function,
    split_heads,
)
from edgekit.errors import ModelError

if TYPE_CHECKING:
    from edgekit.model import Model


def _embeddings(encoder: Any) -> Embeddings:
    return Embeddings(words=encoder.word_embedding)


def _layers(encoder: Any) -> tuple[Layer, ...]:
    return tuple(map(_layer, encoder.layer))


def _layer(layer: Any) -> Layer:
    attention = layer.rel_attn
    return Layer(
        query=_linear(attention.q),
        key=_linear(attention.k),
        value=_linear(attention.v),
        attention_output=_linear(attention.o, out=True),
        attention_norm=attention.layer_norm,
        up=layer.ff.layer_1,
        down=layer.ff.layer_2,
        output_norm=layer.ff.layer_norm,
        activation=activation(layer.ff.activation_function),
        head_width=attention.d_head,
    )


def _linear(weight: Tensor, out: bool = False) -> nn.Linear:
    """A projection stored as [D, H, width] as a module, on a copy.

    On a transposed view litert-torch 0.10 writes other numbers: it takes every weight to be
    contiguous.
    """
    matrix = weight.detach().flatten(1)
    if not out:
        matrix = matrix.T.contiguous()
    linear = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(matrix, requires_grad=False)
    return linear


def _head(module: Any) -> Head:
    summary = module.sequence_summary
    return Head(module.logits_proj, summary.summary, summary.activation)


class XlnetEncoder(nn.Module):
    """Ids [B, L] to states [B, L, D]; [B, 1, D] when only the last token's is wanted."""

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__()
        encoder: Any = model.module.base_model
        config, preprocessor = encoder.config, model.preprocessor
        _refuse_variants(config)
        self.words = encoder.word_embedding
        self.layers = _layers(encoder)
        self.attentions = [layer.rel_attn for layer in encoder.layer]
        # The projections of _layers are new modules; those of the distances are, too.
        self.projections = nn.ModuleList(
            part
            for layer in self.layers
            for part in (layer.query, layer.key, layer.value, layer.attention_output)
        )
        self.distance_keys = nn.ModuleList(_linear(a.r) for a in self.attentions)
        self.last_only = model.task == "text-classification"
        self.norm = norm_function(decomposed_norm)
        self.longest = preprocessor.max_length  # type: ignore[union-attr]
        distances = sinusoids(self.longest, config.d_model).to(next(self.words.parameters()).device)
        self.distances: Tensor
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None) -> Tensor:
        length = input_ids.shape[1]
        states: Tensor = self.words(input_ids)
        bias = mask_bias(attention_mask, states.dtype, ARCHITECTURE.masked_score)
        other_segment = None
        if types is not None:
            other_segment = (types[:, :, None] != types[:, None, :]).to(states.dtype)[:, None]
        distances = self.distances[None, self.longest - length : self.longest + length]
        last = attention_mask - F.pad(attention_mask[:, 1:], (0, 1))
        pick = last.to(states.dtype)[:, None, :]  # [B, 1, L], one at the last token
        for index, (layer, attention) in enumerate(zip(self.layers, self.attentions, strict=True)):
            context = _attend(
                layer, attention, states, self.distance_keys[index](distances), other_segment, bias
            )
            if self.last_only and index == len(self.layers) - 1:
                context, states = torch.matmul(pick, context), torch.matmul(pick, states)
            states = self.norm(layer.attention_output(context) + states, layer.attention_norm)
            inner = layer.down(layer.activation(layer.up(states)))
            states = self.norm(inner + states, layer.output_norm)
        return states


def _attend(
    layer: Layer,
    attention: Any,
    states: Tensor,
    distance_key: Tensor,
    other_segment: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """Scores by content, distance and segment: section 2.3 of the paper.

    states [B, L, D], distance_key [1, 2 L, D], other_segment [B, 1, L, L]; returns [B, L, D].
    """
    width = layer.head_width
    query = split_heads(layer.query(states), width)
    key = split_heads(layer.key(states), width).permute(0, 2, 3, 1)
    value = split_heads(layer.value(states), width).transpose(1, 2)
    distance_key = split_heads(distance_key, width).permute(0, 2, 3, 1)
    by_content = torch.matmul((query + attention.r_w_bias).transpose(1, 2), key)
    by_distance = torch.matmul((query + attention.r_r_bias).transpose(1, 2), distance_key)
    scores = by_content + shift(by_distance)
    if other_segment is not None:
        # The score of the same segment would be equal for all keys of a query, and softmax
        # does not see that: only the difference counts.
        difference = (attention.seg_embed[1] - attention.seg_embed[0])[:, :, None]
        by_segment = torch.matmul((query + attention.r_s_bias).transpose(1, 2), difference)
        scores = scores + by_segment * other_segment
    weights = torch.softmax(scores * width**-0.5 + bias, dim=-1)
    return join_heads(torch.matmul(weights, value))


def shift(by_distance: Tensor) -> Tensor:
    """[B, H, L, 2 L] by distance (L down to 1 - L) to [B, H, L, L] by key.

    Reading the rows one element apart turns "query minus key" into "key": Dai et al. 2019,
    arXiv 1901.02860, appendix B.
    """
    batch, heads, length, double = by_distance.shape
    rows = by_distance.reshape(batch, heads, double, length)[:, :, 1:]
    return rows.reshape(batch, heads, length, double - 1)[:, :, :, :length]


def sinusoids(longest: int, width: int) -> Tensor:
    """[2 M, D]: the encoding of the distances M down to 1 - M."""
    distance = torch.arange(longest, -longest, -1.0)[:, None]
    angle = distance / torch.pow(10000, torch.arange(0, width, 2.0) / width)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _refuse_variants(config: Any) -> None:
    """Variants that no published checkpoint for our tasks uses."""
    wanted = {"attn_type": "bi", "bi_data": False, "clamp_len": -1, "summary_type": "last"}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ModelError(
                f"this XLNet has {name} = {getattr(config, name)!r} and only {value!r} can be "
                "exported; fine-tune a checkpoint with the usual setting"
            )


def _forward(model: "Model", decomposed_norm: bool) -> nn.Module:
    return ExportForward(model, XlnetEncoder(model, decomposed_norm))


ARCHITECTURE = Architecture(
    forward=_forward,
    embeddings=_embeddings,
    layers=_layers,
    stack=lambda encoder: encoder.layer,
    head=_head,
    token_types="always",
    types_until=4,
    frees_length=False,
    learns=False,
    summary=-1,
    cuts=frozenset({"neurons"}),
)
