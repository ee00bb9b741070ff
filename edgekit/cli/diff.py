"""``edgekit diff``: what differs between two model files or bundles."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render, render_bytes


def run(
    first: Annotated[Path, typer.Argument(metavar="A", help="A model file, or a bundle.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another, of any format.")],
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Rows to feed both (.npz, or texts as CSV and the like).  [default: a bundle's "
            "golden inputs]",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what grew between two model files, layer by layer.

    Operators added and removed, dtypes, and how far the answers to the same inputs are apart.
    """
    import edgekit

    with render.watching(json) as on_event:
        found = edgekit.diff(first, second, inputs=inputs, on_event=on_event)
    if json:
        render.show_json([each.to_json() for each in found])
        return
    for each in found:
        render_bytes.show_diff(each)
