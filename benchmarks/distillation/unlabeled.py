"""A student taught on few rows, and on as many steps with other text beside them.

    python benchmarks/distillation/unlabeled.py CHECKPOINT TRAIN EVAL --text text --label category

Every row is a student of ``--layers`` layers after ``--steps`` steps, taught by the checkpoint's
answers alone (kl), from the same start:

- ``few``: ``--labelled`` of the training rows, drawn by the seed;
- ``pool``: beside them ``--pool`` of the other training rows, whose labels are not read;
- ``file``: beside them ``--pool`` texts of ``--unlabeled``, of another domain or none;
- ``augmented``: beside them ``--copies`` copies of each, with words replaced;
- ``checkpoint``: the teacher itself.

Recorded are the accuracy on the eval rows, in float32, and CPU seconds. Rows are written to
``unlabeled.json`` one by one, so that ``--only`` adds to it.
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
from edgekit.model import Model, identify, load_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.store import versions
from edgekit.workbench import answers_of, encode

_HERE = Path(__file__).parent
_ROWS = ("few", "augmented", "pool", "file", "checkpoint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("checkpoint", "train", "eval"):
        parser.add_argument(name)
    parser.add_argument("--text")
    parser.add_argument("--label")
    parser.add_argument("--unlabeled")
    parser.add_argument("--only", action="append", choices=_ROWS)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--labelled", type=int, default=500)
    parser.add_argument("--pool", type=int, default=3000)
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)

    model = load_model(identify(given.checkpoint))
    data = load_data(
        given.train,
        given.eval,
        task=model.task,
        problem=model.problem,
        columns=Columns(given.text, None, given.label),
        seed=given.seed,
        unlabeled=[given.unlabeled] if given.unlabeled else [],
    )
    assert data.train is not None and data.eval is not None
    path = _HERE / "unlabeled.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in given.only or _ROWS:
        if name == "file" and data.unlabeled is None:
            continue
        if name == "checkpoint":
            found = {"accuracy": _accuracy(model, data.eval)}
        else:
            found = _row(name, model, data.train, data.eval, data.unlabeled, given)
        record[name] = found
        record["machine"] = {"cpu": platform.processor() or platform.machine(), "threads": 1}
        record["versions"] = versions()
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(name, found)


def _row(
    name: str, model: Model, train: Rows, judged: Rows, others: Rows | None, given: Any
) -> dict[str, Any]:
    order = np.random.default_rng(given.seed).permutation(len(train))
    few, rest = train.take(order[: given.labelled]), train.take(order[given.labelled :])
    extra: Rows | None = None
    if name == "pool":
        extra = Rows(texts=rest.take(range(given.pool)).texts)
    elif name == "file":
        assert others is not None
        chosen = np.random.default_rng(given.seed).permutation(len(others))[: given.pool]
        extra = others.take(chosen)
    copies = given.copies if name == "augmented" else 0
    learned = len(few) - max(1, min(512, round(0.1 * len(few))))
    # Copies that equal their text are left out, so that these are at most as many steps.
    rows = learned * (1 + copies) + (len(extra) if extra else 0)
    epochs = given.steps / -(-rows // 32)
    options = f"losses=kl,epochs={epochs},learning-rate=0.0003,augment={copies}"
    steps = [f"student:layers={given.layers}", f"distill:{options}"]
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        context = Context(few, given.seed, Path(folder), unlabeled=extra)
        made = apply_steps([parse_step(each).step for each in steps], model, context)
    return {
        "steps": steps,
        "labelled": len(few),
        "unlabelled": len(extra) if extra else 0,
        "accuracy": _accuracy(made, judged),
        "lineage": list(made.lineage),
        "cpu_seconds": round(time.process_time() - started, 1),
    }


def _accuracy(model: Model, rows: Rows) -> float:
    ids = label_ids(rows, model.labels, task=model.task, problem=model.problem, source="eval")
    return float(np.mean(answers_of(model, encode(model, rows)).argmax(-1) == np.asarray(ids)))


if __name__ == "__main__":
    main()
