"""Tiny models with a mask in place of what was cut, run by transformers alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from edgekit.data import Rows
from edgekit.model import Model, identify, load_model
from tests.tiny import tiny_checkpoint, tiny_texts

ROWS = Rows(texts=tuple(tiny_texts(40)), labels=tuple("abc"[n % 3] for n in range(40)))
PICTURES = Rows(
    images=np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8),
    labels=tuple("abc"[n % 3] for n in range(40)),
)
# Where the module that reads the heads' (neurons') outputs is in each family, by layer.
READERS = {
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.output.dense"),
    "roberta": (
        "roberta.encoder.layer.{}.attention.output.dense",
        "roberta.encoder.layer.{}.output.dense",
    ),
    "electra": (
        "electra.encoder.layer.{}.attention.output.dense",
        "electra.encoder.layer.{}.output.dense",
    ),
    "distilbert": (
        "distilbert.transformer.layer.{}.attention.out_lin",
        "distilbert.transformer.layer.{}.ffn.lin2",
    ),
    "albert": (
        "albert.encoder.albert_layer_groups.0.albert_layers.{}.attention.dense",
        "albert.encoder.albert_layer_groups.0.albert_layers.{}.ffn_output",
    ),
    "vit": ("vit.layers.{}.attention.o_proj", "vit.layers.{}.mlp.fc2"),
}


def model_of(folder: Path, family: str = "bert", **config: Any) -> Model:
    task = "image-classification" if family == "vit" else "text-classification"
    return load_model(identify(str(tiny_checkpoint(folder, family, task, **config))))


def rows_of(model: Model) -> Rows:
    return PICTURES if model.task == "image-classification" else ROWS


def reader(model: Model, family: str, part: str, layer: int) -> Any:
    return model.module.get_submodule(READERS[family][part == "neurons"].format(layer))


@contextmanager
def masked(readers: Sequence[Any], masks: Sequence[torch.Tensor | None]) -> Iterator[None]:
    """Inside, each reader's input is multiplied by its mask, [units]; without one the reader gives
    zeros, its bias too.
    """

    def hook(mask: torch.Tensor) -> Any:
        return lambda _, inputs: (
            inputs[0] * mask.repeat_interleave(inputs[0].shape[-1] // len(mask)),
        )

    handles = [
        each.register_forward_hook(lambda _, __, output: output * 0)
        if mask is None
        else each.register_forward_pre_hook(hook(mask))
        for each, mask in zip(readers, masks, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def hard(model: Model, attentions: Sequence[str], top: int) -> Iterator[None]:
    """Inside, these modules count so many probabilities in transformers' forward, by sorting."""
    wanted = [model.module.get_submodule(name) for name in attentions]

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any) -> Any:
        scores = query @ key.mT / query.shape[-1] ** 0.5 + (0 if mask is None else mask)
        weights = torch.softmax(scores, -1)
        if any(module is each for each in wanted):
            order = weights.argsort(-1, descending=True).argsort(-1)
            weights = weights.where(order < top, 0)
        return (weights @ value).transpose(1, 2), weights

    AttentionInterface.register("of_a_test", attend)
    AttentionMaskInterface.register("of_a_test", eager_mask)
    before = model.module.config._attn_implementation
    model.module.config._attn_implementation = "of_a_test"
    try:
        yield
    finally:
        model.module.config._attn_implementation = before


def mask(units: int, kept: Sequence[int]) -> torch.Tensor:
    found = torch.zeros(units)
    found[list(kept)] = 1
    return found
