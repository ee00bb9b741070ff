"""Rows without labels, before a teacher answers them: none may be known already."""

from collections.abc import Hashable

from edgekit.data.rows import Rows, apart
from edgekit.errors import DataError


def without_known(rows: Rows, train: Rows | None, eval: Rows | None) -> tuple[Rows, str]:
    """The rows without labels that stand in neither split nor twice, and a sentence on the rest.

    Texts are alike that differ in case and spacing only. Raises DataError when no row is left.
    """
    judged, known = _all(eval), _all(train)
    kept: list[int] = []
    seen: set[Hashable] = set()
    leaked = 0
    for number, content in enumerate(map(_plain, rows.contents())):
        if content in judged:
            leaked += 1
        elif content not in known and content not in seen:
            seen.add(content)
            kept.append(number)
    twice = len(rows) - leaked - len(kept)
    if not kept:
        raise DataError(
            f"all {len(rows):,} rows of --unlabeled stand in the eval rows ({leaked:,}) or the "
            f"training rows ({twice:,}); give other rows"
        )
    told = f"{len(kept):,} rows of --unlabeled for steps that learn"
    if leaked or twice:
        told += f"; left out: {leaked:,} that stand in the eval rows, {twice:,} in the training "
        told += "rows or twice"
    chosen = rows.take(kept)
    return Rows(chosen.texts, chosen.pairs, chosen.words, chosen.images, chosen.arrays), told


def _all(rows: Rows | None) -> set[Hashable]:
    """What stands in the rows, and each text of a pair alone as well."""
    if rows is None:
        return set()
    return {_plain(content) for each in (rows, apart(rows)) for content in each.contents()}


def _plain(content: Hashable) -> Hashable:
    if isinstance(content, str):
        return " ".join(content.casefold().split())
    if isinstance(content, tuple):
        return tuple(map(_plain, content))
    return content
