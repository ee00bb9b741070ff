"""What a job tells whoever watches: stages, progress, remarks. Nothing is decided here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["stage-start", "progress", "stage-end", "note", "plan", "result"]


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    name: the stage that it belongs to. text: for people, one line (a plan may have several).
    seconds: how long a stage took, at its end. reused: its output was already in the store.
    fraction: how much of the stage is done, 0 to 1, with ``progress``.
    """

    kind: Kind
    name: str = ""
    text: str = ""
    seconds: float | None = None
    reused: bool = False
    fraction: float | None = None


Sink = Callable[[Event], None]


def silent(event: Event) -> None:
    """A sink that shows nothing."""


# How much of one thing is done, 0 to 1, and a line for people that says where it stands.
OnProgress = Callable[[float, str], None]


def unwatched(fraction: float, text: str) -> None:
    """Progress that nobody is told."""
