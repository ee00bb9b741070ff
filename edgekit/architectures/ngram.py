"""The n-gram student: the mean of the n-grams' vectors, and two linear layers.

Ye et al. 2022, "Sparse Distillation", arXiv 2110.08536, after the deep averaging network of Iyyer
et al. 2015. Nothing of it knows an order: what order says is in the n-grams (``edgekit.ngrams``).
"""

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture
from edgekit.architectures.light import (
    Light,
    LightConfig,
    LightForward,
    LightHead,
    compared,
    embeddings,
    masks,
    register,
)


class NgramConfig(LightConfig):
    model_type = "edgekit-ngram"


class NgramForSequenceClassification(Light):
    config_class = NgramConfig

    def __init__(self, config: NgramConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        texts = 3 if config.pair else 1
        self.head = LightHead(texts * config.embedding_size, config)
        self.ready()

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        rows = self.words(input_ids)
        parts = masks(attention_mask, token_type_ids, self.config.pair)
        logits: Tensor = self.head(compared([_mean(rows, part) for part in parts]))
        return logits


def _mean(rows: Tensor, mask: Tensor) -> Tensor:
    """[B, D]: the mean row where the mask [B, L] is 1; zeros where it is nowhere."""
    total = torch.matmul(mask[:, None, :], rows)[:, 0]
    return total / mask.sum(1, keepdim=True).clamp_min(1.0)


register(NgramConfig, NgramForSequenceClassification)
ARCHITECTURE = Architecture(forward=LightForward, embeddings=embeddings, reads_ngrams=True)
