"""Which lesson makes a lossy step good, when none is named. A first guess that costs no trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import Lesson, layer_pairs

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model

_ANSWERS = Lesson({"kl": 1}, temperature=2.0, learning_rate=1e-4)


def recovery(student: Model, original: Model | None, rows: Rows) -> tuple[Lesson, str]:
    """The lesson, and why it is this one.

    Where layers went or became narrower, the states of the layers that are left are taught beside
    the answers; where none went, or they cannot be compared, the answers alone.
    """
    from edgekit.steps.distill.inside import depth_of, need_inside
    from edgekit.steps.distill.teachers import need_aligned

    if original is None:
        return _ANSWERS, "answers"
    try:
        need_inside("distill", "the student", student)
        need_inside("distill", "the teacher", original)
        mine, theirs = depth_of(student), depth_of(original)
        if mine >= theirs:
            return _ANSWERS, "no layer went"
        need_aligned("distill", student, original, rows)
    except RecipeError:
        return _ANSWERS, "the layers cannot be compared"
    how = "uniform" if theirs % mine == 0 else "last"
    layer_pairs(how, mine, theirs)
    lesson = Lesson({"kl": 1, "hidden": 1}, how, temperature=2.0, learning_rate=1e-4)
    return lesson, f"{mine} of {theirs} layers are left"
