"""``edgekit inspect``: what is in a model file."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render

_LARGEST = 10


def run(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .onnx, .tflite or .pt file, or a bundle.")
    ],
    json: options.Json = False,
) -> None:
    """Print what is inside a model file.

    Inputs, outputs, ops, bytes per dtype and the largest tensors.
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
    found = {str(file): read_contents(file) for file in files}
    if json:
        render.show_json({name: render.contents_json(each) for name, each in found.items()})
        return
    for name, contents in found.items():
        render.show_contents(name, contents, largest=_LARGEST)
