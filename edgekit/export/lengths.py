"""Which sequence lengths to write, where a file holds a graph for each.

A text runs in the smallest bucket that holds it, padded; one longer than the largest bucket is
cut there. Rules:

1. Time grows with the padded length (MiniLM: 0.43, 0.76, 1.36 and 2.69 ms for 16, 32, 64 and 128
   tokens), so the buckets are those with the least padded tokens over the training text.
2. Buckets are multiples of 8: kernels work on blocks of rows.
3. The largest bucket leaves room for longer texts than those seen: a quarter more than the
   longest, as a multiple of 16, and at most what the model allows.
4. There are as few buckets as come within 5 % of what the most allowed would reach: runtimes keep
   a repacked copy of the weights for each bucket in memory.
"""

import itertools
import math
from collections.abc import Sequence

_STEP = 8
_CLOSE = 1.05
_ROOM = 1.25
_USUAL = (16, 32, 64, 128)


def choose_lengths(lengths: Sequence[int], longest: int, at_most: int = 8) -> tuple[int, ...]:
    """Buckets, ascending, for texts of these true lengths (in tokens).

    longest: what the model allows. at_most: how many buckets there may be, at least 1.
    """
    if len(lengths) == 0:
        return default_lengths(longest)
    top = min(longest, 16 * math.ceil(max(lengths) * _ROOM / 16))
    counts = dict.fromkeys([*range(_STEP, top, _STEP), top], 0)
    for length in lengths:
        counts[min(top, _STEP * math.ceil(length / _STEP))] += 1
    best = _least_padding(list(counts), list(counts.values()), at_most)
    enough = _CLOSE * best[-1][0]
    return next(buckets for tokens, buckets in best if tokens <= enough)


def default_lengths(longest: int) -> tuple[int, ...]:
    """Buckets when nothing is known of the texts: 16, 32, 64, 128, as far as the model goes."""
    return (
        *(length for length in _USUAL if length < longest),
        *((longest,) if longest <= _USUAL[-1] else ()),
    )


def _least_padding(
    candidates: list[int], counts: list[int], at_most: int
) -> list[tuple[int, tuple[int, ...]]]:
    """For 1, 2, … buckets: the padded tokens at best, and the buckets that reach it.

    counts: how many texts need each of the ascending candidates. The last one is always taken.
    Dynamic programming: the best k buckets that end at a candidate extend the best k - 1 that
    end at a smaller one.
    """
    seen = [0, *itertools.accumulate(counts)]
    ending: list[tuple[int, tuple[int, ...]]] = [
        (seen[i + 1] * size, (size,)) for i, size in enumerate(candidates)
    ]
    best = [ending[-1]]
    for _ in range(1, min(at_most, len(candidates))):
        ending = [
            min(
                (
                    (ending[j][0] + (seen[i + 1] - seen[j + 1]) * size, (*ending[j][1], size))
                    for j in range(i)
                ),
                default=ending[i],
            )
            for i, size in enumerate(candidates)
        ]
        best.append(ending[-1])
    return best
