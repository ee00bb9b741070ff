"""``.npz`` files: images with labels, or the inputs of a plain module."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data.labels import parse_label
from edgekit.data.rows import Columns, Rows
from edgekit.data.wording import flag, listing, one_line, row_places
from edgekit.errors import DataError

# Names that are usual for a role, the likeliest first. Keras puts both splits into one file, as
# x_train, y_train, x_test and y_test.
_IMAGES = ("x", "images", "image", "data")
_LABELS = ("y", "labels", "label", "targets")


def read_npz(
    path: Path, source: str, split: str, *, task: str, problem: str | None, columns: Columns
) -> tuple[Rows, dict[str, str]]:
    """Images and labels, or for a plain module all arrays beside the labels.

    Raises DataError for arrays that are missing, of unequal length, or no uint8 images.
    """
    arrays = _load(path, source)
    used: dict[str, str] = {}
    label = _find(arrays, "label", columns.label, _LABELS, split, source)
    if label is not None:
        used["label"] = label
    if task == "image-classification":
        image = _find(arrays, "text", columns.text, _IMAGES, split, source)
        if image is None:
            raise DataError(
                f"no images in {source} (it has: {listing(arrays)}); name them with --text ARRAY"
            )
        used = {"text": image, **used}
        arrays = {name: arrays[name] for name in used.values()}
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        found = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
        raise DataError(f"{source} needs arrays with one entry a row (it has: {found}); rewrite it")
    places = row_places(next(iter(counts.values())))
    labels = None
    if label is not None:
        labels = _labels(arrays.pop(label), source, task=task, problem=problem)
    if task == "image-classification":
        images = _images(arrays[used["text"]], used["text"], source)
        return Rows(images=images, labels=labels, places=places), used
    if not arrays:
        raise DataError(f"{source} has only labels; add one array for each input of the module")
    return Rows(arrays=arrays, labels=labels, places=places), used


def _load(path: Path, source: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: np.atleast_1d(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{source} cannot be read as an .npz of plain arrays ({one_line(error)}); "
            "write it with numpy.savez"
        ) from None


def _find(
    arrays: Mapping[str, Any],
    role: str,
    asked: str | None,
    usual: Sequence[str],
    split: str,
    source: str,
) -> str | None:
    if asked is not None and asked not in arrays:
        raise DataError(
            f"no array '{asked}' in {source} (it has: {listing(arrays)}); "
            f"name it with {flag(role)} ARRAY"
        )
    keras = f"{usual[0]}_{'train' if split == 'train' else 'test'}"
    return asked or next((name for name in (keras, *usual) if name in arrays), None)


def _labels(array: np.ndarray, source: str, *, task: str, problem: str | None) -> tuple[Any, ...]:
    """One label a row; for multi-label also [N, C] of 0 and 1."""
    if problem == "multi-label" and array.ndim == 2:
        return tuple(tuple(str(number) for number in np.flatnonzero(row)) for row in array)
    if array.size != len(array):
        raise DataError(
            f"the labels of {source} are {list(array.shape)}; give one for each row, "
            "such as the argmax of one-hot labels"
        )
    return tuple(
        parse_label(value, f"row {number} of {source}", task=task, problem=problem)
        for number, value in enumerate(array.reshape(-1).tolist(), start=1)
    )


def _images(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """uint8 [N, H, W, C] from that, or from [N, H, W]."""
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
        raise DataError(
            f"'{name}' in {source} is {array.dtype} {list(array.shape)}; give pixels as uint8 "
            "[rows, height, width] or [rows, height, width, 1 or 3]"
        )
    return images
