"""``edgekit doctor``: is everything here that edgekit needs."""

import dataclasses

import typer

from edgekit.cli import options, render


def run(json: options.Json = False) -> int:
    """Check versions, disk, memory, CPU features and optional tools."""
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
            state = render.state(finding.state, required=finding.required)
            typer.echo(f"  {state}  {finding.name}: {finding.text}")
    return 0 if is_well(findings) else 2
