"""95 % intervals of figures that were found on so many rows, and of differences of two of them.

Rules:

1. A share of rows: Wilson, Probable inference, the law of succession, and statistical inference,
   JASA 1927.
2. A rank correlation: Fisher's z, whose variance is 1.06 / (n - 3); Fieller, Hartley, Pearson,
   Tests for rank correlation coefficients, Biometrika 1957.
3. A difference of two figures from separate rows: each end adds the squares of how far the two
   figures' own intervals reach; Newcombe, Interval estimation for the difference between
   independent proportions, Statistics in Medicine 1998 (17:873), method 10.
4. A difference of two shares of the same rows takes off what both share; Newcombe, Improved
   confidence intervals for the difference between binomial proportions based on paired data,
   Statistics in Medicine 1998 (17:2635), method 10.
"""

import math

_Z = 1.959964
Interval = tuple[float, float]


def interval(score: float, n: int) -> Interval:
    """The interval of a share that was found on ``n`` rows (rule 1)."""
    if n == 0:
        return 0.0, 1.0
    centre = (score + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(score * (1 - score) / n + _Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def correlation_interval(score: float, n: int) -> Interval:
    """The interval of a rank correlation that was found on ``n`` rows (rule 2)."""
    if n <= 3:
        return -1.0, 1.0
    centre = math.atanh(max(-_NEAR, min(_NEAR, score)))
    half = _Z * math.sqrt(1.06 / (n - 3))
    return math.tanh(centre - half), math.tanh(centre + half)


# A correlation of 1 has no z.
_NEAR = 1 - 1e-12


def difference(
    first: float, first_ends: Interval, second: float, second_ends: Interval, common: float = 0.0
) -> Interval:
    """The interval of ``first - second`` from each one's own (rules 3 and 4).

    common: the correlation of the two, 0 where they come from separate rows.
    """

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * common * one * other + other**2))

    found = first - second
    low = reach(first - first_ends[0], second_ends[1] - second)
    high = reach(first_ends[1] - first, second - second_ends[0])
    return found - low, found + high


def paired_correlation(both: int, first: int, second: int, neither: int) -> float:
    """What two answers to the same rows have in common, for ``difference``: Newcombe's phi.

    Numbers of rows that both, only the first, only the second, or neither answered rightly. Where
    they go together it is corrected for continuity, as he does.
    """
    n = both + first + second + neither
    ends = (both + first) * (second + neither) * (both + second) * (first + neither)
    if ends == 0:
        return 0.0
    together = float(both * neither - first * second)
    if together > 0:
        together = max(0.0, together - n / 2)
    return together / math.sqrt(ends)


def rows_above(score: float, chance: float) -> int | None:
    """How many rows a share must be found on for its whole interval to lie above ``chance``.

    ``None`` when it is no better than that.
    """
    if score <= chance:
        return None
    return math.floor(_Z**2 * chance * (1 - chance) / (score - chance) ** 2) + 1


def correlation_rows(score: float) -> int | None:
    """The same of a rank correlation, above 0."""
    if score <= 0:
        return None
    return 3 + math.floor(1.06 * (_Z / math.atanh(min(_NEAR, score))) ** 2) + 1


def rows_reaching(limit: float) -> int:
    """How many rows it takes until a share without a mistake has an interval above ``limit``."""
    return math.ceil(_Z**2 * limit / (1 - limit))
