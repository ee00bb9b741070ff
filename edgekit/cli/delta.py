"""``edgekit delta`` and ``edgekit apply-delta``: a tuned model as a small change of its base."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit import units
from edgekit.cli import options, render

_Base = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that was tuned.")]


def make(
    base: _Base,
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="What finetune:what=bias made of it.")
    ],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The delta to write.")],
    json: options.Json = False,
) -> None:
    """Write what a tuned checkpoint has that its base has not: its biases and head."""
    from edgekit.steps.finetune.delta import make_delta

    found = make_delta(base, tuned, output)
    if json:
        fields = {"path": str(found.path), "tensors": found.tensors, "bytes": found.bytes}
        render.show_json(fields | {"model_bytes": found.model_bytes})
        return
    typer.echo(
        f"{found.path}: {found.tensors} tensors, {units.format_bytes(found.bytes)} "
        f"({units.format_percent(found.bytes / found.model_bytes)} of the model)"
    )


def apply(
    base: _Base,
    delta: Annotated[Path, typer.Argument(metavar="DELTA", help="A file that delta wrote.")],
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="A new folder.")],
) -> None:
    """Write the tuned checkpoint that a base and a delta make; another base is refused."""
    from edgekit.steps.finetune.delta import apply_delta

    apply_delta(base, delta, output)
    typer.echo(f"{output}: the tuned checkpoint")
