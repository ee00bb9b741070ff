"""Tiny data files in every format that edgekit reads.

Texts are made of words that the checkpoints of ``tests.tiny`` know, and differ in length.
"""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import WORDS

LABELS = ("a", "b", "c")
TAGS = ("O", "B-person", "I-person", "B-location")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def texts(count: int, seed: int = 0) -> list[str]:
    """Sentences of 2 to 20 words, all different."""
    chance = random.Random(seed)
    return [
        " ".join([*chance.choices(WORDS, k=chance.randint(1, 19)), str(number)])
        for number in range(count)
    ]


def text_file(
    path: Path,
    count: int = 30,
    labels: Sequence[str] = LABELS,
    problem: str = "single-label",
    pair: bool = False,
    seed: int = 0,
) -> Path:
    """Texts (and pairs) with labels, in the format that the path's suffix names.

    Labels take turns; a multi-label row has the labels of the bits of its number; regression and
    similarity rows have scores of 0.0, 0.5, 1.0 ...
    """
    names = ["sentence1", "sentence2", "label"] if pair else ["text", "label"]
    first, second = texts(count, seed), texts(count, seed + 1)
    rows = []
    for number in range(count):
        label: Any = labels[number % len(labels)]
        if problem == "regression":
            label = number % 10 / 2
        if problem == "multi-label":
            label = [name for bit, name in enumerate(labels) if number >> bit & 1]
        inputs = [first[number], second[number]] if pair else [first[number]]
        rows.append([*inputs, label])
    return table_file(path, names, rows)


def table_file(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Rows under these column names as CSV, TSV, JSON lines or Parquet, by the path's suffix."""
    records = [dict(zip(names, row, strict=True)) for row in rows]
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(names)
            writer.writerows(
                ["|".join(cell) if isinstance(cell, list) else cell for cell in row] for row in rows
            )
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def tagged_file(path: Path, count: int = 30, tags: Sequence[str] = TAGS, seed: int = 0) -> Path:
    """Sentences with one tag a word: JSON lines or Parquet by suffix, and CoNLL otherwise."""
    chance = random.Random(seed)
    sentences = [
        [(word, chance.choice(tags)) for word in text.split()] for text in texts(count, seed)
    ]
    if path.suffix in (".jsonl", ".parquet"):
        rows = [[list(column) for column in zip(*sentence, strict=True)] for sentence in sentences]
        return table_file(path, ["tokens", "ner_tags"], rows)
    blocks = ["".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in sentences]
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


def images(count: int = 12, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [count, size, size, channels]."""
    shape = (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image_npz(path: Path, count: int = 12, classes: int = 3, **options: int) -> Path:
    """Images ``x`` and class ids ``y`` that take turns."""
    np.savez(path, x=images(count, **options), y=np.arange(count) % classes)
    return path


def image_folder(
    folder: Path, count: int = 12, labels: Sequence[str] = LABELS, **options: int
) -> Path:
    """PNG files in one folder for each label."""
    from PIL import Image

    for number, pixels in enumerate(images(count, **options)):
        home = folder / labels[number % len(labels)]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze()).save(home / f"{number:03}.png")
    return folder


def module_npz(path: Path, inputs: Mapping[str, np.ndarray], labels: Sequence[int] = ()) -> Path:
    """Arrays for a plain module by input name, and class ids ``y`` if there are any."""
    extra = {"y": np.asarray(labels)} if len(labels) else {}
    np.savez(path, **inputs, **extra)
    return path
