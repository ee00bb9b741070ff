"""The command line: one file per command, each of which parses, calls the API and renders.

Exit codes: 0 pass, 1 a budget or proof failed, 2 wrong usage or input, 3 inconclusive,
4 a bug of ours, 130 stopped by Ctrl-C. What went wrong is one sentence on stderr.
"""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edgekit import __version__
from edgekit.errors import EdgekitError

# By name: the function or the app of its own, whose module is imported when its command is asked
# for, and what a list of all says of it, for which none is.
_COMMANDS = {
    "init": ("init:run", "Write the project file, from flags or by asking."),
    "build": ("build:run", "Build a verified bundle for each target."),
    "verify": ("verify:run", "Check a bundle with nothing but the bundle."),
    "bench": ("bench:run", "Measure how model files run: latency, throughput, memory."),
    "gate": ("gate:run", "Judge bundles by the rules in edgekit.toml, beside a baseline."),
    "inspect": ("inspect:run", "Print what is inside a model file."),
    "diff": ("diff:run", "Show what grew between two model files, layer by layer."),
    "report": ("report:run", "Write one page, or a model card, about bundles."),
    "analyze": ("analyze:run", "Show how much each layer, head and neuron matters."),
    "join": (
        "join:run",
        "Put bundles of several tasks on one base together, what they share once (ONNX).",
    ),
    "delta": (
        "delta:make",
        "Write what a tuned checkpoint has that its base has not: its biases and head.",
    ),
    "apply-delta": (
        "delta:apply",
        "Write the tuned checkpoint that a base and a delta make; another base is refused.",
    ),
    "targets": ("targets:run", "List the targets that come with edgekit."),
    "steps": ("steps:run", "List the steps and their options."),
    "doctor": ("doctor:run", "Check versions, disk, memory, CPU and tools."),
    "devices": ("devices:app", "List devices, set them up and check them."),
    "cache": ("cache:app", "Show or prune the cache."),
}


def parser(name: str | None = None) -> typer.Typer:
    """The command line with the command ``name``; where there is none, with the names of all."""
    # With rich's markup the help takes twice the time.
    app = typer.Typer(
        name="edgekit",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(edgekit)
    if name not in _COMMANDS:
        for each, (_, summary) in _COMMANDS.items():
            app.command(each, help=summary)(_unasked)
        return app
    module, _, attribute = _COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(f"edgekit.cli.{module}"), attribute)
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)
    return app


def _unasked() -> None:
    """Stands for a command in the list of all."""


def edgekit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """A fine-tuned model in, the smallest verified file for a device out."""
    if version:
        typer.echo(f"edgekit {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """The console script."""
    # pydantic would look through every installed package for plugins: a tenth of the gate.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    _tolerate_narrow_encodings()
    if not _debugging():
        _quiet_libraries()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Every failure is one sentence on stderr."""
    try:
        app = parser(arguments[0] if arguments else None)
        return int(app(list(arguments), prog_name="edgekit", standalone_mode=False) or 0)
    except EdgekitError as error:
        return _say(str(error), error.exit_code)
    except typer.TyperException as error:
        return _say(_sentence(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _say("stopped", 130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "edgekit":
            return _bug(error)
        mend = 'install what builds need: pip install "edgekit[build]" (edgekit doctor says more)'
        return _say(f"the package '{error.name}' is missing; {mend}", 2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            return _say(f"the disk is full{where}; free some space and run again", 2)
        return _bug(error)


def _bug(error: Exception) -> int:
    if _debugging():
        raise error
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    trace = _traceback_file(error)
    return _say(f"a bug of ours: {what}; please report it with the traceback in {trace}", 4)


def _debugging() -> bool:
    return bool(os.environ.get("EDGEKIT_DEBUG"))


def _say(sentence: str, code: int) -> int:
    typer.echo(f"edgekit: {' '.join(sentence.split())}", err=True)
    return code


def _sentence(error: typer.TyperException) -> str:
    """The parser's message as we write ours, with where to read about the command."""
    text = error.format_message().strip().removesuffix(".").replace(". Did", "; did")
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "edgekit"
    return f"{text[:1].lower()}{text[1:]} (see: {command} --help)"


def _traceback_file(error: Exception) -> str:
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="edgekit-", suffix=".txt", delete=False, encoding="utf-8"
    ) as stream:
        stream.write(f"edgekit {__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n")
        traceback.print_exception(error, file=stream)
    return stream.name


def _tolerate_narrow_encodings() -> None:
    """A terminal that cannot show µ or ✓ shows ? instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def _quiet_libraries() -> None:
    """What libraries print is for their authors; EDGEKIT_DEBUG=1 shows it."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for name, value in {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TOKENIZERS_PARALLELISM": "true",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }.items():
        os.environ.setdefault(name, value)
