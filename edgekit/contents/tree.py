"""Parts of a file as a tree of the model's modules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit.contents.attribution import Attribution, Kind, Part

_OUTSIDE = ("operators", "graph", "metadata", "padding")  # listed behind the model's own modules


@dataclass
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
        numbered = [branch.name.rpartition(" ")[2].isdigit() for branch in found]
        if found and all(numbered):
            return sorted(found, key=lambda b: (b.name.rpartition(" ")[0], _last_number(b.name)))
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


def _last_number(name: str) -> int:
    return int(name.rpartition(" ")[2])


def rows(branch: Branch, depth: int, most: int) -> list[tuple[int, str, int, dict[Kind, int]]]:
    """Level, name, bytes and kinds of each branch down to ``depth``; of one branch's at most
    ``most`` are listed, and the rest are summed up."""
    return list(_rows(branch, depth, most, 0))


def _rows(branch: Branch, depth: int, most: int, level: int) -> Any:
    shown: Sequence[Branch] = branch.sorted()
    rest = shown[most:] if len(shown) > most + 1 else ()
    for each in shown[: len(shown) - len(rest)]:
        yield level, each.name, each.bytes, each.kinds()
        if level + 1 < depth:
            yield from _rows(each, depth, most, level + 1)
    if rest:
        together = Branch("", [part for each in rest for part in each.everything()])
        yield level, f"{len(rest)} more", together.bytes, together.kinds()
