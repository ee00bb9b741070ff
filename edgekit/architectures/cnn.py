"""The CNN student: filters over words, and the largest answer of each.

Kim 2014, arXiv 1408.5882. For tagging the filters' answers stay with their words.
"""

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture
from edgekit.architectures.light import (
    Light,
    LightConfig,
    LightForward,
    LightHead,
    embeddings,
    register,
)


class CnnConfig(LightConfig):
    """filters: of each width. widths: in words, odd, so that a filter has a middle."""

    model_type = "edgekit-cnn"

    filters: int = 8
    widths: tuple[int, ...] | list[int] = (1, 3, 5)


class _Cnn(Light):
    config_class = CnnConfig

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding_size, config.filters, width, padding=width // 2)
            for width in config.widths
        )
        self.head = LightHead(config.filters * len(config.widths), config)
        self.ready()

    def answers(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, filters, L]: none is below zero, and zero in the padding."""
        mask = attention_mask.to(torch.float32)[:, None, :]
        rows = self.dropout(self.words(input_ids)).transpose(1, 2) * mask
        found = [torch.relu(convolution(rows)) for convolution in self.convolutions]
        return torch.cat(found, 1) * mask


class CnnForSequenceClassification(_Cnn):
    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        logits: Tensor = self.head(self.answers(input_ids, attention_mask).amax(-1))
        return logits


class CnnForTokenClassification(_Cnn):
    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        logits: Tensor = self.head(self.answers(input_ids, attention_mask).transpose(1, 2))
        return logits


register(CnnConfig, CnnForSequenceClassification, CnnForTokenClassification)
ARCHITECTURE = Architecture(forward=LightForward, embeddings=embeddings)
