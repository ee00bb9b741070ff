"""How messages about data name things."""

from collections.abc import Collection


def listing(names: Collection[str]) -> str:
    """The first names, and how many there are when that is not all."""
    first = ", ".join(f"{name:.40}" for name in list(names)[:8])
    return first if len(names) <= 8 else f"{first}, … {len(names)} in all"


def flag(role: str) -> str:
    """The flag that names the column of a role: ``--text-pair`` for ``text_pair``."""
    return f"--{role.replace('_', '-')}"


def counted(number: int, noun: str) -> str:
    """``1 cell``, ``3 cells``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def row_places(count: int) -> tuple[str, ...]:
    """Places of rows in a file without lines."""
    return tuple(f"row {number}" for number in range(1, count + 1))


def one_line(error: Exception) -> str:
    """Another library's message, short enough to stand inside a sentence."""
    return " ".join(str(error).split())[:120] or type(error).__name__
