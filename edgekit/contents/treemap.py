"""A picture of where a file's bytes are: a squarified treemap (Bruls et al., 2000) as SVG.

A box is a module, its area its bytes; the colour says what they are for. The text stays text,
whatever names a file has. The picture stands alone, and follows the reader's light or dark.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from edgekit.contents.attribution import Attribution
from edgekit.contents.ledger import Part
from edgekit.contents.tree import Branch, tree
from edgekit.errors import OutputError
from edgekit.units import format_bytes, format_percent

_HEAD = 17  # pixels for a module's own line
_LETTER = 6.1  # mean width of a letter at the size below
_SIZE = 11
_SMALLEST = 6.0  # square pixels; what is smaller is drawn as one
_ROOM = 36  # pixels of height from which a module has a line of its own
_GAP = 2.0
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

# Fill, in light and in dark.
_COLOURS = {
    "weights": ("#bcd3ea", "#2f5478"),
    "quantization": ("#f3d9a4", "#7a5a1c"),
    "graph": ("#cfd8c6", "#4c5a40"),
    "metadata": ("#dcdce2", "#4b4b55"),
    "duplicate": ("#eeb9ad", "#84382b"),
    "padding": ("#f1f1f1", "#35353b"),
}
_STYLE = """
.ek-treemap{font:%dpx system-ui,sans-serif;--ek-ink:#1b1f24;--ek-line:#fff;--ek-module:#eef1f4;
background:var(--ek-line)}
.ek-treemap text{fill:var(--ek-ink)}
.ek-treemap rect{stroke:var(--ek-line);stroke-width:1}
.ek-treemap .ek-module{fill:var(--ek-module)}
%s
@media(prefers-color-scheme:dark){
.ek-treemap{--ek-ink:#e8eaed;--ek-line:#15171a;--ek-module:#262a2f}
%s
}"""

Box = tuple[float, float, float, float]  # left, top, width, height


def treemap(
    attribution: Attribution,
    *,
    title: str = "",
    width: int = 960,
    height: int = 540,
    keyed: bool = True,
) -> str:
    """The SVG element. It has a ``viewBox`` and takes the width that there is.

    Every box has its path, kind, dtype, bytes and share as a title, which browsers show beside
    the pointer. keyed: with a line below that says what the colours are, which needs a width of
    about 700. Raises ModuleNotFoundError without the package squarify.
    """
    legend = 22 if keyed else 0
    total = max(attribution.bytes, 1)
    body = list(_module(tree(attribution), (0, 0, width, height - legend), total, ()))
    fills = [
        "\n".join(f".ek-treemap .ek-{kind}{{fill:{pair[side]}}}" for kind, pair in _COLOURS.items())
        for side in (0, 1)
    ]
    name = _text(title or f"{attribution.format}, {format_bytes(attribution.bytes)}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="ek-treemap" role="img" '
            f'aria-label="{name}" viewBox="0 0 {width} {height}" width="100%">',
            f"<style>{_STYLE % (_SIZE, *fills)}</style>",
            *body,
            *(_legend(attribution, height - legend + 6) if keyed else ()),
            "</svg>",
        ]
    )


def write_treemap(attribution: Attribution, path: Path, *, title: str = "") -> None:
    """The picture as a file. Raises OutputError when it cannot be written."""
    drawn = treemap(attribution, title=title)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(drawn + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; name another file") from None


def _module(branch: Branch, box: Box, total: int, path: tuple[str, ...]) -> Iterator[str]:
    """The boxes inside a module's."""
    _, _, width, height = box
    inside: list[Branch | Part] = [*branch.branches.values(), *branch.parts]
    inside.sort(key=lambda each: -each.bytes)
    whole = sum(each.bytes for each in inside)
    if whole == 0 or width <= 0 or height <= 0:
        return
    scale = width * height / whole
    large = [each for each in inside if each.bytes * scale >= _SMALLEST]
    rest = whole - sum(each.bytes for each in large)
    sizes = [each.bytes * scale for each in large]
    few = len(inside) - len(large)
    boxes = _squarify([*sizes, rest * scale] if few else sizes, box)
    for each, place in zip(large, boxes):
        if isinstance(each, Part):
            yield _leaf(each, place, total)
        else:
            yield from _branch(each, place, total, path)
    if few and len(boxes) > len(large):
        said = f"{few} smaller parts · {_amount(rest, total)}"
        yield _rectangle(boxes[-1], "padding" if not path else "module", said)


def _branch(branch: Branch, box: Box, total: int, path: tuple[str, ...]) -> Iterator[str]:
    """A module with its own line, where there is room for one and something to tell apart."""
    left, top, width, height = box
    inner = (*path, branch.name)
    if not branch.branches:
        yield from _parts(branch, box, total)
        return
    said = f"{' / '.join(inner)} · {_amount(branch.bytes, total)}"
    yield _rectangle(box, "module", said)
    head = list(_label(f"{branch.name} · {format_bytes(branch.bytes)}", branch.name, box))
    if not head or height < _ROOM:
        yield from _module(branch, box, total, inner)
        return
    yield from head
    within = (left + _GAP, top + _HEAD, width - 2 * _GAP, height - _HEAD - _GAP)
    yield from _module(branch, within, total, inner)


def _parts(branch: Branch, box: Box, total: int) -> Iterator[str]:
    """What a name holds by kind and dtype; the largest of it bears the name."""
    parts = sorted(branch.parts, key=lambda part: -part.bytes)
    scale = box[2] * box[3] / max(branch.bytes, 1)
    for number, (part, place) in enumerate(
        zip(parts, _squarify([p.bytes * scale for p in parts], box))
    ):
        yield _leaf(part, place, total, branch.name if number == 0 else "")


def _leaf(part: Part, box: Box, total: int, name: str = "") -> str:
    dtype = f" {part.dtype}" if part.dtype else ""
    said = f"{' / '.join(part.path)} · {part.kind}{dtype} · {_amount(part.bytes, total)}"
    shown = name or part.dtype or part.kind
    long = f"{shown} · {format_bytes(part.bytes)}"
    return "".join([_rectangle(box, part.kind, said), *_label(long, shown, box)])


def _rectangle(box: Box, kind: str, said: str) -> str:
    left, top, width, height = box
    return (
        f'<rect class="ek-{kind}" x="{left:.1f}" y="{top:.1f}" width="{max(width, 0):.1f}" '
        f'height="{max(height, 0):.1f}"><title>{_text(said)}</title></rect>'
    )


def _label(long: str, short: str, box: Box) -> Iterator[str]:
    """The longer text where it fits, else the shorter, else none."""
    left, top, width, height = box
    for words in (long, short, short.removesuffix(".weight")):
        if height >= _SIZE + 4 and len(words) * _LETTER + 8 <= width:
            yield (
                f'<text x="{left + 4:.1f}" y="{top + _SIZE + 1:.1f}" pointer-events="none">'
                f"{_text(words)}</text>"
            )
            return


def _legend(attribution: Attribution, top: float) -> Iterator[str]:
    left = 0.0
    for kind, size in attribution.by_kind().items():
        words = f"{kind} {_amount(size, max(attribution.bytes, 1))}"
        yield f'<rect class="ek-{kind}" x="{left:.0f}" y="{top:.0f}" width="11" height="11"/>'
        yield f'<text x="{left + 15:.0f}" y="{top + 10:.0f}">{_text(words)}</text>'
        left += len(words) * _LETTER + 30


def _squarify(sizes: list[float], box: Box) -> list[Box]:
    import squarify

    found = squarify.squarify([size for size in sizes if size > 0], *box)
    return [(each["x"], each["y"], each["dx"], each["dy"]) for each in found]


def _amount(size: int, total: int) -> str:
    return f"{format_bytes(size)} ({format_percent(size / total, 1)})"


def _text(words: str) -> str:
    return html.escape(_CONTROL.sub("�", words))
