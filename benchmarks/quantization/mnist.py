"""A small CNN on MNIST: what int8 costs in accuracy, in ONNX and in TFLite.

    python benchmarks/quantization/mnist.py train.npz test.npz --out mnist.json

The arrays are ``x`` (uint8 [N, 28, 28]) and ``y``. Trains a ResNet of transformers for some
minutes on one core, and writes each format in float32, int8-dynamic and int8-static, the latter
with the ranges of 512 training pictures. Every file runs over all test pictures.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model
from edgekit.step import Context
from edgekit.steps.quantize.calibrate import Calibrate
from edgekit.steps.quantize.static import fake_outputs, output_step
from edgekit.workbench import encode

Array = np.ndarray[Any, Any]
MEAN, STD = 0.1307, 0.3081


def rows_of(path: Path, count: int | None = None) -> Rows:
    """So many rows, drawn at random: files may be sorted by class."""
    with np.load(path) as arrays:
        chosen = np.random.default_rng(0).permutation(len(arrays["y"]))[:count]
        labels = tuple(str(label) for label in arrays["y"][chosen])
        return Rows(images=arrays["x"][chosen, :, :, None], labels=labels)


def train(folder: Path, rows: Rows, epochs: int, width: int = 16) -> Path:
    """A checkpoint of a ResNet with stages of 16, 32 and 64 channels, or of other widths so."""
    import transformers

    torch.manual_seed(0)
    labels = {number: str(number) for number in range(10)}
    config = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width],
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
    )
    model = transformers.ResNetForImageClassification(config)
    assert rows.images is not None and rows.labels is not None
    pixels = (rows.images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - MEAN) / STD
    x, y = torch.from_numpy(pixels), torch.tensor([int(label) for label in rows.labels])
    steps = epochs * (len(x) // 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for start in range(0, len(x) - 127, 128):
            chosen = order[start : start + 128]
            loss = torch.nn.functional.cross_entropy(model(x[chosen]).logits, y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    model.eval().save_pretrained(folder)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 28, "width": 28},
        "do_resize": True,
        "resample": 2,
        "do_normalize": True,
        "image_mean": [MEAN],
        "image_std": [STD],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def measure(model: Model, train_rows: Rows, test_rows: Rows, folder: Path) -> dict[str, Any]:
    """Accuracy, bytes and milliseconds a picture of each file."""
    assert test_rows.labels is not None
    gold = np.array([model.labels.index(label) for label in test_rows.labels])
    encoded = encode(model, test_rows)
    static = Calibrate().apply(model, Context(train_rows, 0, folder))
    fake = fake_outputs(static, encoded)
    results: dict[str, Any] = {"torch, rounded": {"accuracy": share(fake, gold)}}
    for format in ("onnx", "tflite"):
        for scheme in ("fp32", "int8-dynamic", "int8-static"):
            source = static if scheme == "int8-static" else model
            made = export_artifact(source, folder / format / scheme, format, scheme)  # type: ignore[arg-type]
            started = time.perf_counter()
            found = run_agent(made, encoded, [Pass("all", "outputs")], threads=1)
            outputs = found["passes"]["all"]["outputs"]
            entry = {
                "accuracy": share(outputs, gold),
                "bytes": made.bytes,
                "seconds": round(time.perf_counter() - started, 1),
            }
            if scheme == "int8-static":
                steps = np.abs(outputs - fake).max(1) / output_step(static)
                entry["steps from rounded torch"] = {
                    "largest": round(float(steps.max()), 2),
                    "mean": round(float(steps.mean()), 4),
                    "rows that differ": int((steps > 0.5).sum()),
                }
            results[f"{format} {scheme}"] = entry
            print(format, scheme, entry, flush=True)
    return results


def share(outputs: Array, gold: Array) -> float:
    return round(float((outputs.argmax(1) == gold).mean()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=int, default=30000)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train_rows = rows_of(options.train, options.rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        checkpoint = train(folder / "checkpoint", train_rows, options.epochs)
        minutes = round((time.perf_counter() - started) / 60, 2)
        model = load_model(identify(str(checkpoint)))
        found = measure(model, train_rows, rows_of(options.test), folder)
    sizes = {"training rows": options.rows, "epochs": options.epochs, "minutes": minutes}
    if options.out is not None:
        options.out.write_text(json.dumps(sizes | {"files": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
