"""MobileBERT: narrow layers between wide states. Sun et al. 2020, arXiv 2004.02984."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgekit.architectures import Architecture, Head, Layer
from edgekit.architectures.bert import embeddings, layers
from edgekit.architectures.blocks import (
    ExportForward,
    attend,
    mask_bias,
    norm_function,
    position_rows,
)

if TYPE_CHECKING:
    from edgekit.model import Model


def _last_norm(encoder: Any) -> nn.Module:
    output = encoder.encoder.layer[-1].output
    norm: nn.Module = output.bottleneck.LayerNorm if output.use_bottleneck else output.LayerNorm
    return norm


def _head(module: Any) -> Head:
    pooler = module.mobilebert.pooler
    if not pooler.do_activate:
        return Head(module.classifier)
    return Head(module.classifier, pooler.dense, torch.tanh)


class MobilebertEncoder(nn.Module):
    """Ids [B, L] to states [B, L, D]; [B, 1, D] when only the first token's is wanted."""

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__()
        encoder: Any = model.module.base_model
        self.tables = encoder.embeddings
        self.blocks = list(zip(layers(encoder), encoder.encoder.layer, strict=True))
        self.first_only = model.task == "text-classification"
        self.norm = norm_function(decomposed_norm)
        self.positions: Tensor
        self.register_buffer("positions", position_rows(model), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None) -> Tensor:
        tables = self.tables
        words = tables.word_embeddings(input_ids)
        if tables.trigram_input:
            # A token sees its neighbours' words. Padding must count as nothing, which is what
            # the end of an unpadded text is.
            words = words * attention_mask.to(words.dtype)[:, :, None]
            following = F.pad(words[:, 1:], (0, 0, 0, 1))
            preceding = F.pad(words[:, :-1], (0, 0, 1, 0))
            words = torch.cat([following, words, preceding], dim=2)
        if tables.trigram_input or tables.embedding_size != tables.hidden_size:
            words = tables.embedding_transformation(words)
        states = words + self.positions[: input_ids.shape[1]]
        if types is not None:
            states = states + tables.token_type_embeddings(types)
        states = self.norm(states, tables.LayerNorm)
        bias = mask_bias(attention_mask, states.dtype, ARCHITECTURE.masked_score)
        for index, (parts, layer) in enumerate(self.blocks):
            last = index == len(self.blocks) - 1
            states = self._layer(parts, layer, states, bias, first=self.first_only and last)
        return states

    def _layer(self, parts: Layer, layer: Any, states: Tensor, bias: Tensor, first: bool) -> Tensor:
        rows = states[:, :1] if first else states
        if not layer.use_bottleneck:
            query, key, value, residual = rows, states, states, rows
        elif layer.bottleneck.use_bottleneck_attention:
            key = value = self._dense(layer.bottleneck.input, states)
            query = residual = key[:, :1] if first else key
        else:
            key = value = states
            if layer.bottleneck.key_query_shared_bottleneck:
                key = self._dense(layer.bottleneck.attention, states)
            query = key[:, :1] if first else key
            residual = self._dense(layer.bottleneck.input, rows)
        context = attend(
            parts.query(query), parts.key(key), parts.value(value), parts.head_width, bias
        )
        narrow = self.norm(parts.attention_output(context) + residual, parts.attention_norm)
        for network in layer.ffn if layer.num_feedforward_networks > 1 else ():
            inner = parts.activation(network.intermediate.dense(narrow))
            narrow = self.norm(network.output.dense(inner) + narrow, network.output.LayerNorm)
        inner = parts.activation(parts.up(narrow))
        narrow = self.norm(parts.down(inner) + narrow, parts.output_norm)
        if not layer.use_bottleneck:
            return narrow
        widen = layer.output.bottleneck
        return self.norm(widen.dense(narrow) + rows, widen.LayerNorm)

    def _dense(self, bottleneck: Any, states: Tensor) -> Tensor:
        return self.norm(bottleneck.dense(states), bottleneck.LayerNorm)


def _forward(model: "Model", decomposed_norm: bool) -> nn.Module:
    return ExportForward(model, MobilebertEncoder(model, decomposed_norm))


# Without norms the attention scores of this family can reach hundreds: mask below them.
ARCHITECTURE = Architecture(
    forward=_forward,
    embeddings=embeddings,
    layers=layers,
    stack=lambda encoder: encoder.encoder.layer,
    head=_head,
    last_norm=_last_norm,
    token_types="pairs",
    masked_score=-1e4,
    frees_length=False,
    cuts=frozenset({"heads"}),
)
