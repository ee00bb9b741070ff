"""``edgekit cache``: what the store holds, and making room."""

import collections
import re
from typing import Annotated

import typer

from edgekit.cli import options, render

_DAY = 86_400
_AGES = {"h": 3_600, "d": _DAY, "w": 7 * _DAY}

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def show(context: typer.Context, json: options.Json = False) -> None:
    """Show or prune the cache."""
    if context.invoked_subcommand is not None:
        return
    from edgekit.store import Store, folder_bytes
    from edgekit.units import format_bytes

    store = Store()
    stages: dict[str, list[int]] = collections.defaultdict(list)
    for entry in store.entries():
        stages[entry.name].append(folder_bytes(entry.path))
    total = sum(sum(sizes) for sizes in stages.values())
    if json:
        counted = {n: {"entries": len(s), "bytes": sum(s)} for n, s in sorted(stages.items())}
        render.show_json({"folder": str(store.folder), "bytes": total, "stages": counted})
        return
    typer.echo(f"{store.folder}: {format_bytes(total)}")
    if stages:
        rows = [(n, str(len(s)), format_bytes(sum(s))) for n, s in sorted(stages.items())]
        render.show_table(("stage", "entries", "bytes"), rows, right=(1, 2))


@app.command("prune")
def prune(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Unused for this long: 12h, 30d, 4w.  [default: 30d]"),
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Everything.")] = False,
    json: options.Json = False,
) -> None:
    """Remove entries that nothing used for long."""
    from edgekit.errors import UsageError
    from edgekit.store import Store
    from edgekit.units import format_bytes

    if all and older_than is not None:
        raise UsageError("--all and --older-than exclude each other; give one of them")
    freed = Store().prune(0 if all else parse_age(older_than or "30d"))
    if json:
        render.show_json({"freed": freed})
    else:
        typer.echo(f"freed {format_bytes(freed)}")


def parse_age(text: str) -> float:
    """Seconds from ``12h``, ``30d`` or ``4w``."""
    from edgekit.errors import UsageError

    match = re.fullmatch(r"(\d+)([hdw])", text.strip())
    if match is None:
        raise UsageError(f"--older-than: '{text}' is not an age; write it as 12h, 30d or 4w")
    return float(match[1]) * _AGES[match[2]]
