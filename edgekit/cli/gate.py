"""``edgekit gate``: are bundles good enough beside the ones before?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import options, render

if TYPE_CHECKING:
    from edgekit.gating.gate import GateResult, Update

_SUMMARY = "GITHUB_STEP_SUMMARY"


def run(
    bundle: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BUNDLE",
            help="Folders that build wrote, or a folder of them.  [default: the project's output]",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        Path, typer.Option(metavar="FILE", help="The figures accepted last.")
    ] = Path("edgekit.lock.json"),
    baseline_ref: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Take the baseline from git, where HEAD left this branch, as in origin/main.",
        ),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update", help="Make these bundles the baseline, and judge nothing.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The base's bundles: rules of latency run both, side by side."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where they run (edgekit devices).")
    ] = "host",
    seconds: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="How long each file is run beside its base.")
    ] = 10.0,
    format: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT[=FILE]",
            help="text, markdown, junit, json or github, to a file or here; may be given again.",
        ),
    ] = None,
    project: Annotated[
        Path, typer.Option(metavar="FILE", help="The project file, with the rules in [gate].")
    ] = Path("edgekit.toml"),
    json: options.Json = False,
) -> int:
    """Judge bundles by the rules in edgekit.toml, beside a baseline.

    Exit codes: 0 pass, 1 a rule failed, 2 the gate cannot judge, 3 inconclusive.
    """
    from edgekit.errors import EdgekitError, UsageError
    from edgekit.gating import gate

    asked = _formats([*(format or ()), *(["json"] if json else [])])
    paths = bundle or []
    if update:
        if baseline_ref is not None or against is not None or format:
            raise UsageError("--update: goes with BUNDLE, --baseline, --project and --json alone")
        updated = gate.update(paths, project=project, baseline=baseline)
        if json:
            render.show_json(updated.to_json())
        else:
            _show_update(updated, baseline)
        return render.EXIT_CODES["pass"]
    try:
        with render.watching(any(file is None and name != "text" for name, file in asked)) as sink:
            result = gate.gate(
                paths,
                project=project,
                baseline=baseline,
                reference=baseline_ref,
                against=against,
                device=device,
                seconds=seconds,
                on_event=sink,
            )
    except EdgekitError as error:
        if ("github", None) in asked:
            from edgekit.gating.formats import refusal

            typer.echo(refusal(str(error)), nl=False)
        raise
    for name, file in asked:
        _give(result, name, file)
    return render.EXIT_CODES[result.outcome]


def _formats(texts: list[str]) -> list[tuple[str, Path | None]]:
    """``FORMAT[=FILE]`` taken apart; text is on the terminal unless another format is.

    Raises UsageError.
    """
    from edgekit.errors import UsageError
    from edgekit.gating.formats import FORMATS

    asked: list[tuple[str, Path | None]] = []
    for text in texts:
        name, separator, file = text.partition("=")
        known = name in FORMATS or text == "text"
        if not known or (separator and not file):
            raise UsageError(
                f"--format: '{text}' is not a format; choose from text, {', '.join(FORMATS)}, "
                "or name a file too, as in junit=gate.xml"
            )
        asked.append((name, Path(file) if separator else None))
    here = {name for name, file in asked if file is None}
    if len(here) > 1:
        raise UsageError(f"--format: {' and '.join(sorted(here))} cannot both go to the terminal")
    return asked if here else [("text", None), *asked]


def _give(result: "GateResult", name: str, file: Path | None) -> None:
    """One format, to its file or here; what is for GitHub with the table, and in its summary."""
    from edgekit.gating.baseline import write_whole
    from edgekit.gating.formats import FORMATS, markdown, summarize

    if file is not None:
        write_whole(file, FORMATS[name](result))
        return
    if name in ("text", "github"):
        _show(result)
    if name != "text":
        typer.echo(FORMATS[name](result), nl=False)
    if name == "github" and os.environ.get(_SUMMARY):
        summarize(Path(os.environ[_SUMMARY]), markdown(result))


def _show(result: "GateResult") -> None:
    """The table of each bundle, a line for each rule that did not pass, and the verdict."""
    from edgekit.gating.formats import MARKS, headline

    for bundle in result.bundles:
        several = len(bundle.figures.files) > 1
        typer.echo(f"{render.bold(bundle.target)}  {bundle.path}")
        render.show_table(
            ("", "rule", "before", "now", "change", "limit"),
            [
                (
                    MARKS[each.outcome],
                    f"{each.rule} of {each.file}" if several and each.file else each.rule,
                    each.before,
                    each.now,
                    each.change,
                    each.limit,
                )
                for each in result.findings
                if each.target == bundle.target
            ],
            right=(2, 3, 4, 5),
        )
    for each in result.findings:
        if each.outcome != "pass":
            typer.echo(f"{MARKS[each.outcome]} {each.where}: {each.reason}")
    if result.against is not None:
        typer.echo(render.dim(f"against {result.against}"))
    typer.echo(f"{render.mark(result.outcome)} {headline(result)}")


def _show_update(update: "Update", baseline: Path) -> None:
    """What moved, figure by figure."""
    if update.changes:
        render.show_table(
            ("figure", "of", "before", "now"),
            [(each.figure, each.where, each.before, each.now) for each in update.changes],
            right=(2, 3),
        )
    count = len(update.changes)
    told = f"{count} figures" if count != 1 else "one figure"
    targets = ", ".join(bundle.target for bundle in update.bundles)
    typer.echo(f"{baseline} holds {targets} now, {told if count else 'nothing'} changed")
