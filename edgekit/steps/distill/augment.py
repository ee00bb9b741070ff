"""More text for a teacher to answer: copies of texts in which words are replaced.

Jiao et al. 2020, TinyBERT, arXiv 1909.10351, algorithm 1.

Rules:

1. A word is a run of letters, with apostrophes inside; all between words stays. In each copy of a
   text every word is replaced, with probability 0.4, by one of its 15 candidates.
2. Candidates are whole words (``candidates.py``). Where a masked language model is given and the
   word is one of its tokens, they are the likeliest in its place.
3. All other candidates are the nearest by cosine in the teacher's own table of words, in which a
   word of several pieces is their mean. (The paper takes GloVe for words of several pieces.)
4. Without such a table (an exported file, a tokenizer of bytes) each word is left out with
   probability 0.1, and a tenth of the words, at least one, change places with the next one. Wei
   and Zou 2019, arXiv 1901.11196.
5. Copies have no labels, since a word may have carried it. A copy that is a text of the rows, or
   another copy, is left out.
6. What is drawn depends on the seed and the text's place alone. Copies are kept in the folder,
   under the digest of all that decides them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.events import OnProgress, unwatched
from edgekit.steps.distill.candidates import Table, guesses, table_of, words_of

if TYPE_CHECKING:
    from edgekit.filemodel import FileModel
    from edgekit.model import Model

_REPLACED = 0.4
_MOVED = 0.1
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
# Between the words of a row of words, which no word holds.
_GAP = "\0"


def augmented(
    rows: Rows,
    teacher: Model | FileModel,
    *,
    copies: int,
    seed: int,
    folder: Path,
    guesser: Model | None = None,
    on_progress: OnProgress = unwatched,
) -> Rows:
    """At most ``copies`` of each row, without labels and without the rows themselves.

    guesser: a masked language model, whose module gives ``logits`` [B, L, words]. Raises
    RecipeError for rows that hold no text.
    """
    need_words(rows)
    kinds = [kind for kind in ("texts", "pairs", "words") if getattr(rows, kind) is not None]
    columns = [getattr(rows, kind) for kind in kinds]
    key = _digest([columns, copies, seed], teacher, guesser)
    path = folder / f"augmented-{key[:16]}.json"
    made = _read(path)
    if made is None:
        made = _make(columns, teacher, copies, seed, guesser, on_progress)
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(made), encoding="utf-8")
        partial.replace(path)
    found = {kind: tuple(row[at] for row in made) for at, kind in enumerate(kinds)}
    if rows.words is not None:
        return Rows(words=tuple(map(tuple, found["words"])))
    return Rows(texts=found["texts"], pairs=found.get("pairs"))


def need_words(rows: Rows) -> None:
    """Raise RecipeError unless the rows hold text."""
    if rows.texts is None and rows.words is None:
        raise RecipeError("augment: it replaces words, and these rows hold none; leave it out")


def _make(
    columns: Sequence[Sequence[Any]],
    teacher: Model | FileModel,
    copies: int,
    seed: int,
    guesser: Model | None,
    on_progress: OnProgress,
) -> list[list[Any]]:
    """The copies, each with one entry a column."""
    table = table_of(teacher)
    varied = [
        _moved_copies(column, copies, [seed, place])
        if table is None
        else _replaced_copies(column, table, copies, [seed, place], guesser, on_progress)
        for place, column in enumerate(columns)
    ]
    seen = {json.dumps(row) for row in zip(*columns, strict=True)}
    made = []
    for several in zip(*varied, strict=True):
        for row in zip(*several, strict=True):
            key = json.dumps(row)
            if key not in seen and all(row):
                seen.add(key)
                made.append(list(row))
    return made


def _replaced_copies(
    column: Sequence[Any],
    table: Table,
    copies: int,
    seed: Sequence[int],
    guesser: Model | None,
    on_progress: OnProgress,
) -> list[list[Any]]:
    """Rules 1 to 3: ``copies`` of each entry."""
    texts = [entry if isinstance(entry, str) else _GAP.join(entry) for entry in column]
    spans = [[found.span() for found in _WORD.finditer(text)] for text in texts]
    words = sorted(
        {text[start:end] for text, each in zip(texts, spans, strict=True) for start, end in each}
    )
    near = dict(zip(words, table.nearest(words), strict=True))
    likely: list[list[tuple[str, ...]]] = [[()] * len(each) for each in spans]
    if guesser is not None:
        shown = [text.replace(_GAP, " ") for text in texts]
        likely = guesses(guesser, shown, spans, on_progress)
    made = []
    for number, text in enumerate(texts):
        chance = np.random.default_rng([*seed, number])
        offered = [
            guessed or near[text[start:end]]
            for (start, end), guessed in zip(spans[number], likely[number], strict=True)
        ]
        each = [_replaced(text, spans[number], offered, chance) for _ in range(copies)]
        made.append(each if isinstance(column[number], str) else [t.split(_GAP) for t in each])
    return made


def _replaced(
    text: str,
    spans: Sequence[tuple[int, int]],
    offered: Sequence[Sequence[str]],
    chance: np.random.Generator,
) -> str:
    """Rule 1, once. A word keeps its capital."""
    draws, picks = chance.random(len(spans)), chance.random(len(spans))
    parts, behind = [], 0
    for (start, end), words, draw, pick in zip(spans, offered, draws, picks, strict=True):
        word = text[start:end]
        if draw < _REPLACED and words:
            other = words[int(pick * len(words))]
            word = other.capitalize() if word[0].isupper() else other
        parts += [text[behind:start], word]
        behind = end
    return "".join([*parts, text[behind:]])


def _moved_copies(column: Sequence[Any], copies: int, seed: Sequence[int]) -> list[list[Any]]:
    """Rule 4: ``copies`` of each entry."""
    made: list[list[Any]] = []
    for number, entry in enumerate(column):
        chance = np.random.default_rng([*seed, number])
        if isinstance(entry, str):
            made.append([" ".join(_moved(entry.split(), chance)) for _ in range(copies)])
        else:
            made.append([_moved(entry, chance) for _ in range(copies)])
    return made


def _moved(words: Sequence[str], chance: np.random.Generator) -> list[str]:
    stay = chance.random(len(words)) >= _MOVED
    left = [word for word, stays in zip(words, stay, strict=True) if stays]
    for _ in range(max(1, round(_MOVED * len(left))) if len(left) > 1 else 0):
        at = int(chance.integers(len(left) - 1))
        left[at], left[at + 1] = left[at + 1], left[at]
    return left


def _digest(settings: Any, teacher: Model | FileModel, guesser: Model | None) -> str:
    """Of the rows and all that candidates come from."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    words = words_of(teacher)
    if words is not None:
        _add(digest, words, teacher)
    if guesser is not None:
        _add(digest, guesser.module, guesser)
    return digest.hexdigest()


def _add(digest: Any, module: Any, model: Any) -> None:
    digest.update(model.preprocessor.tokenizer_json.encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)


def _read(path: Path) -> list[list[Any]] | None:
    """Copies that are there, whole."""
    try:
        found: list[list[Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found
