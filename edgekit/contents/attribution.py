"""What every byte of a model file is there for.

Rules:

1. Each byte of the file (for ONNX, of the files beside it too) belongs to one part, so that the
   parts' bytes sum to the file's size exactly. The containers are walked byte by byte: protobuf
   fields, flatbuffer tables, zip entries; nothing in them is run.
2. *weights*: numbers of constants, also those that describe a packed matrix. *quantization*:
   scales and zero points. *graph*: operators, names, shapes, and constants that are shapes, axes
   or indices. *metadata*: who wrote the file, notes, and the container's own bookkeeping.
   *duplicate*: a constant with the very bytes of an earlier one, from 64 bytes on. *padding*:
   bytes that nothing refers to.
3. A constant's path is the place in the model that its name says; where it says none, that of the
   operator which reads it; where that says none, the operator's kind.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgekit.artifact import Format
from edgekit.contents import identify_format

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


@dataclass(frozen=True)
class Attribution:
    """All parts of a file, the largest first. bytes: their sum, which is the file's size."""

    format: Format
    bytes: int
    parts: tuple[Part, ...]

    def by_kind(self) -> dict[str, int]:
        """Bytes of each kind, the largest first."""
        return _sums((part.kind, part.bytes) for part in self.parts)

    def by_dtype(self) -> dict[str, int]:
        """Bytes of numbers of each dtype, the largest first."""
        return _sums((part.dtype, part.bytes) for part in self.parts if part.dtype)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "bytes": self.bytes,
            "by_kind": self.by_kind(),
            "by_dtype": self.by_dtype(),
            "parts": [part.to_json() for part in self.parts],
        }


def attribute(path: Path) -> Attribution:
    """Attribute every byte of an ONNX, TFLite or TorchScript file.

    Raises ModelError when the file is missing, damaged, or of no format that we know. Time and
    memory are bounded by the file's size.
    """
    format = identify_format(path)
    if format == "onnx":
        from edgekit.contents.attribution_onnx import attribute_onnx

        ledger = attribute_onnx(path)
    elif format == "tflite":
        from edgekit.contents.attribution_tflite import attribute_tflite

        ledger = attribute_tflite(path)
    else:
        from edgekit.contents.attribution_torchscript import attribute_torchscript

        ledger = attribute_torchscript(path)
    return Attribution(format, ledger.bytes, ledger.parts())


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


def _sums(entries: Iterable[tuple[str, int]]) -> dict[str, int]:
    count: Counter[str] = Counter()
    for name, size in entries:
        count[name] += size
    return dict(count.most_common())
