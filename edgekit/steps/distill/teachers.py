"""Who teaches: the original, or checkpoints, exported files and files of logits.

Rules:

1. A teacher is of the student's task, and its answers are the student's. Where they are named in
   another order they are put into the student's; where the names differ it is refused.
2. ``.npy`` holds logits float [N, C], one row for each training row in the order of the data
   (those set aside too); ``.npz`` holds them as ``logits``, and may name its columns in
   ``labels``. Nothing is unpickled. Without names the columns are taken to be the student's.
3. Several teachers teach the mean of what they answer: of their probabilities at the temperature
   (Hinton et al. 2015, arXiv 1503.02531, section 5), of their numbers where they do not classify.
4. Answers are computed once, and kept in the step's folder as a memory-mapped file a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import DataError, ModelError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.data import Rows
    from edgekit.filemodel import FileModel
    from edgekit.model import Model
    from edgekit.preprocess import Array

_LOGITS = (".npy", ".npz")


@dataclass(frozen=True)
class Teacher:
    """One teacher. model: ``None`` for a file of logits. order: the column of each of the
    student's labels; ``None`` where they are the same. name: for messages.
    """

    name: str
    model: Model | FileModel | None
    path: Path | None = None
    order: tuple[int, ...] | None = None

    @property
    def inside(self) -> Model | None:
        """The torch model, whose layers can be looked at; ``None`` where there is none."""
        from edgekit.model import Model

        return self.model if isinstance(self.model, Model) else None


def find_teachers(
    paths: Sequence[Path], student: Model, original: Model | None, rows: Rows, *, meta: bool
) -> list[Teacher]:
    """The teachers at ``paths``, or the original. Raises RecipeError (rule 1).

    meta: shapes only.
    """
    if not paths:
        assert original is not None
        return [Teacher("the original", original)]
    return [_teacher(path, student, rows, meta) for path in paths]


def _teacher(path: Path, student: Model, rows: Rows, meta: bool) -> Teacher:
    if not path.exists():
        raise RecipeError(f"distill: there is no teacher at {path}; mend the path")
    if path.suffix in _LOGITS:
        return _logits_teacher(path, student, rows)
    from edgekit.filemodel import read_file_model
    from edgekit.model import identify, load_model

    try:
        source = identify(str(path))
        model: Model | FileModel
        if source.kind == "file":
            model = read_file_model(path, student.task)
        else:
            model = load_model(source, pair=rows.pairs is not None, meta=meta)
    except ModelError as error:
        raise RecipeError(f"distill: teachers: {error}") from None
    if model.task != student.task or model.problem != student.problem:
        raise RecipeError(
            f"distill: the teacher {path} does {_named(model)} and the student "
            f"{_named(student)}; name a teacher of the same task"
        )
    if student.preprocessor is not None and model.preprocessor is None:
        raise RecipeError(
            f"distill: the teacher {path} has no tokenizer.json beside it, so that it cannot read "
            "texts; put the checkpoint's there"
        )
    order = _order(str(path), model.labels, student) if model.labels else None
    return Teacher(str(path), model, path, order)


def _named(model: Model | FileModel) -> str:
    return f"{model.task} ({model.problem})" if model.problem else model.task


def _logits_teacher(path: Path, student: Model, rows: Rows) -> Teacher:
    outputs, names = _read_logits(path)
    if len(outputs) != len(rows):
        raise RecipeError(
            f"distill: {path} holds logits of {len(outputs)} rows and there are {len(rows)} "
            "training rows; write one for each row of --data, and give --eval a file of its own"
        )
    if student.labels and outputs.shape[1] != len(student.labels):
        raise RecipeError(
            f"distill: {path} holds logits of {outputs.shape[1]} labels and the student has "
            f"{len(student.labels)}; write one for each"
        )
    return Teacher(str(path), None, path, _order(str(path), names, student) if names else None)


def _read_logits(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Rule 2. Raises RecipeError."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        names: tuple[str, ...] = ()
        if not isinstance(found, np.ndarray):
            with found:
                names = tuple(map(str, found["labels"])) if "labels" in found else ()
                found = found["logits"]
        if found.ndim != 2 or found.dtype.kind != "f":
            raise ValueError(f"it holds {found.dtype} {list(found.shape)}")
        if not np.isfinite(found).all():
            raise ValueError("some are NaN or infinite")
    except KeyError:
        raise RecipeError(
            f"distill: {path} has no array named logits; write one, float [rows, labels]"
        ) from None
    except Exception as error:  # numpy and zipfile raise many kinds for what is damaged
        raise RecipeError(
            f"distill: {path} cannot be read as logits, float [rows, labels]: {error}; write it "
            "anew with numpy.save"
        ) from None
    return found, names


def _order(name: str, theirs: Sequence[str], student: Model) -> tuple[int, ...] | None:
    """Rule 1."""
    mine = student.labels
    if tuple(theirs) == mine:
        return None
    if sorted(theirs) != sorted(mine) or len(set(mine)) != len(mine):
        unknown = sorted(set(theirs) ^ set(mine))
        what = f"'{unknown[0]}' is a label of one only" if unknown else "their numbers differ"
        raise RecipeError(
            f"distill: the teacher {name} and the student have different labels ({what}); name a "
            "teacher of the same labels"
        )
    places = {label: place for place, label in enumerate(theirs)}
    return tuple(places[label] for label in mine)


def answers(
    teachers: Sequence[Teacher],
    student: Model,
    rows: Rows,
    chosen: Array,
    folder: Path,
    temperature: float,
) -> Array:
    """What is taught on the rows at ``chosen``: logits or numbers, float32 [len(chosen), ...].

    With several teachers that classify these are the logits whose probabilities at the temperature
    are the mean of theirs (rule 3).
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = [
        _answers(each, rows, chosen, folder / f"teacher{number or ''}.npy")
        for number, each in enumerate(teachers)
    ]
    if len(found) == 1:
        return found[0]
    if student.problem == "single-label" or student.task == "token-classification":
        return mean_answer(found, temperature)
    return np.asarray(np.mean(found, axis=0, dtype=np.float32))


def mean_answer(logits: Sequence[Array], temperature: float) -> Array:
    """Logits [..., C] whose softmax at ``temperature`` is the mean of those of ``logits``."""
    total = None
    for each in logits:
        scaled = np.asarray(each, np.float64) / temperature
        scaled = scaled - scaled.max(-1, keepdims=True)
        exponents = np.exp(scaled)
        probabilities = exponents / exponents.sum(-1, keepdims=True)
        total = probabilities if total is None else total + probabilities
    assert total is not None
    mean: Array = (temperature * np.log((total / len(logits)).clip(1e-30))).astype(np.float32)
    return mean


def _answers(teacher: Teacher, rows: Rows, chosen: Array, path: Path) -> Array:
    from edgekit.examples import teacher_outputs
    from edgekit.workbench import answers_of, encode

    def ordered(outputs: Array) -> Array:
        return outputs if teacher.order is None else outputs[..., list(teacher.order)]

    if teacher.model is None:
        assert teacher.path is not None
        return ordered(np.asarray(_read_logits(teacher.path)[0][chosen], np.float32))
    encoded = encode(teacher.model, rows.take(chosen))
    outputs = teacher_outputs(
        teacher.model,  # type: ignore[arg-type]
        encoded,
        path,
        lambda model, encoded: ordered(answers_of(model, encoded)),
    )
    if outputs.shape[-1:] and not np.isfinite(outputs).all():
        raise DataError(
            f"the teacher {teacher.name} answers NaN or infinity on training rows; look at it first"
        )
    return outputs


def need_aligned(step: str, student: Model, teacher: Model | FileModel, rows: Rows) -> None:
    """Raise RecipeError unless both split every row into the same tokens, by name."""
    from edgekit.preprocess import TextPreprocessor
    from edgekit.workbench import encode

    mine, theirs = student.preprocessor, teacher.preprocessor
    if mine == theirs:
        return
    if not (isinstance(mine, TextPreprocessor) and isinstance(theirs, TextPreprocessor)):
        raise RecipeError(f"{step}: only text models can be compared token by token; use losses=kl")
    renumbered = _renumbered(theirs, mine)
    ours, other = encode(student, rows), encode(teacher, rows)
    assert ours.lengths is not None and other.lengths is not None
    same = ours.lengths == other.lengths
    width = min(each.arrays["input_ids"].shape[1] for each in (ours, other))
    ids = renumbered[other.arrays["input_ids"][:, :width]]
    real = ours.arrays["attention_mask"][:, :width] != 0
    same &= ((ids == ours.arrays["input_ids"][:, :width]) | ~real).all(1)
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
        where = rows.places[row] if rows.places else f"row {row + 1}"
        raise RecipeError(
            f"{step}: the vocabularies of student and teacher do not align: they split {where} of "
            "the training data into other tokens; give the student the teacher's tokenizer, or "
            "compare answers only, with losses=kl"
        )


def _renumbered(theirs: Any, mine: Any) -> Array:
    """The student's id of each of the teacher's tokens; -1 for those that it lacks."""
    from tokenizers import Tokenizer

    known, other = (
        Tokenizer.from_str(each.tokenizer_json).get_vocab(with_added_tokens=True)
        for each in (mine, theirs)
    )
    found = np.full(max(other.values(), default=0) + 1, -1, np.int64)
    for token, number in other.items():
        found[number] = known.get(token, -1)
    return found


def common_rows(student: Model, teacher: Model) -> tuple[Array, Array]:
    """Rows of the two word tables that are the same token's: the student's and the teacher's."""
    found = _renumbered(teacher.preprocessor, student.preprocessor)
    theirs = np.flatnonzero(found >= 0)
    return found[theirs], theirs
