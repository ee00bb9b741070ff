"""SentencePiece Unigram: a text is split into the pieces whose scores add up to the most.

Kudo 2018, Subword Regularization, arXiv 1804.10959.

Rules:

1. Every piece of one character stays, and every byte's (``<0x0A>``) where bytes are a way out.
2. A piece with a character that has no piece of its own stays as well: it cannot be spelled.
3. The piece of the least score stays: unknown characters are scored by it.
4. Common pieces are those of the highest scores, which are logarithms of how frequent they are.

A text whose pieces all stay is split as before: its sum is still the largest, and of two equal
ones the first still comes first.
"""

from collections.abc import Mapping
from typing import Any

from edgekit.steps.vocabulary import byte_pieces


def needed(model: Mapping[str, Any], used: set[int], special: set[int], common: int) -> set[int]:
    """Ids that stay besides the special ones. ``model`` is the one of tokenizer.json."""
    pieces: list[tuple[str, float]] = model["vocab"]
    singles = {piece for piece, _ in pieces if len(piece) == 1}
    kept = set(used)
    if model.get("byte_fallback"):
        kept |= byte_pieces({piece: i for i, (piece, _) in enumerate(pieces)})
    kept |= {i for i, (piece, _) in enumerate(pieces) if piece in singles}
    kept |= {i for i, (piece, _) in enumerate(pieces) if not singles.issuperset(piece)}
    kept.add(min(range(len(pieces)), key=lambda i: pieces[i][1]))
    longer = [i for i, (piece, _) in enumerate(pieces) if len(piece) > 1 and i not in special]
    kept |= set(sorted(longer, key=lambda i: -pieces[i][1])[:common])
    return kept


def rewrite(model: Mapping[str, Any], renumbered: Mapping[int, int]) -> dict[str, Any]:
    """The same model with the renumbered ids only."""
    unknown = model.get("unk_id")
    return {
        **model,
        "vocab": [piece for i, piece in enumerate(model["vocab"]) if i in renumbered],
        "unk_id": None if unknown is None else renumbered[unknown],
    }
