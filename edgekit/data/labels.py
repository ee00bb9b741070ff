"""Labels: cells as labels, and labels as the numbers that metrics take."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.data.rows import Rows
from edgekit.data.wording import listing
from edgekit.errors import DataError


def parse_label(
    value: Any, where: str, *, task: str, problem: str | None
) -> str | float | tuple[str, ...]:
    """One cell as the label of a row: a name, a number, or the labels of a multi-label row.

    Raises DataError for an empty label and for a score that is not a number.
    """
    if problem == "multi-label":
        parts = value if isinstance(value, list) else plain(value).split("|")
        return tuple(dict.fromkeys(filter(None, map(plain, parts))))
    text = plain(value)
    if not text:
        raise DataError(f"{where} has no label; fill it in or remove the row")
    if problem != "regression" and task != "sentence-embedding":
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}: label '{text:.40}' is not a number, and this model predicts one; "
            "correct it, or name another column with --label"
        )
    return number


def plain(value: Any) -> str:
    """A label as text; a number that is whole in all but type (3.0) loses the point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def label_ids(
    rows: Rows, labels: Sequence[str], *, task: str, problem: str | None, source: str
) -> np.ndarray | tuple[np.ndarray, ...]:
    """The labels of the rows as numbers that metrics take; ``labels`` are the model's, by id.

    Single-label: int64 [N]. Multi-label: int64 [N, C] of 0 and 1. Regression and sentence
    embedding: float64 [N]. Token classification: for each row int64 [its words].
    Raises DataError for rows without labels, or with one that the model does not know.
    """
    if rows.labels is None:
        raise DataError(f"no labels in {source}; name the column that holds them with --label")
    if problem == "regression" or task == "sentence-embedding":
        return np.array(rows.labels, dtype=np.float64)
    each = [(label,) if isinstance(label, str) else label for label in rows.labels]
    ids = _ids({label for row in each for label in row}, labels)
    for number, row in enumerate(each):
        for label in row:
            if label not in ids:
                where = rows.places[number] if rows.places else f"row {number + 1}"
                known = listing(labels) if labels else "class ids 0, 1, 2, …"
                raise DataError(
                    f"label '{label:.40}' at {where} of {source} is unknown to the model "
                    f"(it knows: {known}); correct it, or name another column with --label"
                )
    if task == "token-classification":
        return tuple(np.array([ids[tag] for tag in row], dtype=np.int64) for row in each)
    if problem == "multi-label":
        classes = len(labels) or 1 + max(ids.values(), default=-1)
        chosen = np.zeros((len(each), classes), dtype=np.int64)
        for number, row in enumerate(each):
            chosen[number, [ids[label] for label in row]] = 1
        return chosen
    return np.array([ids[row[0]] for row in each], dtype=np.int64)


def _ids(given: set[str], labels: Sequence[str]) -> dict[str, int]:
    """Label to class id. A file holds ids when no label is a name, and every one is an id."""
    names = {label: number for number, label in enumerate(labels)}
    ids = {label: int(label) for label in given if label.isascii() and label.isdecimal()}
    if not labels:  # a plain module does not say which classes it knows
        return ids
    all_ids = len(ids) == len(given) and all(number < len(labels) for number in ids.values())
    return ids if all_ids and not given & names.keys() else names
