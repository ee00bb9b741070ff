"""What a model answers: its task, and of a classifier how its classes exclude each other."""

import difflib
from typing import Literal, get_args

from edgekit.errors import ModelError

Task = Literal[
    "text-classification",
    "token-classification",
    "sentence-embedding",
    "image-classification",
    "module",
]
Problem = Literal["single-label", "multi-label", "regression"]


def check_task(task: str) -> Task:
    """The task of that name. Raises ModelError with the nearest name."""
    known = get_args(Task)
    if task in known:
        found: Task = task  # type: ignore[assignment]
        return found
    near = difflib.get_close_matches(task, known, n=1)
    raise ModelError(
        f"unknown task '{task}'"
        + (f", did you mean '{near[0]}'?" if near else "")
        + f" (known: {', '.join(known)})"
    )
