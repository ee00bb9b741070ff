"""WordPiece: a word is split greedily into the longest pieces that there are.

Rules:

1. Every single character and every single-character continuation piece stays, so that a word
   whose pieces went is spelled out instead of becoming unknown.
2. A piece with a character that has no piece of its own stays as well: it cannot be spelled.
3. Common tokens are the first whole ones: these vocabularies are written most frequent first.

A text whose pieces all stay is split as before: each of them is still the longest.
"""

from collections.abc import Mapping
from typing import Any


def needed(model: Mapping[str, Any], used: set[int], special: set[int], common: int) -> set[int]:
    """Ids that stay besides the special ones. ``model`` is the one of tokenizer.json."""
    vocabulary: dict[str, int] = model["vocab"]
    prefix: str = model["continuing_subword_prefix"]
    heads = {token for token in vocabulary if len(token) == 1}
    tails = {
        token[len(prefix) :]
        for token in vocabulary
        if token.startswith(prefix) and len(token) == len(prefix) + 1
    }

    def spells(token: str) -> bool:
        """Whether the token's pieces of one character all exist."""
        if token.startswith(prefix) and len(token) > len(prefix):
            return all(character in tails for character in token[len(prefix) :])
        return token[0] in heads and all(character in tails for character in token[1:])

    def single(token: str) -> bool:
        return len(token.removeprefix(prefix)) == 1

    kept = set(used)
    kept |= {i for token, i in vocabulary.items() if single(token)}
    whole = (i for token, i in vocabulary.items() if not single(token) and not _unused(token))
    kept |= set(sorted(set(whole) - special)[:common])
    kept |= {i for token, i in vocabulary.items() if not _unused(token) and not spells(token)}
    return kept


def rewrite(model: Mapping[str, Any], renumbered: Mapping[int, int]) -> dict[str, Any]:
    """The same model with the renumbered ids only."""
    return {**model, "vocab": renumber(model["vocab"], renumbered)}


def renumber(vocabulary: Mapping[str, int], renumbered: Mapping[int, int]) -> dict[str, int]:
    """The tokens whose ids are in ``renumbered``, by their new ids."""
    ordered = sorted(vocabulary.items(), key=lambda item: item[1])
    return {token: renumbered[i] for token, i in ordered if i in renumbered}


def _unused(token: str) -> bool:
    """Placeholders such as [unused42] of the original BERT vocabularies."""
    return token.startswith("[unused") and token.endswith("]")
