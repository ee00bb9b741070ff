"""``edgekit build``: a checkpoint in, a verified bundle for each target out."""

from pathlib import Path
from typing import Annotated

import typer

from edgekit.artifact import SCHEMES, one_of
from edgekit.cli import options, render


def run(
    model: options.Model = None,
    data: options.Data = None,
    eval: options.Eval = None,
    unlabeled: options.Unlabeled = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    task: options.Task = None,
    target: options.Target = None,
    budget: options.Budget = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="A folder for the bundles.  [default: dist]"),
    ] = None,
    format: Annotated[
        list[str] | None,
        typer.Option(metavar="FORMAT", help="onnx, tflite or torchscript; may be given again."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(metavar="SCHEME", help=f"{one_of(SCHEMES)}.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Sequence lengths of a TFLite file, as in 16,32,64."),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP", help="name:option=value,… (edgekit steps); in order."),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A TOML file of [[steps]]; --step adds to it."),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="[default: 0]")] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Where else each file must answer as it does here (edgekit devices).",
        ),
    ] = None,
    prove_arm: Annotated[
        bool, typer.Option("--prove-arm", help="The same as --device emulated:arm64.")
    ] = False,
    save_model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the model that the steps made, as a checkpoint."),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Run the steps as several processes: 'torchrun --nproc-per-node 2', or "
            "'accelerate launch …'.",
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the curves of what learns for TensorBoard."),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after the plan.")] = False,
    allow_random_calibration: Annotated[
        bool,
        typer.Option(
            "--allow-random-calibration",
            help="Without --data, calibrate a static scheme on random rows: accuracy unknown.",
        ),
    ] = False,
    project: options.Project = None,
    json: options.Json = False,
) -> int:
    """Build a verified bundle for each target."""
    from edgekit.project import find_project, load_project, read_flags, resolve
    from edgekit.recipe import load_recipe

    flags = {
        "model": model,
        "data": data,
        "eval": eval,
        "unlabeled": unlabeled,
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "task": task,
        "target": target,
        "budget": budget,
        "output": output,
        "format": format,
        "scheme": scheme,
        "lengths": lengths,
        "steps": [*(load_recipe(recipe) if recipe else ()), *(step or ())],
        "seed": seed,
        "device": [*(device or ()), *(["emulated:arm64"] if prove_arm else [])],
    }
    settings = resolve(
        load_project(project) if project else find_project(Path()),
        read_flags(flags),
        overwrite=overwrite,
        allow_random_calibration=allow_random_calibration,
    )

    from edgekit.devices.device import open_device
    from edgekit.pipeline import build

    for name in settings.devices:
        open_device(name)
    if not json:
        render.show_settings(settings)
    with render.watching(json) as on_event:
        result = build(
            settings,
            save_model=save_model,
            launch=launch,
            tensorboard=tensorboard,
            dry_run=dry_run,
            on_event=on_event,
        )
    if json:
        render.show_json({"settings": settings.to_json(), **result.to_json()})
    else:
        render.show_bundles(result)
    return render.EXIT_CODES[result.outcome]
