"""The scale of each table of a static int8 file, found by what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.steps.quantize.grid import LARGEST, Float32, Int8

Array = np.ndarray[Any, Any]

_FEW = 64  # a part of fewer numbers may equal another by chance, and is stored as it is


class Tables:
    """Tables with their scales. Converters rename them, and keep only the rows that are read."""

    def __init__(self, tables: Sequence[tuple[Array, float]]) -> None:
        # A converter that moves a sum behind a transpose transposes the table as well.
        self._tables = [
            (np.ascontiguousarray(form).reshape(-1), scale)
            for table, scale in tables
            for form in (table, table.T)
        ]

    def scale(self, values: Array) -> float | None:
        """The scale of the table that holds these numbers one after the other."""
        flat = values.reshape(-1)
        if values.dtype != np.float32 or not flat.any():
            return None
        place = int(np.flatnonzero(flat)[0])
        for table, scale in self._tables:
            if flat.size > table.size or flat.size < min(_FEW, table.size):
                continue
            starts = np.flatnonzero(table[place:] == flat[place])
            if any(np.array_equal(table[s : s + flat.size], flat) for s in starts):
                return scale
        return None


def table_integers(values: Array, scale: float) -> Int8:
    """Integers on one scale, half to even."""
    steps = np.clip(np.rint(values / np.float32(scale)), -LARGEST, LARGEST)
    integers: Int8 = steps.astype(np.int8)
    return integers


def channel_scales(scale: float, channels: int) -> Float32:
    """A table's scale for each channel of a product that it is the weight of."""
    return np.full(channels, scale, np.float32)
