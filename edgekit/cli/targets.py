"""``edgekit targets``: what can be built for."""

from typing import Any

import typer

from edgekit.cli import options, render


def run(json: options.Json = False) -> None:
    """List the targets that come with edgekit."""
    from edgekit.target import load_target, target_names

    targets = [load_target(name) for name in target_names()]
    if json:
        listed: list[dict[str, Any]] = [
            {
                "name": target.name,
                "description": target.description,
                "formats": list(target.formats),
                "on_request": list(target.on_request),
                "scheme": target.scheme,
                "schemes": list(target.schemes),
                "instruction_set": target.instruction_set,
                "threads": target.threads,
                "runtime": {"package": target.runtime.package, "oldest": target.runtime.oldest},
            }
            for target in targets
        ]
        render.show_json({"targets": listed})
        return
    render.show_table(
        ("target", "formats", "scheme", "runs on", "for"),
        [
            (
                target.name,
                ", ".join([*target.formats, *(f"({name})" for name in target.on_request)]),
                target.scheme,
                f"{target.runtime.package} ≥ {target.runtime.oldest}",
                target.description,
            )
            for target in targets
        ],
    )
    typer.echo("\n(in brackets: with --format)  a folder with a target.toml is a target, too")
