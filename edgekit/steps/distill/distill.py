"""Teach a changed model the answers of the original, and what is inside it: knowledge distillation.

Hinton et al. 2015, arXiv 1503.02531. The teacher is the model as it was before the first step of
the recipe, in float32, or who is named in ``teachers`` (see ``teachers.py``).

Rules:

1. ``losses`` is a sum with weights, such as ``kl+0.5*hidden``, of

   - answers: ``kl`` (T²·KL of the softened outputs; the mean squared error where nothing is
     classified), ``labels`` (cross entropy with gold labels), ``logits`` (mean squared error);
   - what is inside: ``embeddings``, ``hidden`` (mean squared error), ``cosine`` (1 - cos) of
     states; ``attention`` (scores before the softmax), ``probabilities`` (KL of attention),
     ``values`` and ``relations`` (KL of MiniLM's relations), for the layers of ``map``;
   - masked words: ``mlm`` (the words themselves), ``mlm-kl`` and ``masked-kl`` (KL of guesses, over
     all tokens or over masked ones), from a checkpoint that has a head for them.

2. ``preset`` is a published recipe: losses, maps, temperature, epochs and learning rates
   (``lessons.py``). Options change it: ``epochs`` are those of all its lessons together, and
   ``learning-rate`` is the first's; the others keep their proportion.
3. Without either the recipe is chosen by what became of the model, and the lineage says which
   (``recovery.py``). ``labels`` is the share of gold labels in what ``kl`` teaches.
4. All weights learn. The tenth of the training rows (at most 512) that ``heldout`` sets aside is
   not learned from; the metric on it, before and after, is told in the lineage.
5. Answers of teachers are computed once; what is inside is, where it fits (``inside.py``). Masked
   words are drawn anew in each batch, so their teacher runs along.
6. Weights that are zero stay zero with ``keep-zeros``: a sparse model stays sparse.
7. There is no dropout: the teacher's answers are what keeps a student from learning by heart.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import PRESETS, Lesson, Preset, layer_pairs, parse_losses
from edgekit.steps.distill.teaching import check_labels
from edgekit.steps.needs import need_float, need_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.data import Rows
    from edgekit.model import Model
    from edgekit.step import Context
    from edgekit.steps.distill.teachers import Teacher


@dataclass(frozen=True)
class Distill:
    """Teaches the model the answers of the original: recovers what other steps have cost.

    preset: a published recipe. losses: what is compared, such as kl+hidden+attention, instead.
    map: the teacher's layer for each layer: uniform, top, bottom, last or a list such as 2-4-6.
    temperature: of the distillation. labels: the share that gold labels have in kl. teachers:
    checkpoints, exported files or files of logits, instead of the original. epochs, batch,
    learning_rate: as usual; max_minutes: stop by then. keep_zeros: weights that are zero stay
    zero.
    """

    preset: Preset | None = None
    losses: str | None = None
    map: str | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    batch: int | None = None
    temperature: float | None = None
    labels: float = 0.0
    teachers: tuple[Path, ...] = ()
    keep_zeros: bool = False
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        need_float("distill", model)
        need_rows("distill", context)
        assert context.rows is not None
        for name, value in (
            ("epochs", self.epochs),
            ("learning-rate", self.learning_rate),
            ("batch", self.batch),
            ("temperature", self.temperature),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise RecipeError(f"distill: {name} must be above 0, is {value:g}")
        if self.preset is not None and self.losses is not None:
            raise RecipeError("distill: preset and losses exclude each other; give one of them")
        check_labels("distill", self.labels, model, context.rows)
        if model.architecture is not None and not model.architecture.learns:
            raise RecipeError(
                "distill: this family runs on copies of its weights, which cannot learn; leave "
                "the step out"
            )
        lessons, _ = self._lessons(model, context)
        teachers = self._teachers(lessons, model, context, meta=True)
        for lesson in lessons:
            _check(lesson, model, teachers, context.rows)

    def apply(self, model: Model, context: Context) -> Model:
        sparsity = model.sparsity if self.keep_zeros else 0.0
        if context.folder is None:
            return replace(model, sparsity=sparsity)
        from edgekit.steps.distill.teaching import learn
        from edgekit.steps.prune.zeros import kept_zero

        lessons, told = self._lessons(model, context)
        teachers = self._teachers(lessons, model, context, meta=False)
        made = replace(model, module=copy.deepcopy(model.module), sparsity=sparsity)
        with kept_zero(made.module.parameters() if self.keep_zeros else ()):
            notes = learn(lessons, made, teachers, context, self.max_minutes)
        return replace(made, lineage=(*model.lineage, f"{told}: {notes[0]}", *notes[1:]))

    def ensures(self, before: Model, after: Model) -> None:
        shapes = {name: t.shape for name, t in before.module.state_dict().items()}
        if shapes != {name: t.shape for name, t in after.module.state_dict().items()}:
            raise RecipeError("distill: changed a shape; this is a bug of edgekit")

    def _lessons(self, model: Model, context: Context) -> tuple[list[Lesson], str]:
        """What is taught, with the options put in, and what the lineage calls it."""
        from edgekit.steps.distill.recovery import recovery

        if self.losses is not None:
            lessons = [replace(PRESETS["answers"][0], losses=parse_losses(self.losses))]
            told = "distilled"
        elif self.preset is not None:
            lessons, told = list(PRESETS[self.preset]), f"distilled as {self.preset}"
        else:
            assert context.rows is not None
            found, why = recovery(model, context.original, context.rows)
            lessons, told = list(found), f"distilled ({why})"
        if self.labels:
            if self.losses is not None or not any("kl" in each.losses for each in lessons):
                raise RecipeError(
                    "distill: labels is the share of gold labels in a preset's kl; write losses "
                    "out with them, as in losses=0.7*kl+0.3*labels"
                )
            lessons = [each.with_labels(self.labels) for each in lessons]
        longer = 1.0 if self.epochs is None else self.epochs / sum(each.epochs for each in lessons)
        first = lessons[0].learning_rate
        faster = 1.0 if self.learning_rate is None else self.learning_rate / first
        lessons = [
            replace(
                lesson,
                map=self.map or lesson.map,
                epochs=lesson.epochs * longer,
                learning_rate=lesson.learning_rate * faster,
                batch=self.batch or lesson.batch,
                temperature=self.temperature or lesson.temperature,
            )
            for lesson in lessons
        ]
        return lessons, told

    def _teachers(
        self, lessons: list[Lesson], model: Model, context: Context, *, meta: bool
    ) -> list[Teacher]:
        from edgekit.steps.distill.teachers import Teacher, find_teachers

        assert context.rows is not None
        if not any(lesson.masks for lesson in lessons):
            return find_teachers(self.teachers, model, context.original, context.rows, meta=meta)
        if len(self.teachers) != 1:
            raise RecipeError(
                "distill: masked words want one teacher with a head for them; name the checkpoint "
                "of a masked language model with teachers=FOLDER, or leave mlm, mlm-kl and "
                "masked-kl out, as in losses=kl+cosine"
            )
        return [Teacher(str(self.teachers[0]), None, self.teachers[0])]


def _check(lesson: Lesson, model: Model, teachers: Sequence[Teacher], rows: Rows) -> None:
    """Raise RecipeError where these losses cannot be had from this model and these teachers."""
    from edgekit.steps.distill.inside import depth_of, need_inside
    from edgekit.steps.distill.masked import Mask, load_guesser, need_same_words
    from edgekit.steps.distill.pupil import need_heads
    from edgekit.steps.distill.teachers import need_aligned

    if "labels" in lesson.losses:
        check_labels("distill", 1.0, model, rows)
    if "logits" in lesson.losses and len(teachers) > 1:
        raise RecipeError("distill: several teachers have no logits in common; take kl")
    original = teachers[0].inside
    if lesson.masks:
        if lesson.answers:
            raise RecipeError(
                "distill: kl, labels and logits compare the task's answers, and mlm, mlm-kl and "
                "masked-kl words; teach them in two steps, words first"
            )
        need_inside("distill", "the student", model)
        assert teachers[0].path is not None
        original = load_guesser(teachers[0].path)
        need_same_words(model, original)
        Mask(model)
    elif lesson.looks_inside:
        if original is None or len(teachers) > 1:
            raise RecipeError(
                "distill: only one checkpoint can be looked into, and "
                + (f"there are {len(teachers)} teachers" if len(teachers) > 1 else teachers[0].name)
                + " is none; compare answers only, with losses=kl"
            )
        need_inside("distill", "the student", model)
        need_inside("distill", "the teacher", original)
        need_aligned("distill", model, original, rows)
    elif model.task == "token-classification":
        for teacher in teachers:
            if teacher.model is None:
                raise RecipeError(
                    f"distill: {teacher.name} has one answer a row, and this student answers for "
                    "each token; name a checkpoint"
                )
            need_aligned("distill", model, teacher.model, rows)
    if lesson.looks_inside:
        assert original is not None
        pairs = layer_pairs(lesson.map, depth_of(model), depth_of(original))
        need_heads(lesson, model, original, pairs)
