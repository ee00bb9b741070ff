"""``edgekit verify``: check a bundle with nothing but the bundle."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that build wrote.")],
    device: options.Device = None,
    matrix: Annotated[
        bool,
        typer.Option(
            "--matrix", help="On every runtime from the oldest that the target promises to ours."
        ),
    ] = False,
    json: options.Json = False,
) -> int:
    """Check a bundle with nothing but the bundle.

    Digests of all files, golden answers in a fresh process, shipped bytes.
    """
    from edgekit.bundle.verify import matrix_of, verify

    devices = [] if matrix and device is None else options.open_devices(device)
    with render.watching(json) as on_event:
        if matrix:
            devices += matrix_of(bundle, on_event=on_event)
        result = verify(bundle, devices=devices, on_event=on_event)
    if json:
        render.show_json(result.to_json())
    else:
        render.show_verdict(result.verdict)
    return render.EXIT_CODES[result.verdict.outcome]
