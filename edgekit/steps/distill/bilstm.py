"""The BiLSTM student: an LSTM from each side, for classification and tagging.

Tang et al. 2019, arXiv 1903.12136. Rules, beside those of ``light``: word vectors → dropout → LSTM
from the left and from the right → the largest state of each cell over the text (in tagging: the
states at each word) → dropout → Linear → tanh → dropout → Linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.steps.distill.light import TAGS_TOO, LightStudent

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model


@dataclass(frozen=True)
class StudentBilstm(LightStudent):
    """Replaces the model by a BiLSTM over words: small, and knows their order.

    vocabulary: the most words. pieces: read the model's own tokens instead, so that no word is
    unknown; in tagging unless said otherwise. embedding: numbers of a word's vector. cells: of
    each direction. hidden: of the layer in front of the classifier. max_length: the most words of
    a text.
    """

    vocabulary: int = 20_000
    pieces: bool | None = None
    embedding: int = 128
    cells: int = 128
    hidden: int = 256
    max_length: int = 512

    name: ClassVar[str] = "student-bilstm"
    tasks: ClassVar[tuple[str, ...]] = TAGS_TOO

    def outline(self, model: Model, rows: Rows) -> tuple[str, dict[str, Any], Any]:
        return self.of_words("edgekit-bilstm", model, rows, {"cells": self.cells}, self.pieces)

    def _sizes(self) -> dict[str, float]:
        return super()._sizes() | {"cells": self.cells}
