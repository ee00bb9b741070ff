"""Find the plan: try step lists in order of harm until every target fits the size limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.artifact import MATRIX_BITS, STATIC, Format, Scheme, one_of
from edgekit.bundle.write import app_files
from edgekit.errors import RecipeError, UsageError
from edgekit.export.lengths import choose_lengths, default_lengths
from edgekit.export.onnx_weights import BLOCK
from edgekit.filemodel import FileModel
from edgekit.plan.predict import frees_length, predicted_bytes, weight_bytes
from edgekit.plan.propose import Plan, Predicted, misfit
from edgekit.preprocess import TextReader
from edgekit.project import Settings
from edgekit.recipe import StepSpec, make_step
from edgekit.step import Context, apply_steps
from edgekit.target import Target
from edgekit.workbench import Workbench, encode

if TYPE_CHECKING:
    from edgekit.model import Model, Quantized

# Predictions have been within a thousandth of the file (benchmarks/main_job).
_MARGIN = 0.997


def search(work: Workbench, targets: Sequence[Target]) -> Plan:
    """The plan for these targets. Raises UsageError and RecipeError for what cannot be."""
    if isinstance(work.outline, FileModel):
        _check_file(work.outline, work.settings, targets)
    _check_ends(work.outline, targets)
    if work.settings.unlabeled and not work.settings.steps:
        raise UsageError("--unlabeled is for steps that learn; add --step distill, or leave it out")
    limit = work.settings.budget.size
    notes = [*work.outline.lineage, *work.data.notes]
    if work.data.eval is None:
        notes.append("no data: the accuracy of the files is not proven; give --data and --eval")
    tried: list[Draft] = []
    for steps in _candidates(work, targets, notes):
        tried.append(_draft(work, targets, steps))
        if limit is None or tried[-1].largest <= limit:
            break
    best = min(tried, key=lambda draft: draft.largest)
    if limit is not None and len(tried) > 1 and best.largest <= limit:
        best = _spend_the_rest(work, targets, tried[0], best, limit)
    return Plan(
        steps=best.steps,
        lengths=best.lengths,
        fixed_lengths=bool(work.settings.lengths),
        predicted=best.predicted,
        original_bytes=weight_bytes(work.outline),
        misfit=misfit(best.steps, best.predicted, limit),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class Draft:
    """A list of steps with what it would give."""

    steps: tuple[StepSpec, ...]
    lengths: tuple[int, ...]
    predicted: tuple[Predicted, ...]
    tokens: int

    @property
    def largest(self) -> int:
        return max(each.total for each in self.predicted)


def _draft(work: Workbench, targets: Sequence[Target], steps: tuple[StepSpec, ...]) -> Draft:
    context = Context(work.data.train, work.settings.seed, unlabeled=work.data.unlabeled)
    model = work.outline
    if not isinstance(model, FileModel):
        if steps and model.architecture is None:
            raise RecipeError(
                f"{work.source.reference} is a plain module, and there is no checkpoint format to "
                "keep what a step makes of it; apply the steps in its factory, with "
                "edgekit.step.apply_steps, and leave them out here"
            )
        model = apply_steps([spec.step for spec in steps], model, context)
        _check_grids(work, model, targets)
    lengths = _lengths(work, model) if _needs_lengths(work, model, targets) else ()
    predicted = tuple(_predict(work, model, target, lengths) for target in targets)
    tokens = 0
    if not isinstance(model, FileModel) and model.architecture and model.architecture.reads_text:
        tokens = model.architecture.word_embeddings(model.module).num_embeddings
    return Draft(steps, lengths, predicted, tokens)


def _candidates(
    work: Workbench, targets: Sequence[Target], notes: list[str]
) -> list[tuple[StepSpec, ...]]:
    """Step lists to try, in order of harm (rule 2 of ``propose``)."""
    if isinstance(work.outline, FileModel):
        return [()]
    last = _calibration(work, targets, notes)
    if work.settings.steps:
        return [(*work.settings.steps, *last)]
    trim = make_step("trim-vocabulary", {})
    try:
        trim.step.requires(work.outline, Context(work.data.train, work.settings.seed))
    except RecipeError as error:
        if work.settings.budget.size is not None:
            notes.append(f"the vocabulary cannot be made smaller ({error})")
        return [last]
    return [last, (trim, *last)]


def _calibration(
    work: Workbench, targets: Sequence[Target], notes: list[str]
) -> tuple[StepSpec, ...]:
    """The step that a static scheme needs when no other finds ranges (rule 3 of ``propose``)."""
    schemes = {work.settings.scheme or target.scheme for target in targets}
    static = [scheme for scheme in STATIC if scheme in schemes]
    if len(static) > 1:
        raise UsageError(
            f"--target: {' and '.join(static)} have other grids; build these targets one by one"
        )
    if not static:
        return ()
    found = any(spec.name in ("calibrate", "quantize-aware-train") for spec in work.settings.steps)
    assert not isinstance(work.outline, FileModel)
    if found or work.outline.quantized is not None:
        return ()
    random = work.settings.allow_random_calibration and work.data.train is None
    note = "ranges are calibrated on the training rows; --step quantize-aware-train trains on them"
    if random:
        note = "WARNING: ranges are calibrated on random rows; how good the files are is unknown"
    notes.append(note)
    return (make_step("calibrate", {"scheme": static[0], "random": random}),)


def _check_grids(work: Workbench, model: "Model", targets: Sequence[Target]) -> None:
    """Refuse a model on grids that the files do not have."""
    schemes = [work.settings.scheme or target.scheme for target in targets]
    if model.quantized is not None and model.quantized.scheme not in schemes:
        raise RecipeError(
            f"the steps put the model on the grids of {model.quantized.scheme}, and the files are "
            f"{one_of(tuple(dict.fromkeys(schemes)))}; add --scheme {model.quantized.scheme}, or "
            "leave the step out"
        )
    if model.quantized is None:
        if "int2-weights" in schemes:
            raise RecipeError(
                "int2-weights: rounding alone leaves nothing of a model; add --step "
                "quantize-aware-train:scheme=int2-weights"
            )
        return
    for target in targets:
        for format in work.settings.formats or target.formats:
            _check_block(model.quantized, work.settings.scheme or target.scheme, format)


def _check_block(quantized: "Quantized", scheme: Scheme, format: Format) -> None:
    """Refuse a file with other blocks than the model's: it would be rounded anew."""
    block = BLOCK if format == "onnx" else None
    if scheme == quantized.scheme and scheme in MATRIX_BITS and quantized.block != block:
        option = "leave out the step's option block" if block is None else f"add block={block}"
        raise RecipeError(
            f"the steps put the model on a grid of {_blocks(quantized.block)}, and {format} files "
            f"in {scheme} have {_blocks(block)}; {option}"
        )


def _blocks(block: int | None) -> str:
    if block is None:
        return "one scale a channel"
    return f"a scale for each {block} weights"


def _check_ends(model: "Model | FileModel", targets: Sequence[Target]) -> None:
    """Refuse integer ends for what they are not for."""
    for target in targets:
        if target.integer_ends and model.task not in ("image-classification", "module"):
            raise UsageError(
                f"--target: {target.name} takes integers alone, which {model.task} does not come "
                "to: norms stay float; choose another target, with --scheme int8-static"
            )


def _spend_the_rest(
    work: Workbench, targets: Sequence[Target], whole: Draft, trimmed: Draft, limit: int
) -> Draft:
    """Keep as many common words as the budget has room for: each unseen word costs accuracy."""
    bytes_per_token = (whole.largest - trimmed.largest) / max(1, whole.tokens - trimmed.tokens)
    best, common = trimmed, 0
    # Some common words are kept already, so that the first guess leaves room for a second.
    for _ in range(2):
        more = int((limit * _MARGIN - best.largest) / max(1.0, bytes_per_token)) // 100 * 100
        if more <= 0:
            break
        trim = make_step("trim-vocabulary", {"common": common + more})
        steps = (trim if spec.name == trim.name else spec for spec in trimmed.steps)
        draft = _draft(work, targets, tuple(steps))
        if draft.largest > limit * _MARGIN:
            break
        best, common = draft, common + more
    return best


def _check_file(model: FileModel, settings: Settings, targets: Sequence[Target]) -> None:
    """What an exported file cannot be: another format, or changed by steps on the model."""
    path, format = model.artifact.path, model.artifact.format
    if settings.steps:
        raise RecipeError(
            f"{path} is an exported file, and steps change a checkpoint; leave out --step, or give "
            "the checkpoint"
        )
    for target in targets:
        scheme = settings.scheme or target.scheme
        if scheme in STATIC:
            raise UsageError(
                f"{path} is an exported file, and {scheme} looks at the activations of a "
                "checkpoint; give the checkpoint, or choose --scheme int8-dynamic"
            )
        if any(each != format for each in settings.formats or target.formats):
            takes = ", ".join(settings.formats or target.formats)
            raise UsageError(
                f"{path} is {format}, and {target.name} is built as {takes}; give the checkpoint, "
                f"or choose --format {format} where the target takes it"
            )


def _needs_lengths(work: Workbench, model: "Model | FileModel", targets: Sequence[Target]) -> bool:
    """Whether any target gets a TFLite file with buckets."""
    if work.settings.lengths:
        return True
    return any(
        "tflite" in (work.settings.formats or target.formats)
        and not (frees_length(model) and (work.settings.scheme or target.scheme) != "fp16")
        for target in targets
    )


def _lengths(work: Workbench, model: "Model | FileModel") -> tuple[int, ...]:
    """Sequence-length buckets: as set, or chosen from the training text."""
    if not isinstance(model.preprocessor, TextReader):
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
    work: Workbench, model: "Model | FileModel", target: Target, lengths: tuple[int, ...]
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
    freed = not work.settings.lengths and scheme != "fp16" and frees_length(model)
    graphs = () if freed else lengths
    models = {format: predicted_bytes(model, format, scheme, graphs) for format in formats}
    return Predicted(target.name, scheme, models, beside)
