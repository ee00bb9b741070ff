"""ALBERT: one layer's weights run many times. Lan et al. 2019, arXiv 1909.11942."""

from dataclasses import replace
from typing import Any

import torch

from edgekit.architectures import Architecture, Embeddings, Head, Layer, bert
from edgekit.architectures.blocks import activation, text_forward


def _embeddings(encoder: Any) -> Embeddings:
    projection = encoder.encoder.embedding_hidden_mapping_in
    return replace(bert.embeddings(encoder), projection=projection)


def _layers(encoder: Any) -> tuple[Layer, ...]:
    """As they run: groups in turn, each as often as its share of the depth."""
    groups, depth = encoder.encoder.albert_layer_groups, encoder.config.num_hidden_layers
    runs = (groups[int(index / (depth / len(groups)))] for index in range(depth))
    return tuple(_layer(layer) for group in runs for layer in group.albert_layers)


def _layer(layer: Any) -> Layer:
    attention = layer.attention
    return Layer(
        query=attention.query,
        key=attention.key,
        value=attention.value,
        attention_output=attention.dense,
        attention_norm=attention.LayerNorm,
        up=layer.ffn,
        down=layer.ffn_output,
        output_norm=layer.full_layer_layer_norm,
        activation=activation(layer.activation),
        head_width=attention.attention_head_size,
        attention=attention,
    )


def _head(module: Any) -> Head:
    return Head(module.classifier, module.albert.pooler, torch.tanh)


ARCHITECTURE = Architecture(
    forward=text_forward,
    embeddings=_embeddings,
    layers=_layers,
    head=_head,
    token_types="pairs",
    types_until=4,
    cuts=frozenset({"heads", "neurons"}),
)
