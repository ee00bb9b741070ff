"""``edgekit doctor``: is everything here that edgekit needs."""

import dataclasses
from typing import TYPE_CHECKING

import typer

from edgekit.cli import options, render

if TYPE_CHECKING:
    from edgekit.doctor import Finding


def run(json: options.Json = False) -> int:
    """Check versions, disk, memory, CPU and tools."""
    from edgekit.doctor import examine, is_well

    findings = examine()
    if json:
        found = [dataclasses.asdict(finding) for finding in findings]
        render.show_json({"well": is_well(findings), "findings": found})
    else:
        group = ""
        for finding in findings:
            if finding.group != group:
                group = finding.group
                typer.echo(render.bold(group))
            typer.echo(f"  {_state(finding)}  {finding.name}: {finding.text}")
    return 0 if is_well(findings) else 2


def _state(finding: "Finding") -> str:
    """``ok``, ``missing`` …, in a column; red only where it stands in the way."""
    hindrance = "red" if finding.required else "yellow"
    colour = "green" if finding.state == "ok" else hindrance
    return typer.style(finding.state.ljust(len("unsupported")), fg=colour)
