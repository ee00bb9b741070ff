"""What a student learns from: rows with the teacher's outputs, and the loss to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import Lesson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from edgekit.data import Rows
    from edgekit.examples import Examples
    from edgekit.model import Model
    from edgekit.step import Context
    from edgekit.steps.distill.pupil import Beside
    from edgekit.steps.distill.teachers import Teacher
    from edgekit.train import Report


class How(Protocol):
    """How a step teaches answers: its options, by these names."""

    @property
    def epochs(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def labels(self) -> float: ...
    @property
    def max_minutes(self) -> float | None: ...


def check_labels(step: str, share: float, model: Model, rows: Rows | None) -> None:
    """Whether that share of the loss can be the gold labels'. Raises RecipeError."""
    if not 0 <= share <= 1:
        raise RecipeError(f"{step}: labels is a share from 0 to 1, is {share:g}")
    if share and (rows is None or rows.labels is None):
        raise RecipeError(
            f"{step}: labels is above 0 and the training rows have none; name their column with "
            "--label"
        )
    if share and model.problem != "single-label" and model.task != "token-classification":
        raise RecipeError(
            f"{step}: labels is for one label a text or a word; leave it at 0 for other tasks"
        )


def taught_examples(
    student: Model, teacher: Model, rows: Rows, folder: Path, *, labels: bool
) -> Examples:
    """The rows as the student reads them, with the teacher's outputs (kept in ``folder``)."""
    from edgekit.examples import Examples, teacher_outputs
    from edgekit.steps.distill.rows import gold_ids
    from edgekit.workbench import encode

    folder.mkdir(parents=True, exist_ok=True)
    read = encode(student, rows)
    return Examples(
        read,
        labels=gold_ids(student, rows, read) if labels else None,
        teacher=teacher_outputs(teacher, encode(teacher, rows), folder / "teacher.npy"),
        per_token=student.task == "token-classification",
    )


def answer_loss(student: Model, temperature: float, labels: float) -> Any:
    """T²·KL to the teacher's outputs, with the share ``labels`` of gold cross entropy instead.

    Regression and embeddings: the mean squared error to the teacher's outputs.
    """
    from edgekit.steps.distill.pupil import lesson_loss

    return lesson_loss(Lesson({"kl": 1.0}, temperature=temperature).with_labels(labels), student)


def teach(
    how: How,
    student: Model,
    context: Context,
    module: nn.Module | None = None,
    after_step: Callable[[float], None] | None = None,
) -> list[str]:
    """Train the student in place on the original's answers; sentences that say how it went.

    The first has the metric on training rows set aside, before and after. module: the student's
    clean forward, where the caller has put something into it. after_step: as ``train`` takes it.
    """
    from edgekit.steps.distill.teachers import Teacher

    assert context.original is not None
    lesson = Lesson(
        {"kl": 1.0},
        temperature=how.temperature,
        epochs=how.epochs,
        learning_rate=how.learning_rate,
        batch=how.batch,
    ).with_labels(how.labels)
    teachers = [Teacher("the original", context.original)]
    return learn([lesson], student, teachers, context, how.max_minutes, module, after_step)


def learn(
    lessons: Sequence[Lesson],
    student: Model,
    teachers: Sequence[Teacher],
    context: Context,
    max_minutes: float | None = None,
    module: nn.Module | None = None,
    after_step: Callable[[float], None] | None = None,
) -> list[str]:
    """Train the student in place, lesson by lesson; see ``teach``.

    max_minutes: of all lessons, each of which has the share that its epochs are.
    """
    from edgekit.steps.heldout import metric_of, quality, set_aside

    assert context.rows is not None and context.original is not None
    _, judged = set_aside(context.rows, context.seed)
    context.on_progress(0.0, "running the teacher on the training rows")
    before = quality(student, judged, context.original)
    total = sum(lesson.epochs for lesson in lessons)
    done, notes = [], []
    for number, lesson in enumerate(lessons):
        minutes = None if max_minutes is None else max_minutes * lesson.epochs / total
        report = _train(lesson, number, student, teachers, context, minutes, module, after_step)
        done.append(f"{report.steps} steps of {lesson}, {report.epochs:.2f} epochs")
        notes += [] if report.note is None else [report.note]
    after = quality(student, judged, context.original)
    metric = metric_of(student) if judged.labels is not None else "agreement with the original"
    told = (
        f"{'; then '.join(done)}; on {len(judged)} training rows set aside, {metric} "
        f"{before:.2%} before, {after:.2%} after"
    )
    return [told, *notes]


def _train(
    lesson: Lesson,
    number: int,
    student: Model,
    teachers: Sequence[Teacher],
    context: Context,
    max_minutes: float | None,
    module: nn.Module | None,
    after_step: Callable[[float], None] | None,
) -> Report:
    """One lesson."""
    from edgekit.model import export_forward
    from edgekit.steps.distill.inside import watched
    from edgekit.steps.distill.pupil import lesson_loss
    from edgekit.train import Training, train

    assert context.folder is not None
    rows, examples = _examples(lesson, student, teachers, context)
    beside = None
    if lesson.masks or lesson.looks_inside:
        beside = _beside(lesson, number, student, teachers, rows, context)
        module = beside.pupil
    elif module is None:
        module = export_forward(student, learning=True)
    with watched(student, beside.views if beside else set()) as seen:
        return train(
            module,
            examples,
            lesson_loss(lesson, student, beside, seen),
            Training(
                epochs=lesson.epochs,
                learning_rate=lesson.learning_rate,
                batch=lesson.batch,
                warmup=lesson.warmup,
                max_minutes=max_minutes,
                seed=context.seed,
            ),
            folder=context.folder / (f"training-{number}" if number else "training"),
            on_progress=context.on_progress,
            after_step=after_step,
        )


def _examples(
    lesson: Lesson, student: Model, teachers: Sequence[Teacher], context: Context
) -> tuple[Rows, Examples]:
    """The rows to learn from, and as the student reads them with what the lesson compares."""
    from edgekit.examples import Examples
    from edgekit.steps.distill.rows import gold_ids, learning_rows
    from edgekit.steps.distill.teachers import answers
    from edgekit.workbench import encode

    assert context.folder is not None
    whole, chosen = learning_rows(context)
    rows = whole.take(chosen)
    outputs = None
    if "kl" in lesson.losses or "logits" in lesson.losses:
        outputs = answers(teachers, student, whole, chosen, context.folder, lesson.temperature)
    read = encode(student, rows)
    return rows, Examples(
        read,
        labels=gold_ids(student, rows, read) if "labels" in lesson.losses else None,
        teacher=outputs,
        per_token=student.task == "token-classification",
    )


def _beside(
    lesson: Lesson,
    number: int,
    student: Model,
    teachers: Sequence[Teacher],
    rows: Rows,
    context: Context,
) -> Beside:
    """A teacher that is looked into or guesses words, and the student as it learns from it."""
    from edgekit.steps.distill.inside import Mentor, depth_of, whole_forward
    from edgekit.steps.distill.lessons import layer_pairs
    from edgekit.steps.distill.masked import Guessing, guessing, load_guesser
    from edgekit.steps.distill.pupil import Beside, Pupil, projection
    from edgekit.workbench import encode

    assert context.folder is not None
    (only,) = teachers
    running: nn.Module
    if lesson.masks:
        assert only.path is not None
        teacher = load_guesser(only.path)
        running = Guessing(teacher.module, teacher.inputs)
        forward: nn.Module = guessing(student, teacher, context.seed)
    else:
        assert only.inside is not None
        teacher = only.inside
        running, forward = whole_forward(teacher), whole_forward(student)
    pairs: tuple[tuple[int, int], ...] = ()
    if lesson.looks_inside:
        pairs = layer_pairs(lesson.map, depth_of(student), depth_of(teacher))
    mine, theirs = lesson.views(pairs)
    folder = context.folder / f"inside-{number}"
    mentor = Mentor(teacher, running, encode(teacher, rows), theirs, folder)
    if not lesson.masks and mentor.fits():
        mentor.keep(context.on_progress)
    fit = None
    if lesson.compares_states:
        fit = projection(student, teacher, context.seed)
    return Beside(Pupil(forward, fit), mentor, pairs, mine)
