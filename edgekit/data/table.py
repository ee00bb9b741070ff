"""Files of named columns: CSV, TSV, JSON lines, Parquet, and data sets of the hub."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from edgekit.data.rows import Columns
from edgekit.data.wording import counted, listing, one_line, row_places
from edgekit.errors import DataError

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"})


@dataclass(frozen=True)
class Table:
    """Named columns of equal length, before anyone said what each is for."""

    source: str
    columns: Mapping[str, Sequence[Any]]
    places: tuple[str, ...]

    def cells(self, column: str) -> Iterator[tuple[str, Any]]:
        """Each value of a column, after the words that say where it stands."""
        for place, value in zip(self.places, self.columns[column], strict=True):
            yield f"{place} of {self.source}", value


def read_table(path: Path, source: str, columns: Columns) -> Table:
    """The table in a file of one of ``TABLE_SUFFIXES``; ``source`` is its name in messages."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path, source)
    text = read_text(path, source)
    if suffix == ".csv":
        return _from_records(_csv_records(text, source), source, columns)
    if suffix == ".tsv":
        return _from_records(_tsv_records(text), source, columns)
    return _read_json_lines(text, source)


def read_lines(path: Path, source: str, *, words: bool) -> Table:
    """One row a line that is not blank: a column ``text``, or ``tokens`` split at spaces."""
    lines = {
        f"line {number}": line.strip()
        for number, line in enumerate(read_text(path, source).split("\n"), start=1)
        if line.strip()
    }
    rows = {"tokens": [t.split() for t in lines.values()]} if words else {"text": [*lines.values()]}
    return Table(source, rows, tuple(lines))


def read_text(path: Path, source: str) -> str:
    """The file's text, without a byte order mark. Raises DataError when it is empty."""
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
                f"the row at line {line} of {source} is not valid CSV ({error}); close its "
                "quotes, and double a quote inside a quoted cell"
            ) from None
        if cells:
            yield line, cells


def _tsv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """One record a line. Quotes count where they are well formed and are text where not,
    because some of the tools that write TSV quote and others do not."""
    for line, content in enumerate(text.split("\n"), start=1):
        content = content.removesuffix("\r")
        if not content:
            continue
        try:
            yield line, next(csv.reader([content], delimiter="\t", strict=True))
        except csv.Error:
            yield line, content.split("\t")


def _from_records(records: Iterator[tuple[int, list[str]]], source: str, asked: Columns) -> Table:
    """Records under the names of the header line, or under positions where there is none."""
    rows = list(records)
    first = [cell.strip() for cell in rows[0][1]]
    named = [name for name in astuple(asked) if name is not None]
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
                f"line {line} of {source} has {counted(len(cells), 'cell')}, and the first line "
                f"has {len(names)}; quote a cell that contains the separator"
            )
    columns = {name: [cells[number] for _, cells in rows] for number, name in enumerate(names)}
    return Table(source, columns, tuple(f"line {line}" for line, _ in rows))


def _read_json_lines(text: str, source: str) -> Table:
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
    return Table(source, columns, tuple(f"line {line}" for line in objects))


def _read_parquet(path: Path, source: str) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{source} needs pyarrow; pip install 'edgekit[parquet]'") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{source} cannot be read as Parquet ({one_line(error)}); write it again"
        ) from None
    if table.num_rows == 0:
        raise DataError(f"{source} has no rows; give a file with rows")
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(source, columns, row_places(table.num_rows))


def read_hub(reference: str, split: str) -> Table:
    """A hub data set (``name:config@split``), its class ids replaced by their names.

    Without ``@split``, ``train`` is read for training, and ``validation`` or else ``test`` for
    eval. No code of the data set's own is run.
    """
    import datasets

    name, _, wanted = reference.partition("@")
    path, _, config = name.partition(":")
    try:
        parts = datasets.load_dataset(path, config or None)
    except Exception as error:  # the library and the network raise many kinds
        raise DataError(
            f"{reference} is no file or folder here and cannot be loaded from the hub "
            f"({one_line(error)}); correct the name, or write it as name:config"
        ) from None
    usual = ("train",) if split == "train" else ("validation", "test")
    found = next((each for each in ([wanted] if wanted else usual) if each in parts), None)
    if found is None:
        raise DataError(
            f"no split '{wanted or usual[0]}' in {reference} (it has: {listing(parts)}); "
            f"name one as {name}@SPLIT"
        )
    part = parts[found]
    columns = {
        column: [_class_name(part.features[column], value) for value in part[column]]
        for column in part.column_names
    }
    return Table(reference, columns, row_places(len(part)))


def _class_name(feature: Any, value: Any) -> Any:
    """A class id, or each of a list, as its name; the hub writes -1 for no label."""
    if isinstance(value, list):
        return [_class_name(getattr(feature, "feature", None), item) for item in value]
    names = getattr(feature, "names", None)
    if names is None:
        return value
    return None if value is None or value < 0 else names[value]
