"""Texts that are like the training texts, for a teacher to answer: a light student needs many.

After Tang et al. 2019, arXiv 1903.12136, section 3.3, without its parts of speech. Rules, for each
variation of a text:

1. With a chance of 1 in 4 its second half is another text's, cut at a word as well.
2. Each word is left out with a chance of 0.1, and becomes a random word of the training texts,
   drawn as often as it occurs there, with a chance of 0.1.
3. With a chance of 1 in 4 only a run of 1 to 5 of its words is left.
4. What equals the text, or has no word left, is no variation.
"""

from collections.abc import Sequence

import numpy as np

_SPLICE, _LEAVE_OUT, _REPLACE, _RUN = 0.25, 0.1, 0.1, 0.25
_LONGEST_RUN = 5

Words = tuple[str, ...]


def variations(texts: Sequence[Words], copies: int, seed: int) -> list[Words]:
    """At most ``copies`` variations of each text, which is given and returned as its words."""
    chance = np.random.default_rng([seed, copies, len(texts)])
    every = [word for text in texts for word in text]
    found = []
    for _ in range(copies):
        for text in texts:
            varied = _vary(text, texts, every, chance)
            if varied and varied != text:
                found.append(varied)
    return found


def _vary(
    text: Words, texts: Sequence[Words], every: list[str], chance: np.random.Generator
) -> Words:
    words = list(text)
    if words and chance.random() < _SPLICE:
        other = texts[int(chance.integers(len(texts)))]
        words = words[: len(words) // 2] + list(other[len(other) // 2 :])
    kept = []
    for word, drawn in zip(words, chance.random(len(words)), strict=True):
        if drawn >= _LEAVE_OUT + _REPLACE:
            kept.append(word)
        elif drawn >= _LEAVE_OUT:
            kept.append(every[chance.integers(len(every))])
    if kept and chance.random() < _RUN:
        length = int(chance.integers(1, _LONGEST_RUN + 1))
        start = int(chance.integers(max(1, len(kept) - length + 1)))
        kept = kept[start : start + length]
    return tuple(kept)
