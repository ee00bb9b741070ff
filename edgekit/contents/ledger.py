"""Bytes of a model file on their way to parts: what ``attribution`` and its readers share."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["weights", "quantization", "graph", "metadata", "duplicate", "padding"]
Place = tuple[str, ...]

_DUPLICATE = 64  # bytes from which a repeated constant is worth a word


@dataclass(frozen=True)
class Part:
    """Bytes of one purpose at one place: ``("encoder", "layer 3", "attention", "query.weight")``.

    dtype: of the numbers, where the bytes are numbers.
    """

    path: Place
    kind: Kind
    dtype: str | None
    bytes: int

    def to_json(self) -> dict[str, Any]:
        return vars(self) | {"path": list(self.path)}


@dataclass
class Ledger:
    """Bytes on their way to parts."""

    counted: Counter[tuple[Place, Kind, str | None]] = field(default_factory=Counter)
    _seen: set[bytes] = field(default_factory=set)

    @property
    def bytes(self) -> int:
        return self.counted.total()

    def add(self, path: Place, kind: Kind, dtype: str | None, count: int) -> None:
        if count:
            self.counted[path, kind, dtype] += count

    def repeats(self, content: Iterable[Any]) -> bool:
        """Whether a constant with these bytes, in one piece or several, came before."""
        digest, size = hashlib.sha256(), 0
        for piece in content:
            digest.update(piece)
            size += len(piece)
        if size < _DUPLICATE:
            return False
        known = digest.digest() in self._seen
        self._seen.add(digest.digest())
        return known

    def parts(self) -> tuple[Part, ...]:
        found = (Part(*key, count) for key, count in self.counted.items())
        return tuple(sorted(found, key=lambda part: (-part.bytes, part.path, part.kind)))


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` to ``end`` of a file, and what they are."""

    start: int
    end: int
    path: Place
    kind: Kind
    dtype: str | None = None


def settle(
    spans: Iterable[Span], size: int, ledger: Ledger, gap: Callable[[int, int], tuple[Place, Kind]]
) -> None:
    """Enter ``size`` bytes, each once: to the span that begins first, or as ``gap`` says."""
    place = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        start, end = max(span.start, place), min(span.end, size)
        if end <= start:
            continue
        if start > place:
            ledger.add(*gap(place, start), None, start - place)
        ledger.add(span.path, span.kind, span.dtype, end - start)
        place = end
    if size > place:
        ledger.add(*gap(place, size), None, size - place)
