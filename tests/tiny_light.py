"""Light students of a few cells, untrained, and a task of made-up words that they can learn."""

import random
from typing import Any

import torch

from edgekit.data import Rows
from edgekit.model import Model
from edgekit.recipe import make_step

KINDS = ("bilstm", "cmow", "cnn", "ngram")
SIZES: dict[str, dict[str, Any]] = {
    "bilstm": {"cells": 8},
    "cmow": {"matrix": 4, "max-length": 32},
    "cnn": {"filters": 8, "widths": "1-3"},
    "ngram": {"ngrams": 300},
}
TEXTS = (
    "my card is lost",
    "is my card not new ?",
    "how do i get a new card",
    "top up my account now please thank you very much indeed sir",
    "a b",
    "Zebra quagga",
    "",
)
LABELS = ("a", "b", "c")


def tiny_step(kind: str, **options: Any) -> Any:
    """The step of a student of ``SIZES``."""
    sizes = {"embedding": 16, "hidden": 16} | SIZES[kind]
    return make_step(f"student-{kind}", sizes | options).step


def tiny_student(
    kind: str, task: str = "text-classification", rows: Rows | None = None, **options: Any
) -> tuple[Model, Rows]:
    """A student of random weights, all away from zero, and rows for it."""
    from edgekit.steps.distill.light import build

    if rows is None and task == "token-classification":
        rows = Rows(words=tuple(tuple(text.split()) or ("x",) for text in TEXTS))
    rows = rows or Rows(texts=TEXTS)
    teacher = outline(task)
    step = tiny_step(kind, **options)
    family, sizes, preprocessor = step.outline(teacher, rows)
    made = build(family, teacher, sizes, preprocessor, 0)
    module: Any = made.module
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=chance) * 0.1
        module.words.weight[0] = 0
    return made, rows


def outline(task: str = "text-classification", labels: tuple[str, ...] = LABELS) -> Model:
    """What a student asks of the model that it replaces, without one."""
    import transformers

    named = {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    module = torch.nn.Linear(1, 1)
    module.config = transformers.PretrainedConfig(**named)  # type: ignore[assignment]
    problem = "single-label" if task == "text-classification" else None
    return Model(module, task, problem, None, None, labels)  # type: ignore[arg-type]


def topics(count: int, seed: int, *, stray: float = 0.45) -> Rows:
    """Texts of 4 to 8 words that are about one of three things; some words are of others'."""
    chance = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = chance.randrange(3)
        words = []
        for _ in range(chance.randint(4, 8)):
            topic = chance.randrange(3) if chance.random() < stray else label
            words.append(f"w{topic}x{chance.randrange(40)}")
        texts.append(" ".join(words))
        labels.append(LABELS[label])
    return Rows(texts=tuple(texts), labels=tuple(labels))
