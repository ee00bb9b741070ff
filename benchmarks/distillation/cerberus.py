"""Heads on a shared body beside a student of each of their teachers.

    python benchmarks/distillation/cerberus.py CHECKPOINT TRAIN EVAL --text text --label category \\
        --teachers one --teachers two --teachers three

Every row is made of the checkpoint's layers in ``--steps`` steps from the same start:
``student:layers=N`` taught by one teacher, and ``cerberus`` with a head of one layer for each on
N - 1 shared ones. With ``--make K`` teachers are made first: the checkpoint after ``--make-steps``
steps on gold labels, each on rows drawn with replacement by a seed of its own.

Recorded are accuracies on the eval rows in float32 (of the teachers, of the mean of their
probabilities, of every row), parameters and CPU seconds, in ``cerberus.json``.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.data import Columns, Rows, label_ids, load_data
from edgekit.model import Model, identify, load_model, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.store import versions
from edgekit.workbench import answers_of, encode

_HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checkpoint", "train", "eval"):
        parser.add_argument(name)
    parser.add_argument("--text")
    parser.add_argument("--label")
    parser.add_argument("--teachers", action="append", type=Path, default=[])
    parser.add_argument("--make", type=int, default=0)
    parser.add_argument("--make-steps", type=int, default=150)
    parser.add_argument("--made", type=Path, help="where the teachers that are made are kept")
    parser.add_argument("--rows", type=int, help="how many training rows; all unless given")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)

    model = load_model(identify(given.checkpoint))
    columns = Columns(given.text, None, given.label)
    kind: dict[str, Any] = {"task": model.task, "problem": model.problem}
    data = load_data(given.train, given.eval, columns=columns, seed=given.seed, **kind)
    assert data.train is not None and data.eval is not None
    chosen = np.random.default_rng(given.seed).permutation(len(data.train))[: given.rows]
    train = data.train.take(chosen)
    teachers = list(given.teachers)
    for number in range(given.make):
        teachers.append(given.made / f"teacher-{number}")
        if not teachers[-1].is_dir():
            save_model(_teacher(model, data.train, number, given.make_steps), teachers[-1])

    judged, record = data.eval, {"rows": len(train), "teachers": []}
    answers = []
    for each in teachers:
        found = load_model(identify(str(each)))
        order = [found.labels.index(label) for label in model.labels]
        answers.append(_answers(found, judged)[:, order])
    record["teachers"] = [_accuracy(each, model, judged) for each in answers]
    record["mean_of_teachers"] = _accuracy(np.mean(answers, axis=0), model, judged)
    epochs = given.steps / -(-(len(train) - min(512, round(0.1 * len(train)))) // 32)
    rate = f"epochs={epochs},learning-rate=0.0003"
    made = {
        f"student-{n}": f"distill:losses=kl,{rate},teachers={t}" for n, t in enumerate(teachers)
    }
    made["cerberus"] = f"cerberus:{rate},teachers={';'.join(map(str, teachers))}"
    for name, step in made.items():
        record[name] = _row(step, model, train, judged, given)
        record["machine"] = {"cpu": platform.processor() or platform.machine(), "threads": 1}
        record["versions"] = versions()
        print(name, record[name])
        (_HERE / "cerberus.json").write_text(json.dumps(record, indent=1) + "\n")


def _teacher(model: Model, train: Rows, number: int, count: int) -> Model:
    chosen = np.random.default_rng(100 + number).integers(0, len(train), 32 * count * 10 // 9)
    step = parse_step("distill:losses=labels,epochs=1,learning-rate=0.00005").step
    with tempfile.TemporaryDirectory() as folder:
        return apply_steps([step], model, Context(train.take(chosen), number, Path(folder)))


def _row(step: str, model: Model, train: Rows, judged: Rows, given: Any) -> dict[str, Any]:
    started = time.process_time()
    steps = [parse_step(f"student:layers={given.layers}").step, parse_step(step).step]
    with tempfile.TemporaryDirectory() as folder:
        made = apply_steps(steps, model, Context(train, given.seed, Path(folder)))
    return {
        "accuracy": _accuracy(_answers(made, judged), model, judged),
        "parameters": sum(each.numel() for each in made.module.parameters()),
        "cpu_seconds": round(time.process_time() - started, 1),
        "told": made.lineage[-1],
    }


def _answers(model: Model, rows: Rows) -> Any:
    """Probabilities [N, C]."""
    outputs = answers_of(model, encode(model, rows))
    powers = np.exp(outputs - outputs.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _accuracy(answers: Any, model: Model, rows: Rows) -> float:
    ids = label_ids(rows, model.labels, task=model.task, problem=model.problem, source="eval")
    return float(np.mean(answers.argmax(-1) == np.asarray(ids)))


if __name__ == "__main__":
    main()
