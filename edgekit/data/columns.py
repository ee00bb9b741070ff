"""From a table to rows: which column is what, and whether its cells are that."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit.data.labels import parse_label, plain
from edgekit.data.pictures import decode_pictures
from edgekit.data.rows import Columns, Rows
from edgekit.data.table import Table
from edgekit.data.wording import counted, flag, listing
from edgekit.errors import DataError

# Names that are usual for a role, the likeliest first; their case does not matter.
_TEXTS = (
    *("text", "sentence", "utterance", "query", "question", "review", "comment", "message"),
    *("tweet", "content", "document", "input"),
)
_PAIRS = (
    *(("sentence1", "sentence2"), ("text1", "text2"), ("question1", "question2")),
    *(("sentence_a", "sentence_b"), ("text_a", "text_b"), ("text", "text_pair")),
    *(("premise", "hypothesis"), ("question", "sentence")),
)
_LABELS = (
    *("label", "labels", "category", "intent", "class", "target", "score", "similarity_score"),
    *("relatedness_score", "similarity", "sentiment", "emotion", "topic", "rating", "stars", "y"),
)
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "label", "ner")
_PICTURES = ("image", "img", "picture")


def rows_of_table(
    table: Table, *, task: str, problem: str | None, columns: Columns, labels: bool = True
) -> tuple[Rows, dict[str, str]]:
    """The table's rows for a task, and the column that plays each role; ``labels`` if there are.

    Raises DataError for a column that is not there and for a cell that is not what it should be.
    """
    used = _choose(table, columns, task)
    if not labels:
        used.pop("label", None)
    found: tuple[Any, ...] | None = None
    if task == "token-classification":
        words = tuple(
            _words(value, used["text"], where) for where, value in table.cells(used["text"])
        )
        if "label" in used:
            found = _tags(table, used["label"], words)
        return Rows(words=words, labels=found, places=table.places), used
    if "label" in used:
        found = tuple(
            parse_label(value, where, task=task, problem=problem)
            for where, value in table.cells(used["label"])
        )
    if task == "image-classification":
        pictures = table.columns[used["text"]]
        images = decode_pictures(len(pictures), lambda row: pictures[row], table.source)
        return Rows(images=images, labels=found, places=table.places), used
    texts = _texts(table, used["text"])
    pairs = _texts(table, used["text_pair"]) if "text_pair" in used else None
    return Rows(texts=texts, pairs=pairs, labels=found, places=table.places), used


def column_notes(source: str, used: Mapping[str, str], asked: Columns) -> list[str]:
    """A sentence on the columns that nobody named."""
    guessed = [role for role in used if getattr(asked, role) is None]
    if not guessed:
        return []
    choice = ", ".join(f"{role.replace('_', ' ')} from '{used[role]}'" for role in guessed)
    flags = ", ".join(map(flag, guessed))
    return [f"columns guessed in {Path(source).name}: {choice} (name others with {flags})"]


def _choose(table: Table, asked: Columns, task: str) -> dict[str, str]:
    """The column for each role: text (words, pictures), text_pair and label."""
    inputs = {"token-classification": _WORDS, "image-classification": _PICTURES}.get(task, _TEXTS)
    usual = {
        "text": inputs,
        "text_pair": tuple(second for _, second in _PAIRS),
        "label": _TAGS if task == "token-classification" else _LABELS,
    }
    found = {name.lower(): name for name in reversed(list(table.columns))}
    has = f"(it has: {listing(table.columns)})"

    def guess(role: str, used: Mapping[str, str]) -> str | None:
        names = (found[name] for name in usual[role] if name in found)
        return next((name for name in names if name not in used.values()), None)

    used: dict[str, str] = {}
    for role, name in asdict(asked).items():
        if name is None:
            continue
        if name not in table.columns:
            close = difflib.get_close_matches(name, table.columns, n=1)
            better = guess(role, used) or next(iter(close), "COLUMN")
            raise DataError(
                f"no column '{name}' in {table.source} {has}; name it with {flag(role)} {better}"
            )
        used[role] = name
    if inputs is _TEXTS and not used.keys() & {"text", "text_pair"}:
        pair = next((pair for pair in _PAIRS if found.keys() >= set(pair)), None)
        if pair is not None:
            used |= {"text": found[pair[0]], "text_pair": found[pair[1]]}
    if "text" not in used:
        text = guess("text", used)
        if text is None:
            raise DataError(
                f"no column of {table.source} is called what inputs usually are {has}; name it "
                "with --text COLUMN, or --text 0 for the first of a file without a header line"
            )
        used["text"] = text
    if task == "sentence-embedding" and "text_pair" not in used:
        # What an embedding is compared with is the score of a pair: without pairs, no label.
        if "label" in used:
            raise DataError(
                f"--label {used['label']} scores pairs for sentence-embedding; name the second "
                f"text of {table.source} with --text-pair, or leave --label out"
            )
    elif "label" not in used:
        label = guess("label", used)
        if label is not None:
            used["label"] = label
    return {role: used[role] for role in usual if role in used}


def _texts(table: Table, column: str) -> tuple[str, ...]:
    return tuple(_text(value, column, where) for where, value in table.cells(column))


def _words(value: Any, column: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: '{column}' is not a list of words; write one list a row")
    return tuple(_text(word, column, where) for word in value)


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        found = "missing" if value is None else f"{value!r:.40}"
        raise DataError(f"{where}: '{column}' is {found}, not text; correct the row")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can escape half of a surrogate pair, tokenizers cannot
        raise DataError(f"{where}: '{column}' is not valid Unicode; correct the row") from None
    return value


def _tags(
    table: Table, column: str, words: tuple[tuple[str, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    found = []
    for (where, value), row in zip(table.cells(column), words, strict=True):
        tags = tuple(map(plain, value)) if isinstance(value, list) else ()
        if len(tags) != len(row) or not all(tags):
            raise DataError(
                f"{where}: '{column}' is not a list of {counted(len(row), 'tag')}, one for each "
                "word; correct the row"
            )
        found.append(tags)
    return tuple(found)
