"""Importance as a picture: an SVG that any browser shows, written without a drawing library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from edgekit.measure.importance import Importance
    from edgekit.preprocess import Array

_WIDTH, _LEFT, _ROW, _GAP = 760, 90, 20, 18
_PALE, _DARK = (232, 240, 250), (8, 48, 107)
_TEXT = 'font-family="sans-serif" fill="#222"'


def draw(title: str, found: Sequence[Importance]) -> str:
    """One panel a score: bars where a row has one unit, a strip of shaded cells otherwise.

    A row's units are shaded from 0 (pale) to the panel's largest; hovering tells the number.
    """
    parts = [f'<text x="12" y="26" font-size="16" {_TEXT}>{escape(title)}</text>']
    top = 46
    for each in found:
        parts += _panel(each, top)
        top += 42 + len(each.rows) * _ROW + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" '
        f'viewBox="0 0 {_WIDTH} {top}">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(found: Importance, top: int) -> Iterator[str]:
    yield (
        f'<text x="12" y="{top + 14}" font-size="13" font-weight="bold" {_TEXT}>'
        f"{escape(f'{found.part} by {found.score}')}</text>"
    )
    yield (
        f'<text x="12" y="{top + 31}" font-size="11" {_TEXT} opacity="0.7">'
        f"{escape(found.meaning)}</text>"
    )
    largest = max(float(values.max(initial=0)) for values in found.rows.values()) or 1.0
    for number, (name, values) in enumerate(found.rows.items()):
        y = top + 40 + number * _ROW
        yield f'<text x="12" y="{y + 13}" font-size="11" {_TEXT}>{escape(name)}</text>'
        yield from _cells(values, y, largest) if len(values) != 1 else _bar(values[0], y, largest)


def _bar(value: float, y: int, largest: float) -> Iterator[str]:
    length = max(1.0, (_WIDTH - _LEFT - 70) * float(value) / largest)
    yield (
        f'<rect x="{_LEFT}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 5}" '
        f'fill="{_shade(float(value) / largest)}"/>'
    )
    yield (
        f'<text x="{_LEFT + length + 6:.1f}" y="{y + 13}" font-size="11" {_TEXT}>{value:.3g}</text>'
    )


def _cells(values: Array, y: int, largest: float) -> Iterator[str]:
    width = min(48.0, (_WIDTH - _LEFT - 12) / max(1, len(values)))
    gap = 1 if width > 4 else 0
    for number, value in enumerate(values):
        yield (
            f'<rect x="{_LEFT + number * width:.2f}" y="{y + 1}" width="{width - gap:.2f}" '
            f'height="{_ROW - 3}" fill="{_shade(float(value) / largest)}">'
            f"<title>{number + 1}: {value:.4g}</title></rect>"
        )


def _shade(share: float) -> str:
    share = min(1.0, max(0.0, share))
    mixed = (round(p + (d - p) * share) for p, d in zip(_PALE, _DARK, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)
