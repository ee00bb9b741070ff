"""The n-gram student: a table of word 1- to 4-grams, their mean, and two linear layers.

Ye et al. 2022, "Sparse Distillation", arXiv 2110.08536. Rules, beside those of ``light``:

1. The vocabulary is the ``ngrams`` most frequent word 1- to 4-grams of the training text, not
   hashed, by the rules of ``edgekit.ngrams``; a text is a bag of them with multiplicity.
2. An n-gram's first vector is the mean of its words' (rule 4 of ``words``).
3. Embedding → mean → dropout → Linear → tanh → dropout → Linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgekit.steps.distill.light import LightStudent

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model


@dataclass(frozen=True)
class StudentNgram(LightStudent):
    """Replaces the model by the mean of its n-grams' vectors; the fastest student.

    ngrams: how many there are at most. embedding: numbers of a vector. hidden: of the layer in
    front of the classifier.
    """

    ngrams: int = 20_000
    embedding: int = 128
    hidden: int = 256
    word_dropout: float = 0.2

    name: ClassVar[str] = "student-ngram"
    _LONGEST: ClassVar[int] = 512

    def outline(self, model: Model, rows: Rows) -> tuple[str, dict[str, Any], Any]:
        from edgekit.ngrams import most_frequent
        from edgekit.preprocess import NgramPreprocessor

        known = most_frequent((*(rows.texts or ()), *(rows.pairs or ())), self.ngrams)
        pair = rows.pairs is not None
        inputs = ("input_ids", "attention_mask", *(("token_type_ids",) if pair else ()))
        sizes = {
            "vocab_size": len(known),
            "embedding_size": self.embedding,
            "hidden_size": self.hidden,
            "pair": pair,
        }
        return "edgekit-ngram", sizes, NgramPreprocessor(known, self._LONGEST, inputs)

    def begin(self, student: Model, teacher: Model) -> None:
        import torch

        from edgekit.steps.distill.words import word_vectors

        known = self.words(student)[2:]
        words = sorted({word for each in known for word in each.split(" ")})
        vectors = word_vectors(teacher, words, self.embedding, 0)
        module: Any = student.module
        with torch.no_grad():
            module.words.weight[:2] = 0
            if vectors is not None:
                place = {word: number for number, word in enumerate(words)}
                for number, each in enumerate(known, 2):
                    rows = [place[word] for word in each.split(" ")]
                    module.words.weight[number] = torch.from_numpy(vectors[rows].mean(0))

    def words(self, student: Model) -> list[str]:
        preprocessor: Any = student.preprocessor
        return list(preprocessor.ngrams)

    def _sizes(self) -> dict[str, float]:
        sizes = {"ngrams": self.ngrams, "embedding": self.embedding, "hidden": self.hidden}
        return super()._sizes() | sizes
