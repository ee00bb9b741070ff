"""``edgekit report``: what a person reads of bundles."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render


def run(
    bundle: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[BUNDLE]…",
            help="Folders that build wrote, or a folder of them.  [default: the project's output]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write.  [default: report.html or model-card.md beside the first bundle]",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="FORMAT", help="html: one page. markdown: a model card.")
    ] = "html",
    json: options.Json = False,
) -> None:
    """Write one page, or a model card, about bundles.

    What was built and why, where the bytes are, what changed in the answers, speed, memory, and
    the commands that repeat each figure. Needs nothing but the bundles.
    """
    import edgekit

    place = edgekit.report(bundle or None, output=output, format=format)
    if json:
        render.show_json({"report": str(place)})
    else:
        typer.echo(str(place))
