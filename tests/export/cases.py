"""A tiny model of a family with rows and the original's answers to them."""

import copy
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import Rows
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.preprocess import Encoded
from tests.tiny import IMAGE_FAMILIES, TEXT_FAMILIES, TEXT_TASKS, tiny_checkpoint, tiny_texts

Array = np.ndarray[Any, Any]

# Every family, and every task of those whose last layer is their own: what a task adds is alike in
# all others.
ALL = (
    *((family, "text-classification") for family in TEXT_FAMILIES),
    *((family, task) for family in ("bert", "xlnet") for task in TEXT_TASKS[1:]),
    *((family, "image-classification") for family in IMAGE_FAMILIES),
)

# Those whose graphs differ: RoBERTa, DistilBERT and ELECTRA run BERT's.
DISTINCT = (
    *((family, "text-classification") for family in ("bert", "albert", "xlnet", "mobilebert")),
    ("bert", "token-classification"),
    ("bert", "sentence-embedding"),
    ("resnet", "image-classification"),
    ("vit", "image-classification"),
)

# How near to the original a random tiny model's int8 answers are; those of real ones are nearer.
INT8_COSINE = 0.98


@dataclass(frozen=True)
class Case:
    model: Model
    rows: Encoded
    expected: Array

    def feeds(self) -> dict[str, Array]:
        """All rows in one batch, as ONNX and TorchScript take them."""
        return {
            name: array.astype(np.int64) if array.dtype == np.int32 else array
            for name, array in self.rows.arrays.items()
        }

    def unpadded(self, index: int) -> dict[str, Array]:
        """One row alone."""
        length = None if self.rows.lengths is None else self.rows.lengths[index]
        return {
            name: array[index : index + 1, :length] if length else array[index : index + 1]
            for name, array in self.feeds().items()
        }

    def answers(self, outputs: Array) -> Array:
        """One vector a row; for token-classification one a token."""
        if self.model.task != "token-classification":
            return outputs
        mask = self.rows.arrays["attention_mask"].astype(bool)
        return outputs[mask[:, : outputs.shape[1]]]

    def difference(self, outputs: Array) -> float:
        return float(np.abs(self.answers(outputs) - self.answers(self.expected)).max())

    def cosine(self, outputs: Array) -> float:
        """Of all answers, end to end."""
        ours, theirs = self.answers(outputs).ravel(), self.answers(self.expected).ravel()
        return float(ours @ theirs / (np.linalg.norm(ours) * np.linalg.norm(theirs)))


def each_case(
    *quick: tuple[str, str], cases: Sequence[tuple[str, str]] = ALL
) -> pytest.MarkDecorator:
    """``family`` and ``task`` of all cases; those that are not ``quick`` are slow."""
    slow = [pytest.param(*each, marks=pytest.mark.slow) for each in cases if each not in quick]
    return pytest.mark.parametrize(("family", "task"), [*quick, *slow])


def layers_of(family: str) -> int:
    """Two where a second layer is not only more of the same: ALBERT's is the first again."""
    return 2 if family in ("bert", "albert") else 1


def case(family: str, task: str = "text-classification") -> Case:
    """With a module of its own: what a test does to it, no other test sees."""
    made = _case(family, task)
    return replace(made, model=replace(made.model, module=copy.deepcopy(made.model.module)))


@functools.cache
def _case(family: str, task: str) -> Case:
    folder = Path(tempfile.mkdtemp())
    if family in IMAGE_FAMILIES:
        task = "image-classification"
        pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
        rows = Rows(images=pictures)
    else:
        rows = Rows(texts=tuple(tiny_texts(10)))
    checkpoint = tiny_checkpoint(folder / "checkpoint", family, task, layers=layers_of(family))
    model = load_model(identify(str(checkpoint)))
    assert model.preprocessor is not None
    encoded = model.preprocessor.encode(rows)
    return Case(model, encoded, reference_outputs(model, encoded))


def tells_of_this_machine(content: bytes) -> list[str]:
    """Traces of where a file was made."""
    here = Path(__file__).resolve().parents[2]
    marks = (str(here), str(Path.home()), tempfile.gettempdir(), "site-packages", ".py:", '.py"')
    return [mark for mark in marks if mark.encode() in content]
