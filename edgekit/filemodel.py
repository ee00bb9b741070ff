"""An exported file as a model: the torch stages are skipped, and the file itself is the original.

What lies beside the file says how to feed it: a ``tokenizer.json`` makes it a text model, a
``config.json`` with ``id2label`` names its answers. Without them it is fed arrays by input name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, Tensor
from edgekit.checkpoint import NGRAMS
from edgekit.contents import read_contents
from edgekit.errors import ModelError
from edgekit.preprocess import Array, NgramPreprocessor, TextPreprocessor, read_ngrams
from edgekit.task import Problem, Task, check_task

_LONGEST = 512
_PROBE_LENGTH = 16


@dataclass(frozen=True)
class FileModel:
    """What ``Model`` is for a checkpoint. ``example``: one array for each input of a plain file."""

    artifact: Artifact
    task: Task
    problem: Problem | None
    preprocessor: TextPreprocessor | NgramPreprocessor | None
    labels: tuple[str, ...]
    example: Mapping[str, Array] | None
    lineage: tuple[str, ...] = ()
    architecture: None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.artifact.inputs)


def read_file_model(path: Path, task: str | None) -> FileModel:
    """Describe an ONNX, TFLite or TorchScript file. Raises ModelError."""
    contents = read_contents(path)
    if not contents.outputs or not contents.inputs:
        raise ModelError(f"{path} names no inputs or outputs; export it again with names")
    beside = [path.parent / name for name in ("tokenizer.json", NGRAMS)]
    vocabulary = next((each for each in beside if each.is_file()), None)
    named = {tensor.name for tensor in contents.inputs}
    reads_text = {"input_ids", "attention_mask"} <= named and vocabulary is not None
    found: Task = "text-classification" if reads_text else "module"
    decided = found if task is None else check_task(task)
    problem: Problem | None = None
    labels: tuple[str, ...] = ()
    if decided in ("text-classification", "image-classification"):
        classes = contents.outputs[0].shape[-1]
        problem = "regression" if classes == 1 else "single-label"
        labels = _labels(path.parent) if problem == "single-label" else ()
    lengths = _fixed_lengths(contents.inputs) if reads_text else ()
    artifact = Artifact(path, contents.format, "fp32", contents.inputs, contents.outputs, lengths)
    return FileModel(
        artifact=artifact,
        task=decided,
        problem=problem,
        preprocessor=_preprocessor(vocabulary, artifact) if vocabulary and reads_text else None,
        labels=labels,
        example=None if reads_text else {t.name: _example(t) for t in contents.inputs},
        lineage=(f"read from {path.name}: the torch stages were skipped",),
    )


def _preprocessor(vocabulary: Path, artifact: Artifact) -> TextPreprocessor | NgramPreprocessor:
    longest = max(artifact.lengths, default=_longest(vocabulary.parent))
    inputs = tuple(tensor.name for tensor in artifact.inputs)
    if vocabulary.name == NGRAMS:
        return NgramPreprocessor(read_ngrams(vocabulary), longest, inputs)
    return _tokens(vocabulary, longest, inputs)


def _tokens(tokenizer: Path, longest: int, inputs: tuple[str, ...]) -> TextPreprocessor:
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{tokenizer} is damaged ({error}); copy it again") from None
    loaded.no_padding()
    loaded.no_truncation()
    return TextPreprocessor(
        tokenizer_json=loaded.to_str(),
        max_length=longest,
        pad_id=loaded.token_to_id("[PAD]") or 0,
        inputs=inputs,
    )


def _longest(folder: Path) -> int:
    """The most tokens that the files beside the model speak of."""
    limits = [_LONGEST]
    for name, key in (
        ("config.json", "max_position_embeddings"),
        ("tokenizer_config.json", "model_max_length"),
        ("preprocessor.json", "max_length"),  # as our own bundles have it
    ):
        try:
            fields = json.loads((folder / name).read_text(encoding="utf-8"))
            # RoBERTa's kind counts positions from behind the padding's.
            spare = 2 if "roberta" in str(fields.get("model_type")) else 0
            limits.append(int(fields[key]) - spare)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return min(limits)


def _labels(folder: Path) -> tuple[str, ...]:
    """From our own bundle's ``labels.json`` or a checkpoint's ``config.json``; none without."""
    try:
        if (folder / "labels.json").is_file():
            return tuple(map(str, json.loads((folder / "labels.json").read_text("utf-8"))))
        names = json.loads((folder / "config.json").read_text("utf-8"))["id2label"]
        return tuple(str(names[str(index)]) for index in range(len(names)))
    except (OSError, ValueError, KeyError, TypeError):
        return ()


def _fixed_lengths(inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The sequence length that is written into the file, if one is."""
    sizes = {tensor.shape[1] for tensor in inputs if len(tensor.shape) == 2}
    return tuple(size for size in sizes if isinstance(size, int) and size > 1)


def _example(tensor: Tensor) -> Array:
    """Waves for floats, a ramp of small numbers for integers; dynamic sizes are small."""
    sizes: list[Any] = [
        size if isinstance(size, int) and size > 0 else (1 if place == 0 else _PROBE_LENGTH)
        for place, size in enumerate(tensor.shape)
    ]
    count = int(np.prod(sizes))
    values: Array = np.sin(np.arange(count) * 0.37)
    if tensor.dtype.startswith(("int", "uint")):
        values = np.arange(count) % (2 if "mask" in tensor.name else 100)
    return values.reshape(sizes).astype(tensor.dtype)
