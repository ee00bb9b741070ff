"""Find the plan: try step lists in order of harm until every target fits the size limit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit.artifact import Format, Scheme
from edgekit.bundle.write import app_files
from edgekit.errors import RecipeError, UsageError
from edgekit.export.lengths import choose_lengths, default_lengths
from edgekit.plan.predict import predicted_bytes, weight_bytes
from edgekit.plan.propose import Plan, Predicted, misfit
from edgekit.preprocess import TextPreprocessor
from edgekit.recipe import StepSpec, make_step
from edgekit.step import Context, apply_steps
from edgekit.target import Target
from edgekit.workbench import Workbench, encode

if TYPE_CHECKING:
    from edgekit.model import Model

# Steps that edgekit adds by itself, least harmful first.
_LADDER = ("trim-vocabulary",)


def search(work: Workbench, targets: Sequence[Target]) -> Plan:
    """The plan for these targets. Raises UsageError and RecipeError for what cannot be."""
    settings = work.settings
    notes = list(work.data.notes)
    if work.data.eval is None:
        notes.append("no data: the accuracy of the files is not proven; give --data and --eval")
    tried: list[tuple[tuple[StepSpec, ...], tuple[Predicted, ...], tuple[int, ...]]] = []
    for steps in _candidates(work, notes):
        context = Context(work.data.train, settings.seed)
        model = apply_steps([spec.step for spec in steps], work.outline, context)
        lengths = _lengths(work, model)
        predicted = tuple(_predict(work, model, target, lengths) for target in targets)
        tried.append((steps, predicted, lengths))
        if settings.budget.size is None or _largest(predicted) <= settings.budget.size:
            break
    steps, predicted, lengths = min(tried, key=lambda each: _largest(each[1]))
    return Plan(
        steps=steps,
        lengths=lengths,
        predicted=predicted,
        original_bytes=weight_bytes(work.outline),
        misfit=misfit([(s, p) for s, p, _ in tried], settings.budget),
        notes=tuple(notes),
    )


def _candidates(work: Workbench, notes: list[str]) -> list[tuple[StepSpec, ...]]:
    """Step lists to try, in order."""
    if work.settings.steps:
        return [work.settings.steps]
    found: list[tuple[StepSpec, ...]] = [()]
    for name in _LADDER:
        spec = make_step(name, {})
        try:
            spec.step.requires(work.outline, Context(work.data.train, work.settings.seed))
        except RecipeError as error:
            if work.settings.budget.size is not None:
                notes.append(str(error))
            continue
        found.append((*found[-1], spec))
    return found


def _lengths(work: Workbench, model: "Model") -> tuple[int, ...]:
    """Sequence-length buckets: as set, or chosen from the training text."""
    if not isinstance(model.preprocessor, TextPreprocessor):
        return ()
    longest = model.preprocessor.max_length
    if work.settings.lengths:
        if max(work.settings.lengths) > longest:
            raise UsageError(
                f"--lengths: {max(work.settings.lengths)} is beyond the {longest} positions that "
                "the model was trained with; leave it out"
            )
        return tuple(sorted(set(work.settings.lengths)))
    if work.data.train is None:
        return default_lengths(longest)
    encoded = encode(model, work.data.train)
    assert encoded.lengths is not None
    return choose_lengths(encoded.lengths.tolist(), longest)


def _predict(
    work: Workbench, model: "Model", target: Target, lengths: tuple[int, ...]
) -> Predicted:
    formats: tuple[Format, ...] = work.settings.formats or target.formats
    allowed = (*target.formats, *target.on_request)
    for format in formats:
        if format not in allowed:
            raise UsageError(
                f"--format: {target.name} takes {', '.join(allowed)}, not {format}; leave it out "
                "or choose another target"
            )
    scheme: Scheme = work.settings.scheme or target.scheme
    beside = sum(len(text.encode()) for text in app_files(model).values())
    models = {format: predicted_bytes(model, format, scheme, lengths) for format in formats}
    return Predicted(target.name, scheme, models, beside)


def _largest(predicted: Sequence[Predicted]) -> int:
    return max(each.total for each in predicted)
