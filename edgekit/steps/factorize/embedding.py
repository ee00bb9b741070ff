"""Make the word table narrow: V x D becomes V x E times E x D. Lan et al. 2019, ALBERT, arXiv
1909.11942, where it is trained so; here a trained table is cut by its singular values.

Rules:

1. The product is the nearest to the table of all of rank E: the error is the root of the sum of
   the squares of the singular values that are left out. At E = D the table is what it was.
2. Only the table changes. Where the family has narrow tables already (ALBERT, ELECTRA) the table
   is cut at its own width, and their projection stays behind the norm.
3. Every token has its row still: ``trim-vocabulary`` may come before or after. Before is better:
   the rank is then spent on the tokens that stay.
4. A decoder for masked words, which shares the table while ``pretrain-mlm`` or ``distill`` learns
   from them, is the product of the same two (``factored.Decoder``). No file has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.errors import RecipeError
from edgekit.steps.needs import need_float

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.model import Model
    from edgekit.step import Context


@dataclass(frozen=True)
class FactorizeEmbedding:
    """Makes the word table a narrow one and a matrix; follow it with distill.

    rank: the width E of the narrow table.
    """

    rank: int = 128

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.factored import is_table

        need_float("factorize-embedding", model)
        described = model.architecture
        if described is None or described.embeddings is None:
            raise RecipeError("factorize-embedding: this model has no word table; leave it out")
        if is_table(described.embeddings(model.module.base_model).words):
            raise RecipeError(
                "factorize-embedding: the word table is factored already; leave one of the two out"
            )
        full = min(described.word_embeddings(model.module).weight.shape)
        if not 1 <= self.rank <= full:
            raise RecipeError(f"factorize-embedding: rank must be from 1 to {full}, is {self.rank}")

    def apply(self, model: Model, context: Context) -> Model:
        import torch

        from edgekit.factored import factored_table
        from edgekit.steps.factorize.factorize import truncated_svd
        from edgekit.structure import sharing_copy

        assert model.architecture is not None
        changed = sharing_copy(model.module)
        words = model.architecture.word_embeddings(changed)
        names = {id(part): name for name, part in changed.named_modules()}
        with torch.no_grad():
            table = words.weight.double()
            left, right = truncated_svd(table, self.rank)
            made = factored_table(left.float(), right.float(), words.padding_idx)
            error = "" if table.is_meta else f", relative error {_error(table, left @ right):.3f}"
        changed.set_submodule(names[id(words)], made)
        before, after = words.weight.numel(), left.numel() + right.numel()
        note = f"factorize-embedding (rank {self.rank}): {before:,} weights became {after:,}{error}"
        return model.with_module(changed.eval(), note)

    def ensures(self, before: Model, after: Model) -> None:
        assert before.architecture is not None and after.architecture is not None
        rows = before.architecture.word_embeddings(before.module).weight.shape[0]
        found = tuple(after.architecture.word_embeddings(after.module).weight.shape)
        if found != (rows, self.rank):
            raise RecipeError("factorize-embedding: the table has another shape; a bug of edgekit")


def _error(table: Tensor, product: Tensor) -> float:
    return math.sqrt(float((table - product).square().sum() / table.square().sum()))
