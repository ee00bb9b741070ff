"""TOML files into dataclasses, with the file, line and key of what is wrong."""

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from edgekit.errors import EdgekitError

Shape = TypeVar("Shape")


def read_toml(path: Path, shape: type[Shape], error: type[EdgekitError]) -> Shape:
    """The file as an instance of a dataclass; unknown keys and wrong types raise ``error``."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"cannot read {path}: {problem}") from None
    try:
        fields = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise error(f"{path} is not valid TOML: {problem}") from None
    return validate(fields, shape, error, source=str(path), text=text)


def validate(
    fields: dict[str, Any],
    shape: type[Shape],
    error: type[EdgekitError],
    *,
    source: str,
    text: str = "",
) -> Shape:
    """``fields`` as an instance of a dataclass. ``text`` is where line numbers come from."""
    import pydantic

    try:
        return pydantic.TypeAdapter(shape).validate_python(fields)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        keys = [str(part) for part in first["loc"] if not isinstance(part, int)]
        key = ".".join(keys) or "(top level)"
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            what = f"unknown key; known keys are {', '.join(_known(shape, keys[:-1]))}"
        elif first["type"] in ("missing", "missing_argument"):
            what = "this key is missing"
        elif "input" in first and isinstance(first["input"], str | int | float):
            what = f"{what} (found {first['input']!r})"
        line = _line(text, keys)
        where = f"{source}, line {line}" if line else source
        raise error(f"{where}: {key}: {what}") from None


def _known(shape: Any, keys: list[str]) -> list[str]:
    """Field names of the dataclass that ``keys`` leads to."""
    import dataclasses
    import typing

    for key in keys:
        hint = typing.get_type_hints(shape).get(key)
        candidates = [hint, *typing.get_args(hint)]
        shape = next((c for c in candidates if dataclasses.is_dataclass(c)), shape)
    return [field.name for field in dataclasses.fields(shape)]


def _line(text: str, keys: list[str]) -> int | None:
    """The first line that sets the last of ``keys`` (or opens the table of that name)."""
    if not keys:
        return None
    name = re.escape(keys[-1])
    pattern = re.compile(rf"^\s*(\[*\s*{name}\s*\]*|{name}\s*=|.*[{{,.]\s*{name}\s*=|\[.*\.{name}\])")
    for number, line in enumerate(text.splitlines(), start=1):
        if pattern.match(line) and not line.lstrip().startswith("#"):
            return number
    return None
