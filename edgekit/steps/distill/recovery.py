"""Which recipe makes a lossy step good, when none is named: by what became of the model.

Rules:

1. Fewer layers, heads or neurons: the answers, and beside them the states of each layer that is
   left, which are as wide as the teacher's (as in CoFi: Xia et al. 2022, arXiv 2204.00408, section
   3.2). Where the number of layers left does not divide the teacher's, the last one's.
2. Another width: TinyBERT's two lessons, where the map allows it.
3. Factored matrices: Xcompression's two lessons, as its authors recover them.
4. Anything else, and what cannot be looked into: the answers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import PRESETS, Lesson

if TYPE_CHECKING:
    from edgekit.data import Rows
    from edgekit.model import Model


def recovery(student: Model, original: Model | None, rows: Rows) -> tuple[tuple[Lesson, ...], str]:
    """The lessons, and a sentence's end that names them and says why it is these."""
    from edgekit.factored import is_factored
    from edgekit.steps.distill.inside import need_inside
    from edgekit.steps.distill.teachers import need_aligned

    answers = PRESETS["answers"]
    if original is None:
        return answers, "kl, since there is no original to look into"
    try:
        need_inside("distill", "the student", student)
        need_inside("distill", "the original", original)
        need_aligned("distill", student, original, rows)
    except RecipeError:
        return answers, "kl, since layers cannot be compared here"
    if is_factored(student.module):
        return PRESETS["xcompression"], "xcompression, since matrices are factored"
    (left, width, parts), (whole, before, all_parts) = map(_shape, (student, original))
    if width != before:
        if whole % left == 0 and _same_heads(student, original):
            return PRESETS["tinybert"], "tinybert, since states are narrower"
        inside = Lesson({"kl": 1, "hidden": 1}, "last", temperature=2.0, learning_rate=1e-4)
        return (inside,), f"{inside} of the last layer, since states are narrower"
    if left == whole and parts == all_parts:
        return answers, "kl, since no layer, head or neuron is gone"
    how = "uniform" if whole % left == 0 else "last"
    lesson = Lesson({"kl": 1, "hidden": 1}, how, temperature=2.0, learning_rate=1e-4)
    what = f"{left} of {whole} layers are left" if left < whole else "heads or neurons are gone"
    return (lesson,), f"{lesson} of {'the last' if how == 'last' else 'each'} layer, since {what}"


def _shape(model: Model) -> tuple[int, int, list[tuple[int, int]]]:
    """How many layers there are, their width, and each one's heads and neurons."""
    from edgekit.steps.distill.inside import depth_of, width_of

    assert model.architecture is not None and model.architecture.layers is not None
    encoder: Any = model.module.base_model
    parts = [(layer.heads, layer.neurons) for layer in model.architecture.layers(encoder)]
    return depth_of(model), width_of(model, ("hidden", 1)), parts


def _same_heads(student: Model, original: Model) -> bool:
    """Whether heads can be compared one by one."""
    heads = [{heads for heads, _ in _shape(each)[2]} for each in (student, original)]
    return len(heads[0]) == 1 and heads[0] == heads[1]
