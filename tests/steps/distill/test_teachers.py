"""Who teaches: checkpoints, files, logits; whose labels are in whatever order."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.steps.distill.teachers import answers, find_teachers, mean_answer, need_aligned
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts

ROWS = Rows(texts=tuple(tiny_texts(12)))
CHOSEN = np.array([0, 3, 4, 11])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints: the student's, another, one with its labels turned, and such that are no use."""
    made = tmp_path_factory.mktemp("teachers")
    tiny_checkpoint(made / "student")
    tiny_checkpoint(made / "other", seed=1)
    tiny_checkpoint(made / "turned", labels=("c", "a", "b"))
    tiny_checkpoint(made / "foreign", labels=("a", "b", "z"))
    tiny_checkpoint(made / "tags", task="token-classification")
    tiny_checkpoint(made / "roberta", "roberta")
    return made


@pytest.fixture(scope="module")
def student(folder: Path) -> Model:
    return load_model(identify(str(folder / "student")))


def _taught(student: Model, scratch: Path, *paths: Path, temperature: float = 1.0) -> Any:
    teachers = find_teachers(paths, student, None, ROWS, meta=False)
    return answers(teachers, student, ROWS, CHOSEN, scratch, temperature)


def _outputs(path: Path) -> Any:
    model = load_model(identify(str(path)))
    return reference_outputs(model, encode(model, ROWS.take(CHOSEN)))


def softmax(logits: Any) -> Any:
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_labels_in_another_order_are_put_into_the_students(
    student: Model, folder: Path, tmp_path: Path
) -> None:
    found = _taught(student, tmp_path, folder / "turned")
    # Of the teacher's c, a, b the student's a, b, c are the columns 1, 2, 0.
    assert np.array_equal(found, _outputs(folder / "turned")[:, [1, 2, 0]])


def test_several_teach_the_mean_of_their_probabilities(
    student: Model, folder: Path, tmp_path: Path
) -> None:
    found = _taught(student, tmp_path, folder / "student", folder / "other", temperature=3)
    expected = (
        softmax(_outputs(folder / "student") / 3) + softmax(_outputs(folder / "other") / 3)
    ) / 2
    assert softmax(found / 3) == pytest.approx(expected, abs=1e-5)
    alone = _outputs(folder / "other")
    assert softmax(mean_answer([alone, alone], 2.0) / 2) == pytest.approx(
        softmax(alone / 2), abs=1e-6
    )


def test_a_file_of_logits_has_a_row_for_each_training_row(student: Model, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    np.save(tmp_path / "plain.npy", logits)
    assert np.array_equal(_taught(student, tmp_path, tmp_path / "plain.npy"), logits[CHOSEN])
    np.savez(tmp_path / "named.npz", logits=logits, labels=np.array(["b", "c", "a"]))
    found = _taught(student, tmp_path, tmp_path / "named.npz")
    assert np.array_equal(found, logits[CHOSEN][:, [2, 0, 1]])


@pytest.mark.slow
def test_an_exported_file_teaches_what_it_answers(
    student: Model, folder: Path, tmp_path: Path
) -> None:
    from edgekit.export import export_artifact

    turned = load_model(identify(str(folder / "turned")))
    artifact = export_artifact(turned, tmp_path, "onnx", "fp32")
    with pytest.raises(RecipeError, match=r"no tokenizer.json beside it"):
        find_teachers([artifact.path], student, None, ROWS, meta=True)
    for name in ("tokenizer.json", "config.json"):
        (artifact.path.parent / name).write_bytes((folder / "turned" / name).read_bytes())
    found = _taught(student, tmp_path / "scratch", artifact.path)
    assert found == pytest.approx(_outputs(folder / "turned")[:, [1, 2, 0]], abs=1e-4)


def test_teachers_that_are_no_use(student: Model, folder: Path, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    np.save(tmp_path / "few.npy", chance.normal(size=(11, 3)))
    np.save(tmp_path / "wide.npy", chance.normal(size=(12, 4)))
    np.save(tmp_path / "whole.npy", chance.integers(0, 3, (12, 3)))
    np.save(tmp_path / "pickled.npy", np.array([{}] * 12), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.full((12, 3), np.nan))
    np.savez(tmp_path / "unnamed.npz", outputs=chance.normal(size=(12, 3)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "few.npy").read_bytes()[:100])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    for path, said in {
        folder / "foreign": "different labels \\('c' is a label of one only\\)",
        folder / "tags": "does token-classification and the student text-classification",
        folder / "missing": "there is no teacher at",
        tmp_path / "few.npy": "logits of 11 rows and there are 12",
        tmp_path / "wide.npy": "logits of 4 labels and the student has 3",
        tmp_path / "whole.npy": "it holds int64",
        tmp_path / "pickled.npy": "cannot be read as logits",
        tmp_path / "nan.npy": "some are NaN",
        tmp_path / "unnamed.npz": "no array named logits",
        tmp_path / "cut.npy": "cannot be read as logits",
        tmp_path / "text.npz": "cannot be read as logits",
        tmp_path / "model.onnx": "distill: teachers: ",
    }.items():
        with pytest.raises(RecipeError, match=said):
            find_teachers([path], student, None, ROWS, meta=True)


def test_vocabularies_align_where_rows_are_split_alike(student: Model, folder: Path) -> None:
    from edgekit.recipe import parse_step
    from edgekit.step import Context, apply_steps

    trimmed = apply_steps([parse_step("trim-vocabulary").step], student, Context(ROWS, 0))
    assert trimmed.preprocessor != student.preprocessor
    need_aligned("distill", trimmed, student, ROWS)
    other = load_model(identify(str(folder / "roberta")))
    with pytest.raises(RecipeError, match="do not align: they split row 1 of"):
        need_aligned("distill", other, student, ROWS)
    words = replace(ROWS, places=tuple(f"line {n}" for n in range(2, 14)))
    with pytest.raises(RecipeError, match="they split line 2 of"):
        need_aligned("distill", other, student, words)
