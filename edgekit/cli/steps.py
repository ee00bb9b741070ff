"""``edgekit steps``: what can be done to a model on the way."""

import dataclasses
from typing import TYPE_CHECKING

import typer

from edgekit.cli import options, render

if TYPE_CHECKING:
    from edgekit.recipe import Option


def run(json: options.Json = False) -> None:
    """List the steps and their options."""
    from edgekit.recipe import step_names, step_options, step_summary

    if json:
        listed = [
            {
                "name": name,
                "summary": step_summary(name),
                "options": [dataclasses.asdict(option) for option in step_options(name)],
            }
            for name in step_names()
        ]
        render.show_json({"steps": listed})
        return
    for name in step_names():
        typer.echo(f"{render.bold(name)}  {step_summary(name)}")
        for option in step_options(name):
            typer.echo(f"    {option.name}={option.type}  ({_default(option)})")
    typer.echo("\nin a project: [[steps]] name = …    as a flag: --step name:option=value,option=…")


def _default(option: "Option") -> str:
    if option.required:
        return "required"
    return "optional" if option.default is None else f"default {option.default}"
