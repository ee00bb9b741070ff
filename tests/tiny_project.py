"""A tiny random checkpoint with rows that it answers rightly: a whole project in a folder."""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.data import Rows
from edgekit.model import identify, load_model, reference_outputs, save_model
from edgekit.workbench import encode
from tests.tiny import WORDS, tiny_checkpoint

_MODULE = """
import torch

def small():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 5))
    return module, {"features": torch.randn(8, 64)}
"""


@dataclass(frozen=True)
class TinyProject:
    checkpoint: Path
    train: Path
    eval: Path


def tiny_project(
    folder: Path,
    family: str = "bert",
    *,
    rows: int = 60,
    seed: int = 0,
    layers: int = 1,
    **config: Any,
) -> TinyProject:
    """Text classification whose labels are the model's own answers, so that it is always right."""
    checkpoint = tiny_checkpoint(folder / "checkpoint", family, seed=seed, layers=layers, **config)
    model = load_model(identify(str(checkpoint)))
    # Training text uses half of the words, so that there is something to trim.
    texts = [*random_texts(rows, seed, WORDS[:30]), *random_texts(rows, seed + 1, WORDS)]
    logits = reference_outputs(model, encode(model, Rows(texts=tuple(texts))))
    # A random model answers nearly everything alike; centred, it gives each label its share.
    centre = np.median(logits, axis=0)
    module: Any = model.module
    with torch.no_grad():
        module.classifier.bias -= torch.from_numpy(centre)
    save_model(model, checkpoint)
    labels = [model.labels[answer] for answer in (logits - centre).argmax(1)]
    for name, part in (("train", slice(rows)), ("eval", slice(rows, None))):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(zip(texts[part], labels[part], strict=True))
    return TinyProject(checkpoint, folder / "train.csv", folder / "eval.csv")


def random_texts(count: int, seed: int, words: Sequence[str]) -> list[str]:
    """Texts of 1 to 20 of the words, all different."""
    chooser = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(chooser.choices(words, k=chooser.randint(1, 20)))] = None
    return list(found)


def plain_module(folder: Path) -> str:
    """A module of no family in ``mine.py``, and what the command line calls it from there."""
    (folder / "mine.py").write_text(_MODULE)
    return "mine:small"
