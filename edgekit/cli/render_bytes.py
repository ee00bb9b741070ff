"""What ``inspect --why`` and ``diff`` print: where bytes are, and where they went."""

from typing import TYPE_CHECKING

import typer

from edgekit.cli.render import bold, dim, show_table
from edgekit.units import format_bytes, format_percent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekit.contents.attribution import Attribution
    from edgekit.contents.diff import FileDiff, LayerChange
    from edgekit.contents.ledger import Kind
    from edgekit.difference import Comparison, Numerics

_DEPTH = 3
_MOST = 12  # branches of one branch
_LEAST = 1000  # a branch with less than this part of the file is not listed by itself
_BAR = 24
_CHANGES = 20
_OPS = 12


def show_why(name: str, attribution: "Attribution") -> None:
    """Bytes by kind and dtype, then by module."""
    from edgekit.contents.tree import rows, tree

    total = max(attribution.bytes, 1)
    typer.echo(f"{bold(name)}  {attribution.format}, {attribution.bytes:,} bytes, all of them:")
    kinds = attribution.by_kind().items()
    typer.echo("  " + ", ".join(f"{kind} {_share(size, total)}" for kind, size in kinds))
    dtypes = attribution.by_dtype().items()
    told = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in dtypes)
    typer.echo(f"  numbers: {told or 'none'}\n")
    table = [
        (
            f"{'  ' * level}{_plain(branch)}",
            format_bytes(size),
            format_percent(size / total, 1),
            "█" * round(_BAR * size / total),
            _kinds(parts),
        )
        for level, branch, size, parts in rows(tree(attribution), _DEPTH, _MOST, total // _LEAST)
    ]
    show_table(("where", "bytes", "", "", "of them"), table, right=(1, 2))
    typer.echo()


def show_diff(comparison: "Comparison") -> None:
    """What grew, what it is made of, and how far the answers are apart."""
    files = comparison.files
    before, after = files.before.bytes, files.after.bytes
    typer.echo(f"{bold(str(files.first))}  {files.before.format}, {format_bytes(before)}")
    typer.echo(f"{bold(str(files.second))}  {files.after.format}, {format_bytes(after)}")
    typer.echo(f"{_grown(after - before)} ({(after - before) / max(before, 1) * 100:+.1f} %)\n")
    kinds = [
        (kind, format_bytes(one), format_bytes(other), _grown(other - one))
        for kind, (one, other) in files.kinds.items()
    ]
    show_table(("", "before", "after", "change"), kinds, right=(1, 2, 3))
    typer.echo()
    _show_layers(files)
    _show_operators(files)
    if comparison.numerics is not None:
        _show_numerics(comparison.numerics)
    typer.echo()


def _show_layers(files: "FileDiff") -> None:
    changed = [e for e in files.layers if e.grown or e.dtypes_before != e.dtypes_after]
    if not changed:
        typer.echo("every layer has as many bytes as before")
        return
    table = [
        (
            _plain(" / ".join(each.place)),
            format_bytes(each.before) if each.before else "",
            format_bytes(each.after) if each.after else "",
            _grown(each.grown),
            _retyped(each),
        )
        for each in changed[:_CHANGES]
    ]
    show_table(("layer", "before", "after", "change", "dtype"), table, right=(1, 2, 3))
    same = len(files.layers) - len(changed)
    rest = changed[_CHANGES:]
    if rest:
        typer.echo(dim(f"{len(rest)} more, {_grown(sum(each.grown for each in rest))} together"))
    if same:
        typer.echo(dim(f"{same} layers have as many bytes as before"))


def _show_operators(files: "FileDiff") -> None:
    typer.echo()
    if files.note is not None:
        typer.echo(f"operators: not compared, because {files.note}")
        return
    for word, found in (("added", files.ops_added), ("removed", files.ops_removed)):
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{count} {_plain(kind)}" for kind, count in ordered[:_OPS])
        more = f" and {len(ordered) - _OPS} kinds more" if len(ordered) > _OPS else ""
        typer.echo(f"operators {word}: {told or 'none'}{more}")


def _show_numerics(numerics: "Numerics") -> None:
    typer.echo()
    typer.echo(f"answers to {numerics.rows} rows of {numerics.inputs}")
    if numerics.reason is not None:
        typer.echo(f"  not compared: {numerics.reason}")
    found = numerics.difference
    if found is not None:
        typer.echo(
            f"  apart by {found.error:.3g} of the first's spread (largest {found.max:.3g}); "
            f"{format_percent(found.agreement)} of the predictions are the same"
        )
    departure = numerics.departure
    if departure is None:
        return
    if departure.reason is not None:
        typer.echo(f"  first value that departs: not known; {departure.reason}")
    elif departure.first is None:
        typer.echo(f"  none of the {len(departure.values)} values inside that both have departs")
    else:
        first, worst = departure.first, max(departure.values, key=lambda value: value.error)
        typer.echo(
            f"  first value that departs: {_plain(first.name)} ({first.made_by}), by "
            f"{first.error:.3g} of its spread; furthest of {len(departure.values)}: "
            f"{_plain(worst.name)} ({worst.made_by}), by {worst.error:.3g}"
        )


def _retyped(each: "LayerChange") -> str:
    before, after = " + ".join(each.dtypes_before), " + ".join(each.dtypes_after)
    return before if before == after else f"{before or 'none'} → {after or 'none'}"


def _kinds(parts: "Mapping[Kind, int]") -> str:
    """What else than weights a branch holds, where that is more than a thousandth."""
    total = sum(parts.values())
    if len(parts) == 1:
        return next(iter(parts))
    told = [f"{kind} {format_percent(size / total, 1)}" for kind, size in parts.items()]
    return ", ".join(word for word, size in zip(told, parts.values()) if size * 1000 >= total)


def _share(size: int, total: int) -> str:
    return f"{format_bytes(size)} ({format_percent(size / total, 1)})"


def _grown(count: int) -> str:
    return f"{'+' if count > 0 else ''}{format_bytes(count)}"


def _plain(name: str) -> str:
    """A file's own name without what would move the terminal's cursor."""
    return "".join(letter if letter.isprintable() else "�" for letter in name)
