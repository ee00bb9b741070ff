"""Few labels and much other text: what a student learns from rows without labels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
import edgekit.examples
from edgekit.data import Rows
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.distill import Distill
from edgekit.steps.prune.drop_layers import DropLayers
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts
from tests.tiny_project import random_texts, tiny_project

LABELS = ("a", "b", "c")
STEPS = 130


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return load_model(identify(str(tiny_checkpoint(folder, "bert", num_hidden_layers=4))))


def _taught(model: Model, folder: Path, seed: int, pool: int = 0, augment: int = 0) -> Model:
    """Half of the layers, after ``STEPS`` steps on 40 labelled rows and what is beside them."""
    rows = Rows(texts=tuple(tiny_texts(40, 100 + seed)), labels=tuple(40 * ["a"]))
    extra = Rows(texts=tuple(tiny_texts(pool, 200 + seed))) if pool else None
    learned = 36 + pool + 36 * augment
    epochs = STEPS / -(-learned // 32)
    step = Distill(losses="kl", epochs=epochs, learning_rate=4e-3, augment=augment, batch=32)
    context = Context(rows, seed, folder, unlabeled=extra)
    return apply_steps([DropLayers(count=2), step], model, context)


def _error(student: Model, original: Model) -> float:
    """How far it is from the original on new texts; 1 is what the mean answer is off by."""
    encoded = encode(original, Rows(texts=tuple(tiny_texts(128, 7))))
    found, wanted = (reference_outputs(each, encoded) for each in (student, original))
    found, wanted = (each - each.mean(-1, keepdims=True) for each in (found, wanted))
    return float(np.sqrt(np.mean((found - wanted) ** 2)) / (wanted - wanted.mean(0)).std())


@pytest.mark.slow
def test_text_without_labels_teaches_and_only_with_its_own_answers(
    bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arms of one start and as many steps, three seeds."""
    honest = edgekit.examples.teacher_outputs

    def permuted(*args: Any, **kwargs: Any) -> Any:
        outputs = np.array(honest(*args, **kwargs))
        return outputs[np.random.default_rng(0).permutation(len(outputs))]

    arms: dict[str, Callable[[int], Model]] = {
        "few": lambda seed: _taught(bert, tmp_path / f"few{seed}", seed),
        "pool": lambda seed: _taught(bert, tmp_path / f"pool{seed}", seed, pool=1000),
        "augmented": lambda seed: _taught(bert, tmp_path / f"more{seed}", seed, augment=20),
    }
    errors = {
        arm: float(np.mean([_error(make(seed), bert) for seed in range(3)]))
        for arm, make in arms.items()
    }
    monkeypatch.setattr(edgekit.examples, "teacher_outputs", permuted)
    permuted_errors = [
        _error(_taught(bert, tmp_path / f"p{seed}", seed, pool=1000), bert) for seed in range(3)
    ]
    errors["permuted"] = float(np.mean(permuted_errors))
    assert errors["pool"] < 0.9 * errors["few"], errors
    assert errors["augmented"] < 0.95 * errors["few"], errors
    assert errors["few"] < 0.95 * errors["permuted"], errors


@pytest.mark.slow
def test_the_file_is_the_same_whatever_the_eval_rows(tmp_path: Path) -> None:
    project = tiny_project(tmp_path, layers=2)
    pool = tmp_path / "pool.txt"
    pool.write_text("\n".join(random_texts(40, 77, ("card", "bank", "money", "help"))))
    other = tmp_path / "other.csv"
    lines = project.eval.read_text().splitlines()
    other.write_text("\n".join([lines[0], *lines[:0:-1][:30]]) + "\n")
    files = []
    for name, evaluation in (("one", project.eval), ("two", other)):
        edgekit.build(
            project.checkpoint,
            data=project.train,
            eval=evaluation,
            unlabeled=[pool],
            target="linux-x86_64",
            scheme="fp32",
            steps=["drop-layers:count=1", "distill:losses=kl,epochs=2,augment=2"],
            output=tmp_path / name,
        )
        files.append((tmp_path / name / "linux-x86_64" / "model.onnx").read_bytes())
    assert files[0] == files[1]
    assert "40 rows of --unlabeled" in (tmp_path / "one/linux-x86_64/manifest.json").read_text()
