"""BPE, of bytes or of characters: pairs are merged in the order in which they were learned.

Sennrich et al. 2015, arXiv 1508.07909; bytes: Radford et al. 2019, Language Models are
Unsupervised Multitask Learners.

Rules:

1. Every single symbol stays: each byte's letter, or each character, with and without the mark of
   a word's end or of its continuation; and every ``<0x0A>`` where bytes are a way out.
2. A kept token stays with every token on the way to it: those that its own symbols become when
   they alone are merged. Inside a text the same merges build it, because none of them crosses
   its ends.
3. A merge stays when both of its parts and its outcome stay; the order is kept.
4. Common tokens are the outcomes of the first merges, which were the most frequent pairs.

A text whose tokens all stay is split as before: at each step the merge that was first is still
there, and none is new.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.steps.vocabulary import byte_pieces
from edgekit.steps.vocabulary.wordpiece import renumber


@dataclass(frozen=True)
class _Marks:
    """What is written before a symbol inside a word, and behind the last one of a word."""

    inside: str
    last: str

    def symbols(self, token: str) -> list[str]:
        """What the token's characters are before any merge."""
        bare = token.removeprefix(self.inside).removesuffix(self.last)
        if not bare:
            return [token]
        made = [self.inside + character for character in bare]
        if not (self.inside and token.startswith(self.inside)):
            made[0] = bare[0]
        if self.last and token.endswith(self.last):
            made[-1] += self.last
        return made

    def merged(self, left: str, right: str) -> str:
        return left + right[len(self.inside) :]


def needed(model: Mapping[str, Any], used: set[int], special: set[int], common: int) -> set[int]:
    """Ids that stay besides the special ones. ``model`` is the one of tokenizer.json."""
    vocabulary: dict[str, int] = model["vocab"]
    marks = _marks(model)
    ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
    names = {i: token for token, i in vocabulary.items()}
    outcomes = dict.fromkeys(vocabulary[marks.merged(*pair)] for pair in model["merges"])
    first = [i for i in outcomes if i not in special][:common]
    kept = {i for token, i in vocabulary.items() if len(marks.symbols(token)) == 1}
    if model.get("byte_fallback"):
        kept |= byte_pieces(vocabulary)
    for i in (*used, *first):
        if i in names and i not in kept | special:
            on_the_way = _built(marks.symbols(names[i]), ranks, marks)
            kept |= {vocabulary[token] for token in on_the_way if token in vocabulary}
    return kept | set(used)


def rewrite(model: Mapping[str, Any], renumbered: Mapping[int, int]) -> dict[str, Any]:
    """The same model with the renumbered ids only, and the merges among them."""
    vocabulary, marks = renumber(model["vocab"], renumbered), _marks(model)
    merges = [
        pair
        for pair in model["merges"]
        if all(token in vocabulary for token in (*pair, marks.merged(*pair)))
    ]
    return {**model, "vocab": vocabulary, "merges": merges}


def _marks(model: Mapping[str, Any]) -> _Marks:
    return _Marks(
        model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    )


def _built(
    symbols: Sequence[str], ranks: Mapping[tuple[str, str], int], marks: _Marks
) -> Iterable[str]:
    """Every token that the symbols become on the way, the last one included (rule 2)."""
    parts, seen = list(symbols), set(symbols)
    while len(parts) > 1:
        pairs = itertools.pairwise(parts)
        rank, place = min((ranks.get(pair, len(ranks)), n) for n, pair in enumerate(pairs))
        if rank == len(ranks):
            break
        parts[place : place + 2] = [marks.merged(parts[place], parts[place + 1])]
        seen.add(parts[place])
    return seen
