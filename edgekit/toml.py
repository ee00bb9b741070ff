"""TOML files into dataclasses, with the file, line and key of what is wrong."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgekit.errors import EdgekitError

Shape = TypeVar("Shape")


def read_toml(path: Path, shape: type[Shape], error: type[EdgekitError]) -> Shape:
    """The file as an instance of a dataclass; unknown keys and wrong types raise ``error``."""
    fields, text = read_fields(path, error)
    return validate(fields, shape, error, source=str(path), text=text)


def read_fields(path: Path, error: type[EdgekitError]) -> tuple[dict[str, Any], str]:
    """The file's keys and values as they are, and its text for line numbers."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror or problem}") from None
    except UnicodeDecodeError:
        raise error(f"cannot read {path}: it is not UTF-8 text; save it as UTF-8") from None
    try:
        return tomllib.loads(text), text
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path} is not valid TOML: {problem}") from None


def validate(
    fields: dict[str, Any],
    shape: type[Shape],
    error: type[EdgekitError],
    *,
    source: str,
    text: str = "",
) -> Shape:
    """``fields`` as an instance of a dataclass. ``text`` is where line numbers come from.

    A dataclass whose keys are spelled otherwise in the file (``text-pair``) says so with
    ``__pydantic_config__ = {"alias_generator": …}``.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(shape).validate_python(fields)
    except pydantic.ValidationError as problem:
        # A key misspelled is also a key missing: the misspelling is the one to tell.
        unknown = ("unexpected_keyword_argument", "extra_forbidden")
        first = min(problem.errors(), key=lambda each: each["type"] not in unknown)
        keys = [str(part) for part in first["loc"] if not isinstance(part, int)]
        key = ".".join(keys) or "(top level)"
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] in unknown:
            what = f"unknown key; known keys are {', '.join(_known(shape, keys[:-1]))}"
        elif first["type"] in ("missing", "missing_argument"):
            what = "this key is missing"
        elif "input" in first and isinstance(first["input"], str | int | float):
            what = f"{what} (found {first['input']!r})"
        raise error(f"{place(source, find_line(text, keys))}: {key}: {what}") from None


def place(source: str, line: int | None) -> str:
    """``edgekit.toml, line 3``, or only the file where the line is not known."""
    return f"{source}, line {line}" if line else source


def _known(shape: Any, keys: list[str]) -> list[str]:
    """Field names of the dataclass that ``keys`` leads to."""
    import dataclasses
    import typing

    for key in keys:
        hint = typing.get_type_hints(shape).get(key)
        candidates = [hint, *typing.get_args(hint)]
        shape = next((c for c in candidates if dataclasses.is_dataclass(c)), shape)
    spell = getattr(shape, "__pydantic_config__", {}).get("alias_generator", str)
    return [spell(field.name) for field in dataclasses.fields(shape)]


def find_line(text: str, keys: Sequence[str | int]) -> int | None:
    """The line that sets the last of ``keys``, each looked for from where the one before is.

    A number is the place of a table in an array (``[[steps]]``) of the key before it. A key that
    is nowhere behind the one before it is the first of its name.
    """
    lines = text.splitlines()
    start = 0
    line: int | None = None
    for place, key in enumerate(keys):
        if isinstance(key, int):
            continue
        following = keys[place + 1] if place + 1 < len(keys) else 0
        skip = following if isinstance(following, int) else 0
        line = _sets(lines, key, start, skip)
        if line is None and start:
            line = _sets(lines, key, 0, 0)
        start = start if line is None else line
    return None if line is None else line + 1


def _sets(lines: list[str], key: str, start: int, skip: int) -> int | None:
    """From ``start`` on, the line that sets ``key`` or opens its table, after ``skip`` others."""
    name = rf"[\"']?{re.escape(key)}[\"']?"
    pattern = re.compile(
        rf"^\s*({name}\s*[.=]|\[+\s*{name}\s*[.\]]|[^#]*[{{,.]\s*{name}\s*[.=]|\[.*\.\s*{name}\s*[.\]])"
    )
    for number in range(start, len(lines)):
        if pattern.match(lines[number]) and not lines[number].lstrip().startswith("#"):
            if skip == 0:
                return number
            skip -= 1
    return None
