"""Tokenizers made smaller: one file a kind of vocabulary, and ``rewrite`` for what they share."""

import re
from collections.abc import Mapping

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def byte_pieces(vocabulary: Mapping[str, int]) -> set[int]:
    """Ids of the tokens that stand for one byte of a character that has no piece."""
    return {i for token, i in vocabulary.items() if _BYTE.fullmatch(token)}
