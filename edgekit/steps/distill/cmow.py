"""The CMOW/CBOW-hybrid student: words are matrices to multiply, and vectors to add.

Galke et al. 2022, arXiv 2109.07222. Rules, beside those of ``light``:

1. A word's matrices are I + A with A from N(0, 0.01²), one for each direction; its vector is the
   teacher's (rule 4 of ``words``). The padding has zeros, which change nothing.
2. sum of vectors, product from the left, product from the right → dropout → Linear → tanh → dropout
   → Linear. Two texts: [a; b; |a - b|] of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.errors import RecipeError
from edgekit.steps.distill.light import LightStudent

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model


@dataclass(frozen=True)
class StudentCmow(LightStudent):
    """Replaces the model by products of matrices and a sum of vectors, one of each a word.

    vocabulary: the most words. matrix: rows and columns of a word's matrices. embedding: numbers
    of its vector. hidden: of the layer in front of the classifier. max_length: the most words of
    a text, a power of two.
    """

    vocabulary: int = 20_000
    matrix: int = 20
    embedding: int = 400
    hidden: int = 1000
    max_length: int = 64

    name: ClassVar[str] = "student-cmow"

    def outline(self, model: Model, rows: Rows) -> tuple[str, dict[str, Any], Any]:
        sizes = {
            "matrix": self.matrix,
            "longest": self.max_length,
            "pair": rows.pairs is not None,
        }
        return self.of_words("edgekit-cmow", model, rows, sizes)

    def _sizes(self) -> dict[str, float]:
        if self.max_length < 2 or self.max_length & (self.max_length - 1):
            raise RecipeError(
                f"student-cmow: max-length must be a power of two, as 64, and not {self.max_length}"
            )
        return super()._sizes() | {"matrix": self.matrix}
