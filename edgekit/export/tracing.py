"""What the exporters that trace a model share: inputs to trace it with, and silence."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit.model import Model
from edgekit.preprocess import ImagePreprocessor, TextReader

if TYPE_CHECKING:
    from torch import Tensor, nn

# Tracing treats a dimension of one as fixed, so that no example has one.
_BATCH, _LENGTH = 2, 8
_NOISY = ("torch.onnx", "torch.export", "torch._dynamo", "torch.utils._pytree", "onnxscript")


@dataclass(frozen=True)
class Example:
    """One tensor for each input, in order, and the names of those dimensions that may vary."""

    tensors: "tuple[Tensor, ...]"
    dimensions: tuple[str, ...]


def example_inputs(model: Model, forward: "nn.Module") -> Example:
    """What ``forward`` (see ``export_forward``) can be traced with.

    Texts: int64 ids [2, 8], batch and length may vary. Images: float32 [2, C, H, W], the batch
    may. A plain module: its own example; the batch may vary where twice the rows give twice the
    answers.
    """
    import torch

    preprocessor = model.preprocessor
    if isinstance(preprocessor, TextReader):
        ids = torch.zeros(_BATCH, _LENGTH, dtype=torch.int64)
        named = {name: ids.clone() for name in preprocessor.inputs}
        named["attention_mask"] += 1
        return Example(tuple(named.values()), ("batch", "length"))
    if isinstance(preprocessor, ImagePreprocessor):
        shape = (_BATCH, preprocessor.channels, preprocessor.height, preprocessor.width)
        return Example((torch.zeros(shape),), ("batch",))
    assert model.example is not None
    single = tuple(model.example.values())
    double = tuple(torch.cat([tensor, tensor]) for tensor in single if tensor.ndim)
    try:
        with torch.inference_mode():
            rows, twice = forward(*single), forward(*double)
    except (RuntimeError, ValueError, TypeError, IndexError):
        return Example(single, ())
    if rows.ndim and len(twice) == 2 * len(rows) and torch.allclose(twice[: len(rows)], rows):
        return Example(double, ("batch",))
    return Example(single, ())


def output_name(model: Model) -> str:
    """``embedding`` for sentence-embedding, else ``logits``."""
    return "embedding" if model.task == "sentence-embedding" else "logits"


@contextlib.contextmanager
def quiet_tracing() -> Iterator[None]:
    """No warnings and no log lines from torch's exporters: none of them is for our users."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def root_cause(error: BaseException) -> str:
    """What went wrong first, in one line: torch wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {text.splitlines()[0][:160]}"
