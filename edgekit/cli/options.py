"""Arguments and flags that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

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
