"""``edgekit bench``: how a bundle's model files run here."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that build wrote.")],
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Threads to run on.  [default: the target's]"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="How long each file is run.")
    ] = 5.0,
    json: options.Json = False,
) -> None:
    """Measure how a bundle runs on this host."""
    from edgekit.bundle.bench import bench

    with render.watching(json) as on_event:
        figures = bench(bundle, threads=threads, seconds=seconds, on_event=on_event)
    if json:
        render.show_json(figures)
    else:
        render.show_figures(figures)
