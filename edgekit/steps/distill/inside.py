"""What is inside an encoder while it runs: states, queries, keys and values of its layers.

Rules:

1. They are what the modules return that a family's description names (``architectures``), caught
   as the clean forward calls them; no family's own attribute is asked for. Families whose layers
   are not BERT's (MobileBERT, XLNet, ViT) are refused by name.
2. A view is a kind and a layer from 1: ``hidden`` is what the layer returns, ``query``, ``key``
   and ``value`` its projections, ``("embeddings", 0)`` what the first layer takes. Each is
   [B, L, D].
3. A teacher runs beside the student on each batch, without gradients. Where its views on all
   rows take at most ``_FITS`` bytes in float16, they are computed once, and kept in the step's
   folder as one file a view without padding, memory-mapped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import View

if TYPE_CHECKING:
    from edgekit.architectures import Layer
    from edgekit.examples import Batch
    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded

Views = dict[View, torch.Tensor]

_FITS = 2_000_000_000
_BATCH = 64
# The largest number in float16.
_LARGEST = 65504.0


def need_inside(step: str, who: str, model: Any) -> None:
    """Raise RecipeError, naming the family, where rule 1 cannot look."""
    from edgekit.architectures import blocks

    described = getattr(model, "architecture", None)
    if described is None or described.layers is None or not described.reads_text:
        raise RecipeError(
            f"{step}: {who} is no text encoder whose layers are known here; compare answers only, "
            "with losses=kl"
        )
    if not isinstance(described.forward(model, False).encoder, blocks.Encoder):
        raise RecipeError(
            f"{step}: {who} is a {model.module.config.model_type}, whose layers are not those of "
            "BERT; compare answers only, with losses=kl"
        )


@contextlib.contextmanager
def watched(model: Model, wanted: set[View]) -> Iterator[Views]:
    """What ``wanted`` names, of the forward that ran last; filled anew each time (rule 1)."""
    found: Views = {}
    if not wanted:
        yield found
        return
    assert model.architecture is not None and model.architecture.layers is not None
    assert model.architecture.embeddings is not None
    encoder: Any = model.module.base_model
    places: dict[int, tuple[nn.Module, list[View]]] = {}

    def watch(module: Any, view: View) -> None:
        places.setdefault(id(module), (module, []))[1].append(view)

    entry = model.architecture.embeddings(encoder)
    watch(entry.projection if entry.projection is not None else entry.norm, ("embeddings", 0))
    for number, layer in enumerate(model.architecture.layers(encoder), 1):
        for kind, module in (
            ("query", layer.query),
            ("key", layer.key),
            ("value", layer.value),
            ("hidden", layer.output_norm),
        ):
            watch(module, (kind, number))
    handles = [
        module.register_forward_hook(_keep(views, wanted, found))
        for module, views in places.values()
        if not wanted.isdisjoint(views)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _keep(views: list[View], wanted: set[View], found: Views) -> Callable[..., None]:
    """Keeps what a module returns. One that runs in several layers has a view for each call."""
    calls = 0

    def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal calls
        view = views[calls % len(views)]
        calls += 1
        if view in wanted:
            found[view] = output

    return keep


class Mentor:
    """A teacher whose inside is looked at; its rows are those of the student's examples.

    module: what runs, called with the teacher's inputs in order: ``whole_forward``, or what
    answers words. encoded: the rows as the teacher reads them. folder: for what is kept.
    """

    def __init__(
        self, teacher: Model, module: Any, encoded: Encoded, wanted: set[View], folder: Path
    ) -> None:
        self.teacher = teacher
        self.module = module
        self.encoded = encoded
        self.wanted = wanted
        self.folder = folder
        self._kept: dict[View, Array] | None = None
        assert encoded.lengths is not None
        self._lengths = encoded.lengths
        self._starts = np.concatenate([[0], np.cumsum(encoded.lengths, dtype=np.int64)])

    def fits(self) -> bool:
        """Whether rule 3 keeps the views of all rows."""
        return 2 * int(self._starts[-1]) * sum(map(self._width, self.wanted)) <= _FITS

    def keep(self, on_progress: Callable[[float, str], None]) -> None:
        """Run the teacher on all rows once, and keep its views in files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = {view: self.folder / f"{view[0]}-{view[1]}.npy" for view in self.wanted}
        if not all(path.is_file() for path in paths.values()):
            self._write(paths, on_progress)
        self._kept = {
            view: np.load(path, mmap_mode="r", allow_pickle=False) for view, path in paths.items()
        }

    def look(self, batch: Batch) -> Views:
        """The teacher's views of the batch's rows, [B, L, D] as long as the student's inputs."""
        device = batch.rows.device
        rows = batch.rows.cpu().numpy()
        length = next(iter(batch.inputs.values())).shape[1]
        if self._kept is None:
            return self._run(rows, length, device)
        found = {}
        for view, flat in self._kept.items():
            states = np.zeros((len(rows), length, flat.shape[1]), np.float16)
            for place, row in enumerate(rows):
                states[place, : self._lengths[row]] = flat[
                    self._starts[row] : self._starts[row + 1]
                ]
            found[view] = torch.from_numpy(states).to(device).float()
        return found

    def answer(self, batch: Batch) -> tuple[torch.Tensor, Views]:
        """What the teacher answers to the student's own inputs, and its views."""
        ids = batch.inputs["input_ids"]
        nothing = torch.zeros_like(ids)
        return self._ask([batch.inputs.get(name, nothing) for name in self.teacher.inputs])

    def _run(self, rows: Array, length: int, device: Any) -> Views:
        inputs = [
            torch.from_numpy(array[rows, :length]).long().to(device)
            for array in self.encoded.arrays.values()
        ]
        return self._ask(inputs)[1]

    def _ask(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, Views]:
        self.module.to(inputs[0].device)
        with torch.no_grad(), watched(self.teacher, self.wanted) as found:
            answer = self.module(*inputs)
        return answer, dict(found)

    def _write(self, paths: dict[View, Path], on_progress: Callable[[float, str], None]) -> None:
        total = int(self._starts[-1])
        partial = {view: path.with_suffix(".partial") for view, path in paths.items()}
        flat = {
            view: np.lib.format.open_memmap(
                partial[view], "w+", np.dtype(np.float16), (total, self._width(view))
            )
            for view in paths
        }
        order = np.argsort(self._lengths, kind="stable")
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            on_progress(start / len(order), "looking into the teacher")
            for view, states in self._run(rows, int(self._lengths[rows[-1]]), "cpu").items():
                numbers = states.clamp(-_LARGEST, _LARGEST).numpy().astype(np.float16)
                for place, row in enumerate(rows):
                    flat[view][self._starts[row] : self._starts[row + 1]] = numbers[
                        place, : self._lengths[row]
                    ]
        for view, path in paths.items():
            flat[view].flush()
            partial[view].replace(path)

    def _width(self, view: View) -> int:
        return width_of(self.teacher, view)


def whole_forward(model: Model) -> Any:
    """The clean forward with every state of the last layer, not only the summary token's.

    Factored matrices stay as the model has them, so that its own modules are what is called.
    """
    from edgekit.model import export_forward

    module: Any = export_forward(model, learning=True)
    module.encoder.first_only = False
    return module


def distances(model: Model) -> torch.Tensor | None:
    """What attention scores have added by distance, [2 M - 1, H] (MPNet); mostly nothing."""
    table: torch.Tensor | None = whole_forward(model).encoder.distances
    return table


def depth_of(model: Model) -> int:
    """How many layers run."""
    assert model.architecture is not None and model.architecture.layers is not None
    encoder: Any = model.module.base_model
    return len(model.architecture.layers(encoder))


def heads_of(model: Model, layer: int) -> int:
    """The heads of a layer, from 1; 0 where its attention is gone."""
    return _numbers(model, layer) // _layer(model, layer).head_width


def width_of(model: Model, view: View) -> int:
    """The size of a view's states."""
    kind, number = view
    if kind in ("query", "key", "value"):
        return _numbers(model, number)
    norm: Any = _layer(model, max(1, number)).output_norm
    return int(norm.weight.shape[0])


def _layer(model: Model, number: int) -> Layer:
    assert model.architecture is not None and model.architecture.layers is not None
    encoder: Any = model.module.base_model
    return model.architecture.layers(encoder)[number - 1]


def _numbers(model: Model, layer: int) -> int:
    """How many numbers a layer's queries have, be they a Linear's or a product of factors."""
    from edgekit.factored import Factored
    from edgekit.structure import is_absent

    query: Any = _layer(model, layer).query
    if is_absent(query):
        return 0
    return int((query.product() if isinstance(query, Factored) else query.weight).shape[0])
