"""A tiny random checkpoint with rows that it answers rightly: a whole project in a folder."""

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.data import Rows
from edgekit.model import identify, load_model, reference_outputs
from edgekit.workbench import encode
from tests.tiny import WORDS, tiny_checkpoint


@dataclass(frozen=True)
class TinyProject:
    checkpoint: Path
    train: Path
    eval: Path


def tiny_project(
    folder: Path, family: str = "bert", *, rows: int = 60, seed: int = 0
) -> TinyProject:
    """Text classification whose labels are the model's own answers, so that it is always right."""
    checkpoint = tiny_checkpoint(folder / "checkpoint", family, seed=seed)
    model = load_model(identify(str(checkpoint)))
    texts = random_texts(2 * rows, seed)
    answers = reference_outputs(model, encode(model, Rows(texts=tuple(texts)))).argmax(1)
    labels = [model.labels[answer] for answer in answers]
    assert len(np.unique(answers)) > 1, "this seed answers everything alike; choose another"
    for name, part in (("train", slice(rows)), ("eval", slice(rows, None))):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(zip(texts[part], labels[part], strict=True))
    return TinyProject(checkpoint, folder / "train.csv", folder / "eval.csv")


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of 1 to 20 known words, all different."""
    chooser = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(chooser.choices(WORDS, k=chooser.randint(1, 20)))] = None
    return list(found)
