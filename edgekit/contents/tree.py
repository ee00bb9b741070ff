"""Parts of a file as a tree of the model's modules."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edgekit.contents.attribution import Attribution
from edgekit.contents.ledger import Kind, Part

_NUMBERED = re.compile(r"([^/]*) (\d{1,9})( / |$)", re.ASCII)
_OUTSIDE = ("operators", "graph", "metadata", "padding")  # listed behind the model's own modules


@dataclass(eq=False)
class Branch:
    """What lies below one name. parts: those that end here."""

    name: str
    parts: list[Part] = field(default_factory=list)
    branches: "dict[str, Branch]" = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.everything())

    def everything(self) -> list[Part]:
        """All parts, here and below."""
        found, waiting = [], [self]
        while waiting:
            branch = waiting.pop()
            found += branch.parts
            waiting += branch.branches.values()
        return found

    def kinds(self) -> dict[Kind, int]:
        """Bytes of each kind, the largest first."""
        count: Counter[Kind] = Counter()
        for part in self.everything():
            count[part.kind] += part.bytes
        return dict(count.most_common())

    def sorted(self) -> "list[Branch]":
        """The branches in the order of layers where names are numbered, else the largest first."""
        found = list(self.branches.values())
        places = [_numbered(branch.name) for branch in found]
        if None not in places:
            return [each for _, each in sorted(zip(places, found), key=lambda pair: pair[0] or ())]
        return sorted(found, key=lambda b: (b.name in _OUTSIDE, -b.bytes, b.name))


def tree(attribution: Attribution) -> Branch:
    """The whole file; names that hold one other name alone are joined with it."""
    root = Branch("")
    for part in attribution.parts:
        branch = root
        for name in part.path:
            branch = branch.branches.setdefault(name, Branch(name))
        branch.parts.append(part)
    return _joined(root, first=True)


def _joined(branch: Branch, first: bool = False) -> Branch:
    while not first and not branch.parts and len(branch.branches) == 1:
        inner = next(iter(branch.branches.values()))
        branch = Branch(f"{branch.name} / {inner.name}", inner.parts, inner.branches)
    joined = [_joined(each) for each in branch.branches.values()]
    return Branch(branch.name, branch.parts, {each.name: each for each in joined})


def _numbered(name: str) -> tuple[str, int] | None:
    """``layer`` and 3 of ``layer 3``, or of ``layer 3 / weight``."""
    found = _NUMBERED.match(name)
    return (found[1], int(found[2])) if found else None


def rows(
    branch: Branch, depth: int, most: int, least: int
) -> list[tuple[int, str, int, dict[Kind, int]]]:
    """Level, name, bytes and kinds of each branch down to ``depth``. Of one branch's at most
    ``most`` are listed, and none below ``least`` bytes beside others; the rest are summed up."""
    return list(_rows(branch, depth, most, least, 0))


def _rows(branch: Branch, depth: int, most: int, least: int, level: int) -> Iterator[Any]:
    shown = [each for each in branch.sorted() if each.bytes >= least][:most]
    rest = [each for each in branch.sorted() if each not in shown]
    if len(rest) == 1:
        shown, rest = branch.sorted(), []
    for each in shown:
        yield level, each.name, each.bytes, each.kinds()
        if level + 1 < depth:
            yield from _rows(each, depth, most, least, level + 1)
    if rest and (shown or level == 0):
        together = Branch("", [part for each in rest for part in each.everything()])
        yield level, f"{len(rest)} smaller ones", together.bytes, together.kinds()
