"""RoBERTa and XLM-RoBERTa. Liu et al. 2019, arXiv 1907.11692; Conneau et al. 2019, 1911.02116."""

from dataclasses import replace
from typing import Any

import torch

from edgekit.architectures import Architecture, Embeddings, Head, bert
from edgekit.architectures.blocks import text_forward


def _embeddings(encoder: Any) -> Embeddings:
    # Positions are counted from the padding's id on, fairseq's way.
    return replace(bert.embeddings(encoder), first_position=encoder.embeddings.padding_idx + 1)


def _head(module: Any) -> Head:
    return Head(module.classifier.out_proj, module.classifier.dense, torch.tanh)


# There is a type table, but the tokenizers make one type only.
ARCHITECTURE = Architecture(
    forward=text_forward,
    embeddings=_embeddings,
    layers=bert.layers,
    stack=lambda encoder: encoder.encoder.layer,
    head=_head,
    cuts=frozenset({"heads", "neurons"}),
)
