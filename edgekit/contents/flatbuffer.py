"""A FlatBuffer, walked table by table (flatbuffers.dev/internals): where each value's bytes are.

The caller says what a field is, as the schema has it; the walk notes the bytes of every table,
vtable, vector and string that it visits. Its work is bounded by the file's size: each visit is
paid for with the bytes that an honest file spends on it, and repeated ones run dry.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_TABLE, _NUMBER = 8, 4
# A vector of numbers is preceded by its length, a string is followed by a zero.
_LENGTH, _END = 4, 1

Note = Callable[[int, int], None]


@dataclass
class Buffer:
    """The bytes of a file. Positions that lead out of it raise ValueError."""

    content: memoryview
    allowance: int = field(init=False)

    def __post_init__(self) -> None:
        self.allowance = len(self.content)

    def number(self, format: str, place: int) -> Any:
        if place < 0:
            raise ValueError("a place before the file")
        return struct.unpack_from(f"<{format}", self.content, place)[0]

    def pay(self, count: int) -> None:
        self.allowance -= count
        if self.allowance < 0:
            raise ValueError("more elements than bytes")

    def root(self, note: Note) -> "Table":
        return Table(self, self.number("I", 0), note)


class Table:
    """A table at ``place``. note: told of the bytes of what is read from it."""

    def __init__(self, buffer: Buffer, place: int, note: Note) -> None:
        buffer.pay(_TABLE)
        self.buffer, self.place, self.note = buffer, place, note
        self.fields = place - buffer.number("i", place)
        self.count = buffer.number("H", self.fields)
        size = buffer.number("H", self.fields + 2)
        note(self.fields, self.fields + self.count)
        note(place, place + size)

    def number(self, field: int, format: str, default: int = 0) -> Any:
        place = self._place(field)
        return default if place is None else self.buffer.number(format, place)

    def table(self, field: int, note: Note) -> "Table | None":
        place = self._pointed(field)
        return None if place is None else Table(self.buffer, place, note)

    def tables(self, field: int, note: Note) -> "list[Table]":
        """The tables of a vector of them."""
        start, count = self.vector(field, _NUMBER)
        self.buffer.pay(count * _NUMBER)
        places = (start + n * _NUMBER for n in range(count))
        return [Table(self.buffer, p + self.buffer.number("I", p), note) for p in places]

    def numbers(self, field: int, format: str = "i") -> tuple[int, ...]:
        size = struct.calcsize(format)
        start, count = self.vector(field, size)
        self.buffer.pay(count * size)
        return struct.unpack_from(f"<{count}{format}", self.buffer.content, start) if count else ()

    def text(self, field: int, note: Note | None = None) -> str:
        place = self._pointed(field)
        if place is None:
            return ""
        start, end = place + _LENGTH, place + _LENGTH + self.buffer.number("I", place)
        self.buffer.pay(end - start)
        self._tell(place, end + _END, note)
        return bytes(self.buffer.content[start:end]).decode(errors="replace")

    def vector(self, field: int, size: int, note: Note | None = None) -> tuple[int, int]:
        """Where a vector's elements, of ``size`` bytes each, start, and how many there are."""
        place = self._pointed(field)
        if place is None:
            return 0, 0
        count = self.buffer.number("I", place)
        self._tell(place, place + _LENGTH + count * size, note)
        return place + _LENGTH, count

    def _tell(self, start: int, end: int, note: Note | None) -> None:
        if end > len(self.buffer.content):
            raise ValueError("a vector that ends behind the file")
        (note or self.note)(start, end)

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self.count:
            return None
        offset = self.buffer.number("H", self.fields + entry)
        return self.place + offset if offset else None

    def _pointed(self, field: int) -> int | None:
        place = self._place(field)
        return None if place is None else place + int(self.buffer.number("I", place))
