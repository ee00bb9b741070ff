"""Arguments and flags that several commands take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgekit.devices import device as devices

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint folder, a hub id, package.module:factory, a model file, or "
        "sample:banking77.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Training rows (CSV, TSV, JSON lines, Parquet, CoNLL, npz, image folder, or a hub "
        "data set); calibration and vocabulary come from here only.",
    ),
]
Eval = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Rows for the figures only; split off --data when absent."),
]
Unlabeled = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="More rows for a teacher to answer in steps that learn: as --data, without labels, or "
        ".txt with one text a line; may be given again.",
    ),
]
Text = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the text.")]
TextPair = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column with the second text.")
]
Label = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the label.")]
Task = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="What the model does, where its config does not say."),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="What to build for: a name (edgekit targets) or a folder; may be given again.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="LIMITS",
        help="30MB, or size=30MB,latency=20ms,memory=150MB,accuracy-drop=1%.",
    ),
]
Project = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The project file.  [default: edgekit.toml here]"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else.")]
Device = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Where to run (edgekit devices); may be given again.  [default: host]",
    ),
]


def open_devices(names: list[str] | None) -> "list[devices.Device]":
    """The devices of ``--device``, ready to run.

    Raises UsageError for a name that is none, DeviceError when a device cannot be used now.
    """
    from edgekit.devices.device import ready

    return [ready(name) for name in names or ["host"]]


def numbers(flag: str, text: str | None) -> tuple[int, ...]:
    """``0,1`` as numbers. Raises UsageError."""
    from edgekit.errors import UsageError

    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise UsageError(f"{flag}: '{text}' is no list of numbers; write for example 0,1")
    return tuple(map(int, parts))
