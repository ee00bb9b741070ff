"""The baseline: the figures that were accepted last, in a small file that reviews can read.

Rules:

1. ``edgekit.lock.json`` is sorted and indented, so that a diff shows which figure moved.
2. Writing it keeps the targets that it is not given, and appears by one rename.
3. With a git reference it is read as of the merge base with that reference, through git's object
   store: nothing is checked out, and the working tree is not looked at.
4. No baseline, one of an older schema, and one that is damaged are each said to be that.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from edgekit.errors import BaselineError, OutputError, UsageError
from edgekit.gating.figures import BundleFigures, Part, printable

FILE = "edgekit.lock.json"
_SCHEMA = 1
_UPDATE = "edgekit gate --update"
_GIT_SECONDS = 60


class Baseline(Part):
    """Figures of bundles, by target."""

    schema_version: Literal[1] = 1
    bundles: dict[str, BundleFigures]


def read_baseline(path: Path) -> Baseline:
    """Raises BaselineError (rule 4)."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BaselineError(f"no baseline {path}; write the first one with: {_UPDATE}") from None
    except OSError as error:
        raise BaselineError(f"cannot read {path}: {error.strerror or error}") from None
    return _parse(content, str(path))


def baseline_at(path: Path, reference: str) -> tuple[Baseline, str]:
    """The baseline as of the merge base of HEAD and ``reference``, and that commit's short name.

    Raises UsageError for a reference that is none, BaselineError for what rule 4 names.
    """
    if not reference or reference.startswith("-"):
        raise UsageError(f"--baseline-ref: '{reference}' is no git reference; write origin/main")
    folder = path.parent
    code, commit, said = _git(folder, "rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")
    if code != 0:
        why = f" ({said})" if said else ""
        raise UsageError(
            f"--baseline-ref: git knows no '{printable(reference)}' in {folder.absolute()}{why}; "
            "fetch it first"
        )
    code, base, said = _git(folder, "merge-base", commit.decode().strip(), "HEAD")
    if code != 0:
        why = f" ({said})" if said else ""
        raise BaselineError(
            f"HEAD and {printable(reference)} have no commit in common here{why}; fetch the whole "
            "history (actions/checkout: fetch-depth: 0)"
        )
    commit_name = base.decode().split()[0]
    where = f"{path.name} at {commit_name[:12]}, the merge base with {printable(reference)}"
    code, content, _ = _git(folder, "show", "--no-textconv", f"{commit_name}:./{path.name}")
    if code != 0:
        raise BaselineError(f"there is no {where}; merge a first one, made with: {_UPDATE}")
    return _parse(content, where), where


def write_baseline(path: Path, bundles: Mapping[str, BundleFigures]) -> Mapping[str, BundleFigures]:
    """Put the figures of these targets into the file (rules 1 and 2); what was there before.

    Raises BaselineError when the file that is there is damaged, OutputError when it cannot be
    written.
    """
    from edgekit.store import Store

    with Store().lock(str(path.absolute())):
        kept: dict[str, BundleFigures] = {}
        if path.exists() and not _outdated(path):
            kept = read_baseline(path).bundles
        baseline = Baseline(bundles={**kept, **bundles})
        text = json.dumps(
            baseline.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False
        )
        write_whole(path, text + "\n")
    return kept


def write_whole(path: Path, text: str) -> None:
    """A text file that appears by one rename. Raises OutputError."""
    partial = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as stream:
            partial = Path(stream.name)
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        partial.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that is yours"
        ) from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _parse(content: bytes, where: str) -> Baseline:
    try:
        fields = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise BaselineError(
            f"{where} is damaged or no JSON; take it from git, or write it anew with: {_UPDATE}"
        ) from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if not isinstance(version, int):
        raise BaselineError(f"{where} is no baseline; name another, or write one with: {_UPDATE}")
    if version < _SCHEMA:
        raise BaselineError(f"{where} is of an older edgekit; write it anew with: {_UPDATE}")
    if version > _SCHEMA:
        raise BaselineError(f"{where} is of a newer edgekit; upgrade this one")
    try:
        return Baseline.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BaselineError(
            f"{where}: {printable(key)}: {first['msg'].lower()}; write it anew with: {_UPDATE}"
        ) from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _outdated(path: Path) -> bool:
    """Whether the file is ours but of an older schema, with nothing in it to keep."""
    try:
        fields: Any = json.loads(path.read_bytes())
        return bool(0 <= fields["schema_version"] < _SCHEMA)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _git(folder: Path, *arguments: str) -> tuple[int, bytes, str]:
    """Exit code, output, and the first line of what git complains about."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise UsageError("--baseline-ref: git is not installed; give --baseline alone") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--baseline-ref: cannot run git ({error})") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"--baseline-ref: git took over {_GIT_SECONDS} s; fetch first") from None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return done.returncode, done.stdout, printable(lines[0]) if lines else ""
