"""What differs between two model files: bytes by layer, operators, and dtypes.

Rules:

1. A layer is the place of its parts without the last name: ``encoder / layer 3 / attention``,
   ``embeddings / words``. Files of different formats name layers alike where their weights'
   names, or the order of a frozen program, tell.
2. Operators are compared by kind and count, and only within a format: a product of matrices has
   another name in each.
3. A layer's dtype is what its weights are stored as, leaving out those that are less than a
   tenth of its numbers.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.contents import read_contents
from edgekit.contents.attribution import Attribution, attribute
from edgekit.contents.ledger import Part, Place

_WHOLE = ("embeddings", "graph", "metadata")  # places whose last name is a layer's
_MINOR = 0.1


@dataclass(frozen=True)
class LayerChange:
    """A layer's bytes and dtypes in both files; nothing where a file does not have it."""

    place: Place
    before: int
    after: int
    dtypes_before: tuple[str, ...] = ()
    dtypes_after: tuple[str, ...] = ()

    @property
    def grown(self) -> int:
        return self.after - self.before


@dataclass(frozen=True)
class FileDiff:
    """first, second: the files. layers: all of them, the largest change first. kinds: bytes of
    each kind, before and after. ops_added, ops_removed: operators by kind; nothing, and a
    ``note`` that says so, where formats differ."""

    first: Path
    second: Path
    before: Attribution
    after: Attribution
    layers: tuple[LayerChange, ...]
    ops_added: dict[str, int]
    ops_removed: dict[str, int]
    note: str | None = None

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        """Bytes of each kind in both files."""
        one, other = self.before.by_kind(), self.after.by_kind()
        return {kind: (one.get(kind, 0), other.get(kind, 0)) for kind in (one | other)}

    def to_json(self) -> dict[str, Any]:
        return {
            "first": str(self.first),
            "second": str(self.second),
            "formats": [self.before.format, self.after.format],
            "bytes": [self.before.bytes, self.after.bytes],
            "kinds": {kind: list(sizes) for kind, sizes in self.kinds.items()},
            "layers": [
                {
                    "place": list(each.place),
                    "bytes": [each.before, each.after],
                    "dtypes": [list(each.dtypes_before), list(each.dtypes_after)],
                }
                for each in self.layers
            ],
            "ops_added": self.ops_added,
            "ops_removed": self.ops_removed,
            "note": self.note,
        }


def diff_files(first: Path, second: Path) -> FileDiff:
    """Compare two files of the same or of different formats. Raises ModelError as ``attribute``."""
    before, after = attribute(first), attribute(second)
    one, other = _by_layer(before), _by_layer(after)
    changes = [
        LayerChange(
            place,
            sum(part.bytes for part in one.get(place, ())),
            sum(part.bytes for part in other.get(place, ())),
            _dtypes(one.get(place, [])),
            _dtypes(other.get(place, [])),
        )
        for place in one | other
    ]
    changes.sort(key=lambda each: (-abs(each.grown), each.place))
    added: Counter[str] = Counter()
    removed: Counter[str] = Counter()
    note = None
    if before.format == after.format:
        ops, others = (Counter(read_contents(path).ops) for path in (first, second))
        added, removed = others - ops, ops - others
    else:
        note = f"operators of {before.format} and {after.format} have different names"
    return FileDiff(first, second, before, after, tuple(changes), dict(added), dict(removed), note)


def layer_of_part(part: Part) -> Place:
    """Rule 1."""
    if part.path[0] in _WHOLE:
        return part.path[:2]
    return part.path[:-1] or part.path


def _by_layer(attribution: Attribution) -> dict[Place, list[Part]]:
    found: dict[Place, list[Part]] = {}
    for part in attribution.parts:
        found.setdefault(layer_of_part(part), []).append(part)
    return found


def _dtypes(parts: list[Part]) -> tuple[str, ...]:
    sizes: Counter[str] = Counter()
    for part in parts:
        if part.kind in ("weights", "duplicate") and part.dtype:
            sizes[part.dtype] += part.bytes
    return tuple(sorted(d for d, size in sizes.items() if size >= _MINOR * sizes.total()))
