"""TOML files into dataclasses, with the file, line and key of what is wrong."""

import re
import tomllib
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


def find_line(text: str, keys: list[str]) -> int | None:
    """The first line that sets the last of ``keys`` (or opens the table of that name)."""
    if not keys:
        return None
    name = re.escape(keys[-1])
    pattern = re.compile(
        rf"^\s*(\[*\s*{name}\s*\]*|{name}\s*=|.*[{{,.]\s*{name}\s*=|\[.*\.{name}\])"
    )
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line) and not line.lstrip().startswith("#"):
            return number
    return None
