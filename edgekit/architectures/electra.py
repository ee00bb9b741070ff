"""ELECTRA. Clark et al. 2020, arXiv 2003.10555."""

from dataclasses import replace
from typing import Any

import torch.nn.functional as F

from edgekit.architectures import Architecture, Embeddings, Head, bert
from edgekit.architectures.blocks import text_forward


def _embeddings(encoder: Any) -> Embeddings:
    projection = getattr(encoder, "embeddings_project", None)
    return replace(bert.embeddings(encoder), projection=projection)


def _head(module: Any) -> Head:
    return Head(module.classifier.out_proj, module.classifier.dense, F.gelu)


ARCHITECTURE = Architecture(
    forward=text_forward,
    embeddings=_embeddings,
    layers=bert.layers,
    stack=lambda encoder: encoder.encoder.layer,
    head=_head,
    token_types="pairs",
    cuts=frozenset({"heads", "neurons"}),
)
