"""``golden.json``: inputs and the answers that the file gave, for tests inside an app.

Rows are spread over the lengths of the eval set. An app that feeds ``inputs`` must get
``output`` within ``tolerance`` (the spread across processors, not across versions of a model).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.data import Rows
from edgekit.errors import BundleError
from edgekit.preprocess import Encoded

FILE = "golden.json"


def write_golden(content: Mapping[str, Any], folder: Path) -> None:
    (folder / FILE).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def read_golden(folder: Path) -> dict[str, Any]:
    """Raises BundleError when the file is missing or damaged."""
    try:
        content: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise BundleError(
            f"{folder / FILE} cannot be read ({error}); build the bundle again"
        ) from None


def golden_inputs(content: Mapping[str, Any], artifact: Artifact) -> Encoded:
    """The golden rows as inputs, right-padded with zeros (the mask hides them)."""
    names = [tensor.name for tensor in artifact.inputs]
    rows = [row["inputs"] for row in content["rows"]]
    text = "attention_mask" in names
    if not text:
        arrays = {name: np.asarray([row[name] for row in rows]) for name in names}
        return Encoded({name: _narrow(array) for name, array in arrays.items()}, None)
    lengths = np.asarray([len(row[names[0]]) for row in rows], dtype=np.int32)
    arrays = {}
    for name in names:
        array = np.zeros((len(rows), int(lengths.max())), dtype=np.int32)
        for index, row in enumerate(rows):
            array[index, : lengths[index]] = row[name]
        arrays[name] = array
    return Encoded(arrays, lengths)


def golden_texts(content: Mapping[str, Any]) -> Rows | None:
    """The golden rows as texts or words, where the model reads such."""
    rows = content["rows"]

    def column(name: str) -> tuple[Any, ...] | None:
        return tuple(row[name] for row in rows) if all(name in row for row in rows) else None

    texts, words = column("text"), column("words")
    if texts is None and words is None:
        return None
    return Rows(texts=texts, pairs=column("text_pair"), words=words)


def _narrow(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Floats as float32; integers stay, for they are what an integer input takes."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array
