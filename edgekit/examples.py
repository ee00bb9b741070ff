"""Rows to learn from, as batches: inputs, gold labels and the teacher's outputs.

Rules:

1. Which rows are in which batch is a function of the seed and the epoch alone, never of a
   global generator: a training that was killed goes on with the very batches that come next.
2. Texts of similar length share a batch, which is cut to its longest: the shuffled rows are
   sorted by length in groups of at most 50 batches, so that a batch is still a random choice.
3. Token ids are int64; everything else keeps its type, but targets in float64 become float32.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import DataError
from edgekit.preprocess import Array, Encoded

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgekit.model import Model

# What cross entropy leaves out: tokens that have no label.
IGNORED = -100
# Batches that are sorted by length together, as in transformers' LengthGroupedSampler.
_GROUP = 50


@dataclass(frozen=True)
class Examples:
    """Encoded rows with what is known of each; N rows of at most L tokens.

    labels: gold labels, for instance int64 [N], or int64 [N, L] for tokens (``token_labels``).
    teacher: the teacher's outputs, float32 [N, C], or [N, L, C] for tokens; may be a memory map.
    per_token: labels and teacher have an axis of tokens, which is cut as the inputs are.
    """

    encoded: Encoded
    labels: Array | None = None
    teacher: Array | None = None
    per_token: bool = False

    def __post_init__(self) -> None:
        for name, target in (("labels", self.labels), ("teacher", self.teacher)):
            if target is not None and len(target) != len(self.encoded):
                raise DataError(
                    f"there are {len(self.encoded)} rows and {name} for {len(target)}; give one "
                    "for each row"
                )

    def __len__(self) -> int:
        return len(self.encoded)


@dataclass(frozen=True)
class Batch:
    """B rows, on the device where the module is.

    inputs: by name in the model's order; texts int64 [B, longest of the batch]. rows: int64 [B],
    the rows' places in the examples. labels and teacher: as in ``Examples``, ``None`` if it has
    none. place: of the batch in the training, from 0.
    """

    inputs: "dict[str, torch.Tensor]"
    rows: "torch.Tensor"
    labels: "torch.Tensor | None" = None
    teacher: "torch.Tensor | None" = None
    place: int = 0

    def run(self, module: "nn.Module") -> "torch.Tensor":
        """The module's answer to the inputs, given in order."""
        answer: torch.Tensor = module(*self.inputs.values())
        return answer

    @property
    def mask(self) -> "torch.Tensor | None":
        """int64 [B, length], 1 where a row has a token; ``None`` for what is no text."""
        return self.inputs.get("attention_mask")


def batches(lengths: Array | None, rows: int, size: int, seed: int, epoch: int) -> list[Array]:
    """The rows of each batch of an epoch: every row once, at most ``size`` in a batch (rules 1, 2).

    lengths: int [rows], tokens of each row; ``None`` when all are alike.
    """
    chance = np.random.default_rng([seed, epoch])
    order = chance.permutation(rows)
    if lengths is None:
        return [order[start : start + size] for start in range(0, rows, size)]
    group = size * min(_GROUP, max(1, rows // (4 * size)))
    order = np.concatenate(
        [
            each[np.argsort(lengths[each], kind="stable")]
            for each in (order[start : start + group] for start in range(0, rows, group))
        ]
    )
    found = [order[start : start + size] for start in range(0, rows, size)]
    return [found[number] for number in chance.permutation(len(found))]


def collate(examples: Examples, rows: Array) -> "dict[str, dict[str, torch.Tensor] | torch.Tensor]":
    """These rows as the fields of a ``Batch``."""
    import torch

    def tensor(array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array))

    encoded = examples.encoded
    text = encoded.lengths is not None
    longest = None if encoded.lengths is None else int(encoded.lengths[rows].max())
    inputs = {}
    for name, array in encoded.arrays.items():
        chosen = tensor(array[rows, :longest] if text else array[rows])
        inputs[name] = chosen.long() if text else chosen
    fields: dict[str, dict[str, torch.Tensor] | torch.Tensor] = {
        "inputs": inputs,
        "rows": tensor(rows.astype(np.int64)),
    }
    for name, target in (("labels", examples.labels), ("teacher", examples.teacher)):
        if target is not None:
            chosen = tensor(target[rows, :longest] if examples.per_token else target[rows])
            fields[name] = chosen.float() if chosen.dtype == torch.float64 else chosen
    return fields


def token_labels(encoded: Encoded, labels: Sequence[Array]) -> Array:
    """int64 [N, L] for the labels of each row's words: at each word's first token its label,
    -100 elsewhere.

    labels: for each row int [its words], as ``data.label_ids`` gives them.
    """
    assert encoded.word_starts is not None and encoded.lengths is not None
    length = next(iter(encoded.arrays.values())).shape[1]
    found = np.full((len(encoded), length), IGNORED, np.int64)
    for row, starts, known in zip(found, encoded.word_starts, labels, strict=True):
        row[starts[starts >= 0]] = known[starts >= 0]
    return found


def teacher_outputs(
    model: "Model",
    encoded: Encoded,
    path: Path,
    answer: "Callable[[Model, Encoded], Array] | None" = None,
) -> Array:
    """The teacher's outputs on the rows as a read-only memory map of ``path``, float32 [N, …].

    They are computed once, by ``answer`` or ``model.reference_outputs``: a file that is there is
    taken as it is, so it belongs in a folder of this teacher and these rows (``Context.folder``).
    It appears by one rename when it is whole.
    """
    found = _read_outputs(path, len(encoded))
    if found is not None:
        return found
    if answer is None:
        from edgekit.model import reference_outputs

        answer = reference_outputs
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        np.save(stream, np.asarray(answer(model, encoded), np.float32), allow_pickle=False)
    partial.replace(path)
    written: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return written


def _read_outputs(path: Path, rows: int) -> Array | None:
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.dtype == np.float32 and found.ndim and len(found) == rows else None


def order_of(examples: Examples, size: int, seed: int) -> "Callable[[int], Array]":
    """The rows of the batch at a place of the training, epochs one after the other."""
    count = -(-len(examples) // size)

    @functools.lru_cache(maxsize=2)
    def epoch(number: int) -> list[Array]:
        return batches(examples.encoded.lengths, len(examples), size, seed, number)

    def rows(place: int) -> Array:
        number, within = divmod(place, count)
        return epoch(number)[within]

    return rows
