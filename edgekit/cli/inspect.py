"""``edgekit inspect``: what is in a model file."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render, render_bytes

_LARGEST = 10


def run(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .onnx, .tflite or .pt file, or a bundle.")
    ],
    why: Annotated[
        bool, typer.Option("--why", help="What every byte is there for, module by module.")
    ] = False,
    treemap: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", help="Draw that as a picture too.", show_default=False),
    ] = None,
    json: options.Json = False,
) -> None:
    """Print what is inside a model file.

    Inputs, outputs, ops, bytes per dtype and the largest tensors; with --why all bytes.
    """
    from edgekit.artifact import SUFFIXES
    from edgekit.contents import read_contents
    from edgekit.errors import ModelError

    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES.values())
        if not files:
            raise ModelError(
                f"{path} holds no model file ({', '.join(SUFFIXES.values())}); name a file or a "
                "bundle folder such as dist/android-arm64"
            )
    if why or treemap is not None:
        _attribute(files, treemap, json)
        return
    found = {str(file): read_contents(file) for file in files}
    if json:
        render.show_json({name: render.contents_json(each) for name, each in found.items()})
        return
    for name, contents in found.items():
        render.show_contents(name, contents, largest=_LARGEST)


def _attribute(files: list[Path], treemap: Path | None, json: bool) -> None:
    from edgekit.contents.attribution import attribute
    from edgekit.errors import UsageError

    if treemap is not None and len(files) > 1:
        named = ", ".join(file.name for file in files)
        raise UsageError(f"--treemap: there are several model files ({named}); name one")
    found = {str(file): attribute(file) for file in files}
    if treemap is not None:
        from edgekit.contents.treemap import write_treemap

        for name, each in found.items():
            write_treemap(each, treemap, title=name)
    if json:
        render.show_json({name: each.to_json() for name, each in found.items()})
        return
    for name, each in found.items():
        render_bytes.show_why(name, each)
    if treemap is not None:
        typer.echo(treemap)
