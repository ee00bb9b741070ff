"""What is inside the teacher is learned from the teacher, and from nothing else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts

LABELS = ("a", "b", "c")
SPECIAL = 6  # tokens that are no pieces of text come first


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("tiny")
    return load_model(identify(str(tiny_checkpoint(folder, "bert", layers=4))))


@pytest.fixture(scope="module")
def permuted(bert: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same teacher, but each word stands for another."""
    folder = tmp_path_factory.mktemp("permuted")
    save_model(bert, folder)
    model = load_model(identify(str(folder)))
    table: torch.Tensor = model.module.base_model.embeddings.word_embeddings.weight
    order = torch.randperm(len(table) - SPECIAL, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        table[SPECIAL:] = table[SPECIAL:][order]
    save_model(model, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["hidden", "attention"])
def test_the_teacher_is_what_the_inside_is_learned_from(
    bert: Model, permuted: Path, loss: str, tmp_path: Path
) -> None:
    """Three arms from the same start over the same batches, three seeds."""
    arms: dict[str, list[float]] = {"teacher": [], "labels": [], "permuted": []}
    for seed in range(3):
        rows = _rows(bert, 320, 100 + seed)
        for arm, options in (
            ("teacher", f"losses={loss}"),
            ("labels", "losses=labels"),
            ("permuted", f"losses={loss},teachers={permuted}"),
        ):
            steps = (
                "student:layers=2,init=bottom",
                f"distill:{options},epochs=10,learning-rate=0.004",
            )
            context = Context(rows, seed, tmp_path / f"{arm}{seed}")
            made = apply_steps([parse_step(step).step for step in steps], bert, context)
            arms[arm].append(_error(made, bert, loss))
    means = {arm: float(np.mean(errors)) for arm, errors in arms.items()}
    assert means["teacher"] < 0.8 * means["labels"], means
    assert means["teacher"] < 0.8 * means["permuted"], means


def _rows(model: Model, count: int, seed: int) -> Rows:
    rows = Rows(texts=tuple(tiny_texts(count, seed)))
    answers = reference_outputs(model, encode(model, rows))
    chosen = (answers - answers.mean(0)).argmax(-1)
    return replace(rows, labels=tuple(LABELS[number] for number in chosen))


def _error(student: Model, teacher: Model, loss: str) -> float:
    """How far the last layers are apart on texts that nobody learned, by transformers' own eyes."""
    mine, theirs = (_inside(model, loss) for model in (student, teacher))
    return float((mine - theirs).pow(2).mean() / theirs.var())


def _inside(model: Model, loss: str) -> torch.Tensor:
    """The numbers of the tokens that are no padding."""
    encoded = encode(model, _rows(model, 128, 7))
    inputs: dict[str, Any] = {n: torch.tensor(a).long() for n, a in encoded.arrays.items()}
    with torch.inference_mode():
        seen = model.module.base_model(**inputs, output_hidden_states=True, output_attentions=True)
    held = inputs["attention_mask"].bool()
    if loss == "hidden":
        states: torch.Tensor = seen.hidden_states[-1][held]
        return states
    attention = seen.attentions[-1].transpose(1, 2)[held]
    return torch.as_tensor(attention)
