"""Rows to calibrate on and rows to measure with, read from the files that people have.

Rules:

1. The ending of the name tells the format. ``.csv`` is RFC 4180 in UTF-8. ``.tsv`` is one row a
   line, a cell may be quoted. ``.jsonl``, ``.ndjson`` and ``.json`` hold one object a line.
   ``.parquet`` may hold list columns. ``.npz`` holds images and labels, or the arrays that a plain
   module takes, by input name. A folder holds one folder of pictures for each class. For
   token classification every other ending is CoNLL: the word in the first column, its tag in the
   last, a blank line between sentences.
2. What is no path is the name of a hub data set, as ``name``, ``name:config`` or
   ``name:config@split``. ``--data`` reads its ``train`` split, ``--eval`` its ``validation``
   split, or ``test`` where there is no validation.
3. A column is one that the caller named, or else one whose name is usual for its role. Numbers
   name the columns of a CSV or TSV file without a header line, counted from 0.
4. The labels of a multi-label row are a list, or one cell with ``|`` between them (an empty cell:
   none of the labels). Labels are names, or class ids where every one of them is an id.
5. Training rows serve calibration and vocabulary, eval rows serve the figures, and no row serves
   both: without ``eval``, a tenth of the training rows (at most 2,000) is set aside for it.
"""

import csv
import dataclasses
import difflib
import hashlib
import importlib.util
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import units
from edgekit.artifact import sha256
from edgekit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_EVAL_SHARE = 0.1
_EVAL_MOST = 2000
# Pictures are decoded into memory; a folder that would take more is better given in part.
_PICTURE_BYTES = 2 * 10**9

_TEXTS = (
    *("text", "sentence", "utterance", "query", "question", "review", "comment", "message"),
    *("tweet", "content", "document", "input"),
)
_PAIRS = (
    *(("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2")),
    *(("sentence_a", "sentence_b"), ("text_a", "text_b"), ("text", "text_pair")),
    *(("premise", "hypothesis"), ("question", "sentence")),
)
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "label", "ner")
_LABELS = (
    *("label", "labels", "category", "intent", "class", "target", "score", "similarity_score"),
    *("relatedness_score", "similarity", "sentiment", "emotion", "topic", "rating", "stars", "y"),
)
_PICTURES = ("image", "img", "picture")
_IMAGE_ARRAYS = ("x", "images", "image", "data")
_LABEL_ARRAYS = ("y", "labels", "label", "targets")
_PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_TABLE_SUFFIXES = {".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"}
_READS = {
    "text-classification": "a .csv, .tsv, .jsonl or .parquet file",
    "sentence-embedding": "a .csv, .tsv, .jsonl or .parquet file",
    "token-classification": "a CoNLL, .jsonl or .parquet file",
    "image-classification": "an .npz file or a folder with one folder of pictures for each class",
    "module": "an .npz file with one array for each input",
}
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?(@[\w.-]+)?")
_TAG = re.compile(r"O|[BIESLU]-\S+")


@dataclass(frozen=True)
class Rows:
    """N rows of one kind: texts (with or without pairs), words, images or arrays.

    images: uint8 [N, H, W, C], or where sizes differ an object array [N] of uint8 [H, W, C].
    arrays: [N, ...] each, by input name.
    labels: ``str``; ``float`` for regression and similarity scores; a tuple of ``str`` for the tags
        of a row's words or the labels of a multi-label row.
    places: where each row stands in its file, for messages: ``line 7``.
    """

    texts: tuple[str, ...] | None = None
    pairs: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    images: np.ndarray | None = None
    arrays: Mapping[str, np.ndarray] | None = None
    labels: tuple[Any, ...] | None = None
    places: tuple[str, ...] | None = None

    def __len__(self) -> int:
        for column in (self.texts, self.words, self.images):
            if column is not None:
                return len(column)
        return len(next(iter(self.arrays.values()))) if self.arrays else 0

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """The rows at ``indices``, in that order."""
        chosen = [int(index) for index in indices]

        def some(column: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
            return None if column is None else tuple(column[index] for index in chosen)

        return Rows(
            texts=some(self.texts),
            pairs=some(self.pairs),
            words=some(self.words),
            images=None if self.images is None else self.images[chosen],
            arrays=self.arrays and {name: array[chosen] for name, array in self.arrays.items()},
            labels=some(self.labels),
            places=some(self.places),
        )


@dataclass(frozen=True)
class Columns:
    """The columns that the caller named; ``None`` leaves the choice to us."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Data:
    """Training and eval rows, the columns they came from, and sentences to show the caller."""

    train: Rows | None
    eval: Rows | None
    columns: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """Named columns of equal length, before anyone said what each is for."""

    source: str
    columns: Mapping[str, Sequence[Any]]
    places: tuple[str, ...]

    @property
    def listing(self) -> str:
        return _listing(self.columns)


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
) -> Data:
    """Read both references for a task; set eval rows aside when only ``train`` is given.

    Raises DataError, with file and line, for whatever cannot be read as rows of this task.
    """
    for name, flag, tasks in (
        (columns.text, "--text", set(_READS) - {"module"}),
        (columns.text_pair, "--text-pair", {"text-classification", "sentence-embedding"}),
    ):
        if name is not None and task not in tasks:
            raise DataError(f"{flag} {name} means nothing to {task}; leave it out")
    used: dict[str, str] = {}
    notes: list[str] = []
    parts: dict[str, Rows] = {}
    for split, reference in (("train", train), ("eval", eval)):
        if reference is None:
            continue
        parts[split], chosen = _read(
            reference, split, task=task, problem=problem, columns=columns
        )
        notes += _column_notes(reference, chosen, columns, parts[split])
        used = used or chosen
    if train is not None and eval is None and len(parts["train"]) > 1:
        whole = len(parts["train"])
        parts["train"], parts["eval"] = _set_aside(parts["train"], seed)
        notes.append(
            f"no --eval: {len(parts['eval']):,} of the {whole:,} rows of {train} are set aside "
            f"for the figures (seed {seed}); they flatter a model that was trained on that file"
        )
    if len(parts) == 2:
        known = set(_contents(parts["train"]))
        seen = sum(content in known for content in _contents(parts["eval"]))
        if seen:
            notes.append(
                f"{seen:,} of {len(parts['eval']):,} eval rows also stand in the training data, "
                "and figures on them flatter a model that was trained on it"
            )
    return Data(parts.get("train"), parts.get("eval"), used, tuple(notes))


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
    ids = _numbering({label for row in each for label in row}, labels)
    for number, row in enumerate(each):
        for label in row:
            if label not in ids:
                where = rows.places[number] if rows.places else f"row {number + 1}"
                known = _listing(labels) if labels else "class ids 0, 1, 2, …"
                raise DataError(
                    f"label '{label}' at {where} of {source} is unknown to the model (it knows: "
                    f"{known}); correct it, or name another column with --label"
                )
    if task == "token-classification":
        return tuple(np.array([ids[tag] for tag in row], dtype=np.int64) for row in each)
    if problem == "multi-label":
        classes = len(labels) or 1 + max(ids.values(), default=-1)
        hot = np.zeros((len(each), classes), dtype=np.int64)
        for number, row in enumerate(each):
            hot[number, [ids[label] for label in row]] = 1
        return hot
    return np.array([ids[row[0]] for row in each], dtype=np.int64)


def _numbering(given: set[str], labels: Sequence[str]) -> dict[str, int]:
    """Label to id. A file of ids is one where no label is a name and all are ids."""
    names = {label: number for number, label in enumerate(labels)}
    if given & names.keys():
        return names
    ids = {label: int(label) for label in given if label.isascii() and label.isdecimal()}
    # A plain module does not say which classes it knows: then any id will do.
    fits = len(ids) == len(given) and all(i < len(labels) or not labels for i in ids.values())
    return ids if fits or not labels else names


# Where data is, and which reader it takes.


def _locate(reference: str) -> Path | None:
    """The path that a reference names, or ``None`` for the name of a hub data set."""
    path = Path(reference).expanduser()
    if path.exists():
        return path
    suffix = path.suffix.lower()
    if _HUB_NAME.fullmatch(reference) and suffix not in _TABLE_SUFFIXES | {".npz", ".conll"}:
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
    reference: str, split: str, *, task: str, problem: str | None, columns: Columns
) -> tuple[Rows, dict[str, str]]:
    """One reference as rows, and the column that plays each role."""
    path = _locate(reference)
    table = None
    if path is None:
        table = _read_hub(reference, split) if task != "module" else None
    elif task in ("image-classification", "module"):
        if path.suffix.lower() == ".npz" and path.is_file():
            return _read_npz(path, reference, split, task=task, problem=problem, columns=columns)
        if path.is_dir() and task == "image-classification":
            return _read_picture_folder(path, reference, columns), {}
    elif path.is_file():
        suffix = path.suffix.lower()
        tagged = task == "token-classification"
        if suffix in _TABLE_SUFFIXES and not (tagged and suffix in (".csv", ".tsv")):
            table = _read_table(path, reference, columns)
        elif tagged and suffix not in (".csv", ".npz"):
            return _read_conll(path, reference, columns), {}
    if table is not None:
        return _rows(table, task=task, problem=problem, columns=columns)
    raise DataError(f"{reference} is no data for {task}; give {_READS[task]}")


def _read_table(path: Path, source: str, columns: Columns) -> _Table:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, source)
    text = _read_text(path, source)
    if suffix == ".csv":
        return _cells(_csv_records(text, source), source, columns)
    if suffix == ".tsv":
        return _cells(_tsv_records(text), source, columns)
    return _read_json_lines(text, source)


def _read_text(path: Path, source: str) -> str:
    """The file's text, without a byte order mark and never empty."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {source}: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"line {line} of {source} is not UTF-8; convert the file, for example with "
            "iconv -f latin1 -t utf-8"
        ) from None
    if not text.strip():
        raise DataError(f"{source} is empty; give a file with rows")
    return text


# Tables: CSV, TSV, JSON lines, Parquet, the hub.


def _csv_records(text: str, source: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on; blank lines are no records."""
    # Strict, because an open quote would otherwise swallow the rest of the file unnoticed.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"the row at line {line} of {source} is not valid CSV ({error}); close its quotes, "
                "and double a quote inside a quoted cell"
            ) from None
        if cells:
            yield line, cells


def _tsv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """One record a line. Quotes count where they are well formed, and are text where not:
    half of the TSV files in use are written by tools that quote, half by tools that do not."""
    for line, content in enumerate(text.split("\n"), start=1):
        content = content.removesuffix("\r")
        if not content:
            continue
        try:
            yield line, next(csv.reader([content], delimiter="\t", strict=True))
        except csv.Error:
            yield line, content.split("\t")


def _cells(records: Iterator[tuple[int, list[str]]], source: str, asked: Columns) -> _Table:
    """Records under the names of the header line, or under positions where there is none."""
    rows = list(records)
    first = [cell.strip() for cell in rows[0][1]]
    named = [name for name in dataclasses.astuple(asked) if name is not None]
    # Positions that all stand in the first line as well are names (pandas writes such headers).
    if named and all(name.isdecimal() for name in named) and not set(named) <= set(first):
        names = [str(position) for position in range(len(first))]
    else:
        names, rows = first, rows[1:]
    if not rows:
        raise DataError(f"{source} has a header line but no rows; give a file with rows")
    twice = [name for name in names if name and names.count(name) > 1]
    if twice:
        raise DataError(f"{source} has two columns '{twice[0]}'; rename one")
    for line, cells in rows:
        if len(cells) != len(names):
            raise DataError(
                f"line {line} of {source} has {_count(len(cells), 'cell')}, and the first line has "
                f"{len(names)}; quote a cell that contains the separator"
            )
    columns = {name: [cells[number] for _, cells in rows] for number, name in enumerate(names)}
    return _Table(source, columns, tuple(f"line {line}" for line, _ in rows))


def _read_json_lines(text: str, source: str) -> _Table:
    objects: dict[int, dict[str, Any]] = {}
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            fields = json.loads(content)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise DataError(f"line {line} of {source} is no JSON object; write one object a line")
        objects[line] = fields
    names = dict.fromkeys(name for fields in objects.values() for name in fields)
    columns = {name: [fields.get(name) for fields in objects.values()] for name in names}
    return _Table(source, columns, tuple(f"line {line}" for line in objects))


def _read_parquet(path: Path, source: str) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source} needs pyarrow; pip install 'edgekit[parquet]'") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{source} cannot be read as Parquet ({_one_line(error)}); write it again"
        ) from None
    if table.num_rows == 0:
        raise DataError(f"{source} has no rows; give a file with rows")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return _Table(source, columns, _row_places(table.num_rows))


def _read_hub(reference: str, split: str) -> _Table:
    """A hub data set by rule 2, with class ids replaced by the names that it gives them."""
    import datasets

    name, _, wanted = reference.partition("@")
    name, _, config = name.partition(":")
    try:
        parts = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library and the network raise many kinds
        raise DataError(
            f"no file or folder {reference}, nor can it be loaded from the hub "
            f"({_one_line(error)}); correct the name, or write it as name:config"
        ) from None
    usual = ("train",) if split == "train" else ("validation", "test")
    part = next((part for part in (wanted, *usual) if part in parts), None)
    if part is None or (wanted and part != wanted):
        raise DataError(
            f"no split '{wanted or usual[0]}' in {reference} (it has: {_listing(parts)}); "
            f"name one as {name}@SPLIT"
        )
    features = parts[part].features
    columns = {
        column: [_class_name(features[column], value) for value in parts[part][column]]
        for column in parts[part].column_names
    }
    return _Table(reference, columns, _row_places(len(parts[part])))


def _class_name(feature: Any, value: Any) -> Any:
    """A class id (or a list of them) as names; a negative id is how the hub writes no label."""
    if isinstance(value, list):
        return [_class_name(getattr(feature, "feature", None), item) for item in value]
    names = getattr(feature, "names", None)
    if names is None:
        return value
    return None if value is None or value < 0 else names[value]


# From a table to rows.


def _rows(
    table: _Table, *, task: str, problem: str | None, columns: Columns
) -> tuple[Rows, dict[str, str]]:
    used = _choose(table, columns, task)
    label = table.columns[used["label"]] if "label" in used else None
    if task == "token-classification":
        words = tuple(
            _strings(value, used["text"], _where(table.source, place))
            for place, value in zip(table.places, table.columns[used["text"]], strict=True)
        )
        tags = None if label is None else _tags(table, label, words, used["label"])
        return Rows(words=words, labels=tags, places=table.places), used
    labels = None
    if label is not None:
        scored = problem == "regression" or task == "sentence-embedding"
        labels = tuple(
            _label(value, _where(table.source, place), scored, many=problem == "multi-label")
            for place, value in zip(table.places, label, strict=True)
        )
    if task == "image-classification":
        pictures = table.columns[used["text"]]
        images = _pixels(len(pictures), lambda number: pictures[number], table.source)
        return Rows(images=images, labels=labels, places=table.places), used
    texts = _texts(table, used["text"])
    pairs = _texts(table, used["text_pair"]) if "text_pair" in used else None
    return Rows(texts=texts, pairs=pairs, labels=labels, places=table.places), used


def _choose(table: _Table, asked: Columns, task: str) -> dict[str, str]:
    """The column for each role: text (words, pictures), text_pair and label (rule 3)."""
    inputs = {"token-classification": _WORDS, "image-classification": _PICTURES}.get(task, _TEXTS)
    outputs = _TAGS if task == "token-classification" else _LABELS
    usual = {"text": inputs, "text_pair": [pair[1] for pair in _PAIRS], "label": outputs}
    found = {name.lower(): name for name in reversed(table.columns)}

    def guess(role: str) -> str | None:
        free = (found[name] for name in usual[role] if name in found)
        return next((name for name in free if name not in used.values()), None)

    used = {role: name for role, name in dataclasses.asdict(asked).items() if name is not None}
    for role, name in list(used.items()):
        if name not in table.columns:
            del used[role]
            close = difflib.get_close_matches(name, table.columns, n=1)
            better = guess(role) or (close[0] if close else "COLUMN")
            raise DataError(
                f"no column '{name}' in {table.source} (it has: {table.listing}); "
                f"name it with {_flag(role)} {better}"
            )
    if not used.keys() & {"text", "text_pair"} and inputs is _TEXTS:
        pair = next((pair for pair in _PAIRS if found.keys() >= set(pair)), None)
        if pair:
            used |= {"text": found[pair[0]], "text_pair": found[pair[1]]}
    if "text" not in used:
        text = guess("text")
        if text is None:
            raise DataError(
                f"no column of {table.source} has a usual name for the text (it has: "
                f"{table.listing}); name it with --text COLUMN, or --text 0 for the first column "
                "of a file without a header line"
            )
        used["text"] = text
    # What an embedding is compared with is the score of a pair: without pairs, no label.
    if "label" not in used and (task != "sentence-embedding" or "text_pair" in used):
        label = guess("label")
        if label is not None:
            used["label"] = label
    if task == "sentence-embedding" and "label" in used and "text_pair" not in used:
        raise DataError(
            f"--label {used['label']} needs pairs for sentence-embedding: name the second text of "
            f"{table.source} with --text-pair, or leave --label out"
        )
    return used


def _column_notes(source: str, used: Mapping[str, str], asked: Columns, rows: Rows) -> list[str]:
    notes = []
    guessed = [role for role in used if getattr(asked, role) is None]
    if guessed:
        choice = ", ".join(f"{role.replace('_', ' ')} from '{used[role]}'" for role in guessed)
        flags = ", ".join(_flag(role) for role in guessed)
        notes.append(f"columns guessed in {source}: {choice} (name others with {flags})")
    if rows.labels is None:
        notes.append(f"no labels in {source}: its rows can show agreement, not accuracy")
    return notes


def _texts(table: _Table, column: str) -> tuple[str, ...]:
    for place, value in zip(table.places, table.columns[column], strict=True):
        _check_text(value, column, _where(table.source, place))
    return tuple(table.columns[column])


def _strings(value: Any, column: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: '{column}' is not a list of words; write one list a row")
    for word in value:
        _check_text(word, column, where)
    return tuple(value)


def _check_text(value: Any, column: str, where: str) -> None:
    if not isinstance(value, str):
        found = "missing" if value is None else f"{value!r:.40}"
        raise DataError(f"{where}: '{column}' is {found}, not text; correct the row")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: '{column}' holds half of a surrogate pair; correct the row"
            ) from None


def _label(value: Any, where: str, scored: bool, many: bool) -> str | float | tuple[str, ...]:
    """One cell as the label of a row (rule 4)."""
    if many:
        parts = value if isinstance(value, list) else _plain(value).split("|")
        return tuple(dict.fromkeys(filter(None, map(_plain, parts))))
    text = _plain(value)
    if not text:
        raise DataError(f"{where} has no label; fill it in or remove the row")
    if not scored:
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}: label '{text}' is not a number, and this model predicts one; correct it, "
            "or name another column with --label"
        )
    return number


def _tags(
    table: _Table, column: Sequence[Any], words: tuple[tuple[str, ...], ...], name: str
) -> tuple[tuple[str, ...], ...]:
    tags = []
    for place, value, row in zip(table.places, column, words, strict=True):
        if not isinstance(value, list) or len(value) != len(row) or not all(map(_plain, value)):
            raise DataError(
                f"{_where(table.source, place)}: '{name}' is not a list of "
                f"{_count(len(row), 'tag')}, one for each word; correct the row"
            )
        tags.append(tuple(map(_plain, value)))
    return tuple(tags)


def _plain(value: Any) -> str:
    """A label as text: numbers that are whole in all but type (3.0) lose the point."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


# CoNLL.


def _read_conll(path: Path, source: str, columns: Columns) -> Rows:
    """Words and tags, from the first and last columns or the positions that the caller gave.

    Columns are separated by tabs, or by spaces in a line without a tab. ``-DOCSTART-`` lines and
    comments are skipped; ``#`` also begins hashtags, so a comment is a line without tabs whose
    last field is no tag.
    """
    for role, position in (("text", columns.text), ("label", columns.label)):
        if position is not None and not position.isdecimal():
            raise DataError(
                f"{_flag(role)} {position} names no column of {source}, since CoNLL has no header; "
                "give its position, counted from 0"
            )
    word_at, tag_at = int(columns.text or 0), int(columns.label or -1)
    sentences: list[list[tuple[str, str]]] = []
    places: list[str] = []
    inside = False
    for line, content in enumerate(_read_text(path, source).split("\n"), start=1):
        # Not strip() and split(): a word may be, or hold, a space of another kind.
        fields = re.split("\t" if "\t" in content else " +", content.strip("\r "))
        if not any(fields):
            inside = False
            continue
        comment = content.startswith("#") and "\t" not in content and not _TAG.fullmatch(fields[-1])
        if comment or content.startswith("-DOCSTART-"):
            continue
        try:
            word, tag = fields[word_at].strip(" "), fields[tag_at].strip()
        except IndexError:
            word = tag = ""
        if len(fields) < 2 or not word or not tag:
            raise DataError(f"line {line} of {source} lacks a word or its tag; correct the line")
        if not inside:
            sentences.append([])
            places.append(f"line {line}")
            inside = True
        sentences[-1].append((word, tag))
    if not sentences:
        raise DataError(f"{source} has no sentences; give a file with a word and its tag on a line")
    return Rows(
        words=tuple(tuple(word for word, _ in sentence) for sentence in sentences),
        labels=tuple(tuple(tag for _, tag in sentence) for sentence in sentences),
        places=tuple(places),
    )


# Images and arrays.


def _read_npz(
    path: Path, source: str, split: str, *, task: str, problem: str | None, columns: Columns
) -> tuple[Rows, dict[str, str]]:
    """Images and labels, or for a plain module all arrays beside the labels."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{source} cannot be read as an .npz of plain arrays ({_one_line(error)}); "
            "write it with numpy.savez"
        ) from None

    def find(role: str, name: str | None, usual: Sequence[str]) -> str | None:
        if name is not None and name not in arrays:
            raise DataError(
                f"no array '{name}' in {source} (it has: {_listing(arrays)}); "
                f"name it with {_flag(role)} ARRAY"
            )
        # One file may hold both splits, as Keras writes them.
        keras = f"{usual[0]}_{'train' if split == 'train' else 'test'}"
        return name or next((name for name in (keras, *usual) if name in arrays), None)

    used: dict[str, str] = {}
    label = find("label", columns.label, _LABEL_ARRAYS)
    if label is not None:
        used["label"] = label
    if task == "image-classification":
        image = find("text", columns.text, _IMAGE_ARRAYS)
        if image is None:
            raise DataError(
                f"no images in {source} (it has: {_listing(arrays)}); name the array with --text"
            )
        used = {"text": image, **used}
    inputs = {
        name: array
        for name, array in arrays.items()
        if name == used.get("text") or (task == "module" and name != label)
    }
    if not inputs:
        raise DataError(f"{source} has no array beside its labels; give {_READS[task]}")
    counts = {name: len(np.atleast_1d(arrays[name])) for name in [*inputs, *filter(None, [label])]}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"the arrays of {source} have no equal number of rows ({found}); mend it")
    count = next(iter(counts.values()))
    labels = None
    if label is not None:
        labels = _array_labels(arrays[label], label, source, problem)
    if task == "module":
        return Rows(arrays=inputs, labels=labels, places=_row_places(count)), used
    images = _check_images(inputs[used["text"]], used["text"], source)
    return Rows(images=images, labels=labels, places=_row_places(count)), used


def _array_labels(
    array: np.ndarray, name: str, source: str, problem: str | None
) -> tuple[Any, ...]:
    if problem == "multi-label" and array.ndim == 2:
        return tuple(tuple(str(number) for number in np.flatnonzero(row)) for row in array)
    values = array.reshape(len(array), -1)
    if values.shape[1] != 1:
        raise DataError(
            f"'{name}' in {source} has {values.shape[1]} labels a row; give one, "
            "for example its argmax"
        )
    return tuple(
        _label(value, f"row {number} of {source}", problem == "regression", problem == "multi-label")
        for number, value in enumerate(values[:, 0].tolist(), start=1)
    )


def _check_images(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """uint8 [N, H, W, C] from that, or from [N, H, W]."""
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != np.uint8:
        raise DataError(
            f"'{name}' in {source} is {array.dtype} {list(array.shape)}; give pixels as uint8 "
            "[rows, height, width] or [rows, height, width, 1 or 3]"
        )
    return images


def _read_picture_folder(folder: Path, source: str, columns: Columns) -> Rows:
    """One folder a class, pictures in it at any depth; hidden and other files are passed over."""
    if columns != Columns():
        raise DataError(f"{source} is a folder and has no columns; leave out --text and --label")
    files = [
        (kind.name, file)
        for kind in sorted(folder.iterdir())
        if kind.is_dir() and not kind.name.startswith(".")
        for file in sorted(kind.rglob("*"))
        if file.suffix.lower() in _PICTURE_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"no pictures in {source}; put them into one folder for each class")
    return Rows(
        images=_pixels(len(files), lambda number: _open_picture(files[number][1]), source),
        labels=tuple(kind for kind, _ in files),
        places=tuple(str(file.relative_to(folder)) for _, file in files),
    )


def _open_picture(path: Path) -> "Image.Image":
    try:
        from PIL import Image
    except ImportError:
        raise DataError(f"{path} needs Pillow; pip install pillow") from None
    try:
        return Image.open(path)
    except OSError as error:
        raise DataError(f"{path} is no picture ({_one_line(error)}); remove or replace it") from None


def _pixels(count: int, picture: Callable[[int], "Image.Image"], source: str) -> np.ndarray:
    """Pictures as ``Rows.images``: one channel when all are grey, else RGB; upright."""
    from PIL import ImageOps

    grey, size = True, 0
    for number in range(count):
        with picture(number) as image:  # only the header is read here
            grey = grey and image.mode in ("1", "L")
            size += image.width * image.height * 3
    if size > _PICTURE_BYTES:
        raise DataError(
            f"the {count:,} pictures of {source} take {units.format_bytes(size)} in memory; give "
            f"fewer or smaller ones, of at most {units.format_bytes(_PICTURE_BYTES)} in all"
        )
    decoded = []
    for number in range(count):
        with picture(number) as image:
            try:
                upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            except (OSError, ValueError, SyntaxError) as error:
                name = getattr(image, "filename", None) or f"row {number + 1} of {source}"
                raise DataError(
                    f"{name} is damaged ({_one_line(error)}); remove or replace it"
                ) from None
        pixels = np.asarray(upright, dtype=np.uint8)
        decoded.append(pixels[..., None] if grey else pixels)
    if len({pixels.shape for pixels in decoded}) == 1:
        return np.stack(decoded)
    images = np.empty(count, dtype=object)
    images[:] = decoded
    return images


# Splits.


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


def _contents(rows: Rows) -> Iterator[Hashable]:
    """What stands in each row, to find the same row in two splits."""
    if rows.texts is not None:
        yield from zip(rows.texts, rows.pairs, strict=True) if rows.pairs else rows.texts
    elif rows.words is not None:
        yield from rows.words
    elif rows.images is not None:
        yield from ((image.shape, image.tobytes()) for image in rows.images)
    elif rows.arrays:
        for number in range(len(rows)):
            yield tuple(array[number].tobytes() for array in rows.arrays.values())


# Words for messages.


def _listing(names: Sequence[str] | Mapping[str, Any]) -> str:
    first = ", ".join(f"{name:.40}" for name in list(names)[:8])
    return first if len(names) <= 8 else f"{first}, … {len(names)} in all"


def _flag(role: str) -> str:
    return f"--{role.replace('_', '-')}"


def _where(source: str, place: str) -> str:
    return f"{place} of {source}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _row_places(count: int) -> tuple[str, ...]:
    return tuple(f"row {number}" for number in range(1, count + 1))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
