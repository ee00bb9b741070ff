"""BERT. Devlin et al. 2018, arXiv 1810.04805. ELECTRA and RoBERTa name their parts alike."""

from typing import Any

import torch

from edgekit.architectures import Architecture, Embeddings, Head, Layer
from edgekit.architectures.blocks import activation, text_forward


def embeddings(encoder: Any) -> Embeddings:
    tables = encoder.embeddings
    return Embeddings(
        words=tables.word_embeddings,
        positions=tables.position_embeddings,
        types=tables.token_type_embeddings,
        norm=tables.LayerNorm,
    )


def layers(encoder: Any) -> tuple[Layer, ...]:
    return tuple(map(_layer, encoder.encoder.layer))


def _layer(layer: Any) -> Layer:
    attention = layer.attention
    return Layer(
        query=attention.self.query,
        key=attention.self.key,
        value=attention.self.value,
        attention_output=attention.output.dense,
        attention_norm=attention.output.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        output_norm=layer.output.LayerNorm,
        activation=activation(layer.intermediate.intermediate_act_fn),
        head_width=attention.self.attention_head_size,
        attention=attention.self,
    )


def _head(module: Any) -> Head:
    return Head(module.classifier, module.bert.pooler.dense, torch.tanh)


ARCHITECTURE = Architecture(
    forward=text_forward,
    embeddings=embeddings,
    layers=layers,
    stack=lambda encoder: encoder.encoder.layer,
    head=_head,
    token_types="pairs",
    cuts=frozenset({"heads", "neurons"}),
)
