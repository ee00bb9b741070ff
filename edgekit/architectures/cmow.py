"""The CMOW/CBOW-hybrid student: a product of matrices beside a sum of vectors.

Galke et al. 2022, arXiv 2109.07222, after Mai et al. 2019. Rules:

1. A word has a matrix I + A for the product from the left, one for that from the right, and a
   vector; ``words`` has all three in a row, [A; A'; v]. A row of zeros, which the padding has, is
   neutral in both products and in the sum.
2. A text is ``[sum; product from the left; product from the right]``: the matrices flattened.
3. Products are associative, so they are worked out in pairs, in as many rounds as the length has
   bits; lengths are filled up to a power of two with I.
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

_SPREAD = 0.01  # of A in the beginning


class CmowConfig(LightConfig):
    """matrix: rows and columns of a word's matrices; embedding_size: of its vector.

    longest: the most tokens of a text, a power of two.
    """

    model_type = "edgekit-cmow"

    matrix: int = 4
    longest: int = 64


class CmowForSequenceClassification(Light):
    config_class = CmowConfig

    def __init__(self, config: CmowConfig) -> None:
        super().__init__(config)
        square = config.matrix**2
        self.words = nn.Embedding(config.vocab_size, 2 * square + config.embedding_size)
        with torch.no_grad():
            self.words.weight[:, : 2 * square].normal_(0, _SPREAD)
            self.words.weight[0] = 0
        texts = 3 if config.pair else 1
        self.head = LightHead(texts * self.words.embedding_dim, config)
        self.ready()

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        rows = self.words(input_ids)
        parts = masks(attention_mask, token_type_ids, self.config.pair)
        logits: Tensor = self.head(compared([self.pooled(rows * m[:, :, None]) for m in parts]))
        return logits

    def pooled(self, rows: Tensor) -> Tensor:
        """[B, D] of rows [B, L, D], which are zero in the padding (rule 2)."""
        size = self.config.matrix
        square = size * size
        vectors = rows[:, :, 2 * square :].sum(1)
        batch, length = rows.shape[0], rows.shape[1]
        matrices = rows[:, :, : 2 * square].reshape(batch, length, 2, size, size)
        matrices = matrices + torch.eye(size, dtype=rows.dtype, device=rows.device)
        left = product(matrices[:, :, 0], self.config.longest)
        right = product(matrices[:, :, 1], self.config.longest, from_right=True)
        return torch.cat([vectors, left.flatten(1), right.flatten(1)], -1)


def product(matrices: Tensor, longest: int, *, from_right: bool = False) -> Tensor:
    """[B, d, d]: M_1 M_2 … M_L of [B, L, d, d], or M_L … M_2 M_1; L is at most ``longest``."""
    batch, size = matrices.shape[0], matrices.shape[-1]
    identity = torch.eye(size, dtype=matrices.dtype, device=matrices.device)
    filling = identity.expand(batch, longest, size, size)
    matrices = torch.cat([matrices, filling], 1)[:, :longest]
    while longest > 1:
        longest //= 2
        pairs = matrices.reshape(batch, longest, 2, size, size)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        matrices = torch.matmul(second, first) if from_right else torch.matmul(first, second)
    return matrices[:, 0]


register(CmowConfig, CmowForSequenceClassification)
ARCHITECTURE = Architecture(forward=LightForward, embeddings=embeddings, frees_length=False)
