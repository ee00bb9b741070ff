"""CoNLL files: a word and its tag on a line, a blank line between sentences.

The format of the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder), as it is found:

1. Columns are separated by tabs, or by spaces in a line without a tab.
2. The word is in the first column and its tag in the last, or where the caller says.
3. Lines that begin with ``-DOCSTART-`` are skipped, and so are comments. ``#`` also begins
   hashtags: a comment is a line without tabs whose last field is no tag.
"""

import re
from pathlib import Path

from edgekit.data.rows import Columns, Rows
from edgekit.data.table import read_text
from edgekit.data.wording import flag
from edgekit.errors import DataError

_TAG = re.compile(r"O|[BIESLU]-\S+")


def read_conll(path: Path, source: str, columns: Columns) -> tuple[Rows, dict[str, str]]:
    """Words and tags of every sentence, and the columns they are in.

    Raises DataError for a line without a word or a tag.
    """
    for role, position in (("text", columns.text), ("label", columns.label)):
        if position is not None and not position.isdecimal():
            raise DataError(
                f"{flag(role)} {position} names no column of {source}, since CoNLL has no header; "
                "give its position, counted from 0"
            )
    word_at, tag_at = int(columns.text or 0), int(columns.label or -1)
    sentences: list[list[tuple[str, str]]] = []
    places: list[str] = []
    inside = False
    for line, content in enumerate(read_text(path, source).split("\n"), start=1):
        # Not strip() and split(): a word may be, or hold, a space of another kind.
        fields = re.split("\t" if "\t" in content else " +", content.strip("\r "))
        if not any(fields):
            inside = False
            continue
        if fields[0] == "-DOCSTART-" or _is_comment(content, fields):
            continue
        if (
            len(fields) < 2
            or max(word_at, tag_at) >= len(fields)
            or ""
            in (
                word := fields[word_at].strip(" "),
                tag := fields[tag_at].strip(),
            )
        ):
            raise DataError(f"line {line} of {source} lacks a word or its tag; correct the line")
        if not inside:
            sentences.append([])
            places.append(f"line {line}")
            inside = True
        sentences[-1].append((word, tag))
    if not sentences:
        raise DataError(f"{source} has no sentences; give a file with a word and its tag on a line")
    rows = Rows(
        words=tuple(tuple(word for word, _ in sentence) for sentence in sentences),
        labels=tuple(tuple(tag for _, tag in sentence) for sentence in sentences),
        places=tuple(places),
    )
    return rows, {"text": columns.text or "first", "label": columns.label or "last"}


def _is_comment(content: str, fields: list[str]) -> bool:
    return content.startswith("#") and "\t" not in content and not _TAG.fullmatch(fields[-1])
