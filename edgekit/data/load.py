"""From what ``--data`` and ``--eval`` name to the rows of two splits."""

import contextlib
import difflib
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import sha256
from edgekit.data.arrays import read_npz
from edgekit.data.columns import column_notes, rows_of_table
from edgekit.data.conll import read_conll
from edgekit.data.pictures import read_picture_folder
from edgekit.data.rows import Columns, Data, Rows, apart, together
from edgekit.data.table import TABLE_SUFFIXES, read_hub, read_lines, read_table
from edgekit.data.unlabeled import without_known
from edgekit.errors import DataError

_EVAL_SHARE = 0.1
_EVAL_MOST = 2000
_READS = {
    "text-classification": "a .csv, .tsv, .jsonl or .parquet file",
    "sentence-embedding": "a .csv, .tsv, .jsonl or .parquet file",
    "token-classification": "a CoNLL, .jsonl or .parquet file",
    "image-classification": "an .npz file or a folder with one folder of pictures for each class",
    "module": "an .npz file with one array for each input",
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?(@[\w.-]+)?")
_FILE_SUFFIXES = TABLE_SUFFIXES | {".npz", ".conll", ".txt"}


def identify_data(reference: str | None) -> str | None:
    """Digest of a file's or folder's bytes, or the name of a hub data set; parses nothing.

    Raises DataError when nothing of that name exists.
    """
    if reference is None:
        return None
    path = _locate(reference)
    if path is None:
        return f"hub:{reference}"
    try:
        if path.is_file():
            return sha256(path)
        digest = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {reference}: {error.strerror}") from None


def load_data(
    train: str | None,
    eval: str | None,
    *,
    task: str,
    problem: str | None,
    columns: Columns,
    seed: int,
    unlabeled: Sequence[str] = (),
) -> Data:
    """Read all references for a task; set eval rows aside when only ``train`` is given.

    Raises DataError, with file and line, for whatever cannot be read as rows of this task.
    """
    if columns.text is not None and task == "module":
        raise DataError(f"--text {columns.text} means nothing to a plain module; leave it out")
    if columns.text_pair is not None and task not in ("text-classification", "sentence-embedding"):
        raise DataError(f"--text-pair {columns.text_pair} means nothing to {task}; leave it out")
    used: dict[str, str] = {}
    notes: list[str] = []
    parts: dict[str, Rows] = {}
    for split, reference in (("train", train), ("eval", eval)):
        if reference is None:
            continue
        rows, chosen = _read(reference, split, task=task, problem=problem, columns=columns)
        parts[split] = rows
        if chosen != used:
            notes += column_notes(reference, chosen, columns)
        used = used or chosen
        if rows.labels is None:
            notes.append(f"no labels in {reference}: its rows can show agreement, not accuracy")
    if train is not None and eval is None and len(parts["train"]) > 1:
        whole = len(parts["train"])
        parts["train"], parts["eval"] = _set_aside(parts["train"], seed)
        notes.append(
            f"no --eval: {len(parts['eval']):,} of the {whole:,} rows of {train} are set aside "
            f"for the figures (seed {seed}), which flatter a model that was trained on that file"
        )
    if len(parts) == 2:
        known = set(parts["train"].contents())
        seen = sum(content in known for content in parts["eval"].contents())
        if seen:
            notes.append(
                f"{seen:,} of {len(parts['eval']):,} eval rows stand in the training rows as well; "
                "figures on them flatter a model that was trained on those"
            )
    pool = None
    for reference in unlabeled:
        rows, _ = _read(
            reference, "train", task=task, problem=problem, columns=columns, labels=False
        )
        if task == "sentence-embedding":
            rows = apart(rows)
        _check_alike(rows, reference, parts.get("train"), task)
        pool = rows if pool is None else together(pool, rows)
    if pool is not None:
        pool, said = without_known(pool, parts.get("train"), parts.get("eval"))
        notes.append(said)
    return Data(parts.get("train"), parts.get("eval"), used, tuple(notes), pool)


def _check_alike(rows: Rows, reference: str, train: Rows | None, task: str) -> None:
    """Refuse rows that cannot stand beside the training rows."""
    if (
        train is None
        or task == "sentence-embedding"
        or (rows.pairs is None) == (train.pairs is None)
    ):
        return
    counts = ("two texts", "one") if rows.pairs else ("one text", "two")
    raise DataError(
        f"{reference} holds {counts[0]} a row, and the training rows hold {counts[1]}; give rows "
        "like those, or name the columns with --text and --text-pair"
    )


def _locate(reference: str) -> Path | None:
    """The path that a reference names, or ``None`` for the name of a hub data set."""
    path = Path(reference).expanduser()
    with contextlib.suppress(OSError):  # a name too long, a folder that we may not look into
        if path.exists():
            return path
    if _HUB_NAME.fullmatch(reference) and path.suffix.lower() not in _FILE_SUFFIXES:
        library = importlib.util.find_spec("datasets")
        # A folder named "datasets" in the working directory is found too, without an origin.
        if library is not None and library.origin is not None:
            return None
        raise DataError(
            f"no file or folder {reference}; correct the path, or, if it names a hub data set, "
            "pip install 'edgekit[hub]'"
        )
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    mend = f"did you mean {path.with_name(close[0])}?" if close else "correct the path"
    raise DataError(f"no file or folder {reference}; {mend}")


def _read(
    reference: str,
    split: str,
    *,
    task: str,
    problem: str | None,
    columns: Columns,
    labels: bool = True,
) -> tuple[Rows, dict[str, str]]:
    """One reference as rows, and the column that plays each role; labels only if asked for."""
    path = _locate(reference)
    table = None
    if path is None:
        table = read_hub(reference, split) if task != "module" else None
    elif task in ("image-classification", "module"):
        if path.suffix.lower() == ".npz" and path.is_file():
            return read_npz(path, reference, split, task=task, problem=problem, columns=columns)
        if path.is_dir() and task == "image-classification":
            return read_picture_folder(path, reference, columns), {}
    elif path.is_file():
        suffix = path.suffix.lower()
        tagged = task == "token-classification"
        if suffix == ".txt" and not labels:
            table, columns = read_lines(path, reference, words=tagged), Columns()
        elif suffix in TABLE_SUFFIXES and not (tagged and suffix in (".csv", ".tsv")):
            table = read_table(path, reference, columns)
        elif tagged and suffix not in (".csv", ".npz"):
            return read_conll(path, reference, columns)
    if table is not None:
        return rows_of_table(table, task=task, problem=problem, columns=columns, labels=labels)
    raise DataError(f"{reference} is no data for {task}; give {_READS[task]}")


def _set_aside(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """Rows to train with, and rows to measure with: every label keeps its share in both.

    Sorted by label (shuffled within one) and picked at even steps from a random start.
    """
    count = min(_EVAL_MOST, max(1, round(len(rows) * _EVAL_SHARE)))
    random = np.random.default_rng(seed)
    order = random.permutation(len(rows)).tolist()
    if rows.labels is not None:
        strata = [_stratum(label) for label in rows.labels]
        order.sort(key=lambda number: strata[number])
    steps = (np.arange(count) + random.random()) * len(rows) / count
    chosen = {order[int(step)] for step in steps}
    rest = [number for number in range(len(rows)) if number not in chosen]
    return rows.take(rest), rows.take(sorted(chosen))


def _stratum(label: Any) -> Any:
    """What makes two labels alike: for tags and label sets, the same ones in any order."""
    return sorted(set(label)) if isinstance(label, tuple) else label
