"""``edgekit join``: the bundles of several tasks on one base, with their common weights once."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit import units
from edgekit.cli import options, render


def run(
    bundles: Annotated[
        list[str], typer.Argument(metavar="TASK=BUNDLE", help="Two or more, of one base.")
    ],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
    json: options.Json = False,
) -> None:
    """Put bundles of several tasks on one base together, what they share once (ONNX).

    For models that differ in biases and head: finetune:what=bias, or checkpoints of deltas.
    """
    from edgekit.bundle.join import join, read_names

    found = join(read_names(bundles), output)
    if json:
        render.show_json({"path": str(found.path), "bytes": found.bytes, "apart": found.apart})
        return
    size, apart = units.format_bytes(found.bytes), units.format_bytes(found.apart)
    typer.echo(f"{found.path}: {size} instead of {apart} apart")
