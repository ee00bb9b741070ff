"""MPNet: BERT with a score for the distance between tokens. Song et al. 2020, arXiv 2004.09297."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture, Embeddings, Head, Layer
from edgekit.architectures.blocks import Encoder, ExportForward, activation

if TYPE_CHECKING:
    from edgekit.model import Model


def _embeddings(encoder: Any) -> Embeddings:
    tables = encoder.embeddings
    return Embeddings(
        words=tables.word_embeddings,
        positions=tables.position_embeddings,
        first_position=tables.padding_idx + 1,
        norm=tables.LayerNorm,
    )


def _layers(encoder: Any) -> tuple[Layer, ...]:
    return tuple(map(_layer, encoder.encoder.layer))


def _layer(layer: Any) -> Layer:
    attention = layer.attention.attn
    return Layer(
        query=attention.q,
        key=attention.k,
        value=attention.v,
        attention_output=attention.o,
        attention_norm=layer.attention.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        output_norm=layer.output.LayerNorm,
        activation=activation(layer.intermediate.intermediate_act_fn),
        head_width=attention.attention_head_size,
    )


def _head(module: Any) -> Head:
    return Head(module.classifier.out_proj, module.classifier.dense, torch.tanh)


def _forward(model: "Model", decomposed_norm: bool) -> nn.Module:
    return ExportForward(
        model, Encoder(model, decomposed_norm, _distances(model.module.base_model))
    )


def _distances(encoder: Any) -> Tensor:
    """[2 M - 1, H]: the score of each distance from -(M - 1) to M - 1, key minus query."""
    tables = encoder.embeddings
    longest = tables.position_embeddings.weight.shape[0] - tables.padding_idx - 1
    scores = encoder.encoder.relative_attention_bias.weight.detach()
    distance = torch.arange(1 - longest, longest, device="cpu")
    buckets = encoder.encoder.relative_position_bucket(distance)
    rows: Tensor = scores[buckets.to(scores.device)]
    return rows


ARCHITECTURE = Architecture(
    forward=_forward,
    embeddings=_embeddings,
    layers=_layers,
    stack=lambda encoder: encoder.encoder.layer,
    head=_head,
    frees_length=False,
    cuts=frozenset({"neurons"}),
)
