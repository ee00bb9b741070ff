"""The CNN student: filters over a few words, for classification and tagging.

Kim 2014, arXiv 1408.5882; as a student: Wibowo et al. 2022, arXiv 2201.00558. Rules, beside those
of ``light``: word vectors → dropout → filters of each width → ReLU → the largest of each over the
text (in tagging: those at each word) → dropout → Linear → tanh → dropout → Linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.errors import RecipeError
from edgekit.steps.distill.light import TAGS_TOO, LightStudent

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model


@dataclass(frozen=True)
class StudentCnn(LightStudent):
    """Replaces the model by filters over words: small, fast, and good at key phrases.

    vocabulary: the most words. pieces: read the model's own tokens instead, so that no word is
    unknown; in tagging unless said otherwise. embedding: numbers of a word's vector. widths: of
    the filters, odd numbers of words with a dash between them. filters: of each width. hidden: of
    the layer in front of the classifier. max_length: the most words of a text.
    """

    vocabulary: int = 20_000
    pieces: bool | None = None
    embedding: int = 96
    widths: str = "1-3-5"
    filters: int = 64
    hidden: int = 128
    max_length: int = 512
    learning_rate: float = 4e-3

    name: ClassVar[str] = "student-cnn"
    tasks: ClassVar[tuple[str, ...]] = TAGS_TOO

    def outline(self, model: Model, rows: Rows) -> tuple[str, dict[str, Any], Any]:
        sizes = {"filters": self.filters, "widths": self._widths()}
        return self.of_words("edgekit-cnn", model, rows, sizes, self.pieces)

    def _sizes(self) -> dict[str, float]:
        self._widths()
        return super()._sizes() | {"filters": self.filters}

    def _widths(self) -> list[int]:
        parts = self.widths.split("-")
        if not all(part.isdecimal() and int(part) % 2 and int(part) < 100 for part in parts):
            raise RecipeError(
                f"student-cnn: widths are odd numbers below 100, as in 1-3-5, and not {self.widths}"
            )
        return [int(part) for part in parts]
