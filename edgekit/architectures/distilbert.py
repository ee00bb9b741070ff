"""DistilBERT. Sanh et al. 2019, arXiv 1910.01108."""

from typing import Any

import torch

from edgekit.architectures import Architecture, Embeddings, Head, Layer
from edgekit.architectures.blocks import activation, text_forward


def _embeddings(encoder: Any) -> Embeddings:
    tables = encoder.embeddings
    return Embeddings(
        words=tables.word_embeddings,
        positions=tables.position_embeddings,
        norm=tables.LayerNorm,
    )


def _layers(encoder: Any) -> tuple[Layer, ...]:
    return tuple(map(_layer, encoder.transformer.layer))


def _layer(layer: Any) -> Layer:
    attention = layer.attention
    return Layer(
        query=attention.q_lin,
        key=attention.k_lin,
        value=attention.v_lin,
        attention_output=attention.out_lin,
        attention_norm=layer.sa_layer_norm,
        up=layer.ffn.lin1,
        down=layer.ffn.lin2,
        output_norm=layer.output_layer_norm,
        activation=activation(layer.ffn.activation),
        head_width=attention.attention_head_size,
        attention=attention,
    )


def _head(module: Any) -> Head:
    return Head(module.classifier, module.pre_classifier, torch.relu)


ARCHITECTURE = Architecture(
    forward=text_forward,
    embeddings=_embeddings,
    layers=_layers,
    stack=lambda encoder: encoder.transformer.layer,
    head=_head,
    cuts=frozenset({"heads", "neurons"}),
)
