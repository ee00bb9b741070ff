"""``edgekit analyze``: which layers, heads and neurons of a model matter."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options, render

if TYPE_CHECKING:
    from edgekit.measure.importance import Importance

_TOP = 12


def run(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A checkpoint folder, a hub id, or a sample.")
    ],
    data: options.Data = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    task: options.Task = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Which rows are drawn.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the scores into this SVG.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show how much each layer, head and neuron matters."""
    import edgekit

    with render.watching(json) as on_event:
        found = edgekit.analyze(
            model,
            data=data,
            text=text,
            text_pair=text_pair,
            label=label,
            task=task,
            seed=seed,
            plot=plot,
            on_event=on_event,
        )
    if json:
        render.show_json(found.to_json())
        return
    for note in found.notes:
        typer.echo(f"note: {note}")
    for each in found.found:
        typer.echo(f"\n{render.bold(f'{each.part} by {each.score}')}  {render.dim(each.meaning)}")
        render.show_table(*_table(each))
    if plot is not None:
        typer.echo(f"\n{plot}")


def _table(found: "Importance") -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Head, rows and the columns that are numbers; of many units the most important ones."""
    widest = max(len(values) for values in found.rows.values())
    if widest <= _TOP or found.part != "neurons":
        head = [""] + [str(n) for n in range(1, widest + 1)] if widest > 1 else ["", found.score]
        rows = [
            [name, *(f"{value:.3g}" for value in values), *[""] * (widest - len(values))]
            for name, values in found.rows.items()
        ]
        return head, rows, tuple(range(1, widest + 1))
    best = [
        [name, str(place), str(int(unit) + 1), f"{values[unit]:.3g}"]
        for name, values in found.rows.items()
        for place, unit in enumerate((-values).argsort(kind="stable")[:_TOP], 1)
    ]
    return ["", "place", "neuron", found.score], best, (1, 2, 3)
