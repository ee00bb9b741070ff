"""``edgekit verify``: check a bundle with nothing but the bundle."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.cli import options, render


def run(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that build wrote.")],
    json: options.Json = False,
) -> int:
    """Check a bundle with nothing but the bundle.

    Digests of all files, golden answers in a fresh process, shipped bytes.
    """
    from edgekit.bundle.verify import verify

    with render.watching(json) as on_event:
        result = verify(bundle, on_event=on_event)
    if json:
        render.show_json(result.to_json())
    else:
        render.show_verdict(result.verdict)
    return render.EXIT_CODES[result.verdict.outcome]
