"""``edgekit init``: write the project file."""

from pathlib import Path
from typing import Any

import typer

from edgekit.cli import options

_TARGET = "android-arm64"


def run(
    model: options.Model = None,
    data: options.Data = None,
    eval: options.Eval = None,
    text: options.Text = None,
    text_pair: options.TextPair = None,
    label: options.Label = None,
    task: options.Task = None,
    target: options.Target = None,
    budget: options.Budget = None,
    overwrite: options.Overwrite = False,
    project: options.Project = None,
) -> None:
    """Write the project file, from flags or by asking."""
    from edgekit.project import FILE, read_flags, resolve, write_project

    values: dict[str, Any] = {
        "model": model,
        "data": data,
        "eval": eval,
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "task": task,
        "target": target,
        "budget": budget,
    }
    path = project or Path(FILE)
    path = path / FILE if path.is_dir() else path
    if model is None:
        values = _ask(values)
    values["target"] = values["target"] or [_TARGET]
    resolve(None, read_flags(values))
    write_project(path, values, overwrite=overwrite)
    typer.echo(f"wrote {path}; next: edgekit build --dry-run")


def _ask(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what no flag says. An empty answer leaves it unsaid."""
    from edgekit.errors import UsageError

    def ask(key: str, question: str, default: str) -> str:
        return values[key] or str(typer.prompt(question, default, show_default=bool(default)))

    try:
        answers = {"model": ask("model", "Model", "sample:banking77")}
        if not answers["model"].startswith("sample:"):
            answers["data"] = ask("data", "Training rows, a file (empty for none)", "")
            if answers["data"]:
                answers["eval"] = ask("eval", "Eval rows, a file (empty to split them off)", "")
        targets = values["target"] or str(typer.prompt("Target", _TARGET)).split()
        answers["budget"] = ask("budget", "Budget (empty for none)", "30MB")
    except typer.Abort as abort:
        if not isinstance(abort.__context__, EOFError):
            raise
        raise UsageError(
            f"nobody answers here; give flags, as in: edgekit init MODEL --target {_TARGET}"
        ) from None
    said = {key: value for key, value in answers.items() if value}
    return values | said | {"target": targets}
