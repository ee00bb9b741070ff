"""A model: a torch module with its preprocessor, its task and what was done to it."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import checkpoint, structure
from edgekit.architectures import Architecture, architecture
from edgekit.artifact import Scheme
from edgekit.errors import ModelError
from edgekit.parallel import parallel
from edgekit.preprocess import (
    Array,
    Encoded,
    ImagePreprocessor,
    NgramPreprocessor,
    TextPreprocessor,
)
from edgekit.source import Source, call_factory, identify, module_digest, read_json
from edgekit.task import Problem, Task, check_task

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "Model",
    "Source",
    "export_forward",
    "identify",
    "load_model",
    "reference_outputs",
    "save_model",
]

_BATCH = 64


@dataclass(frozen=True)
class Quantized:
    """The integer grids that a model was calibrated for or trained on.

    ranges: the smallest and largest number of each point (``steps/quantize/points``) by its name;
    none on the meta device. float_layers: the layers whose arithmetic stays float, as
    ``quantize/graph`` names them. block: how many inputs of a matrix share a scale; all, when none.
    """

    scheme: Scheme
    ranges: Mapping[str, tuple[float, float]]
    float_layers: tuple[str, ...] = ()
    block: int | None = None


@dataclass(frozen=True)
class Model:
    """Immutable: a step returns a new one.

    module: in fp32 and eval mode; on torch's meta device when only shapes are wanted.
    problem: ``None`` for tasks that do not classify whole rows. labels: by output index; empty
    for regression, sentence-embedding and plain modules. lineage: what was done to it, a
    sentence each. example: of a plain module, one example of each input by name. quantized: the
    grids that it is on, for a static scheme. sparsity: the share of zeros in each matrix of its
    encoder, as ``sparsify`` left it.
    """

    module: "nn.Module"
    task: Task
    problem: Problem | None
    architecture: Architecture | None
    preprocessor: TextPreprocessor | NgramPreprocessor | ImagePreprocessor | None
    labels: tuple[str, ...]
    lineage: tuple[str, ...] = ()
    example: "Mapping[str, torch.Tensor] | None" = None
    quantized: Quantized | None = None
    sparsity: float = 0.0

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs in the order in which the exported file takes them."""
        if self.preprocessor is not None:
            return self.preprocessor.inputs
        return tuple(self.example or ())

    def with_module(self, module: "nn.Module", note: str) -> "Model":
        """The same with another module, and a sentence that says what was done."""
        return replace(self, module=module, lineage=(*self.lineage, note))


def load_model(
    source: Source, *, task: str | None = None, pair: bool = False, meta: bool = False
) -> Model:
    """Load a checkpoint, or call a plain module's factory; in fp32 whatever it was saved in.

    task: instead of the one that the checkpoint's class is for. pair: its rows hold two texts.
    meta: shapes only, on torch's meta device; no weights are read. Raises ModelError.
    """
    wanted = None if task is None else check_task(task)
    if source.kind == "module":
        return _load_plain(source, wanted, meta)
    if source.kind == "file" or source.path is None:
        raise ModelError(f"{source.reference} is no checkpoint: there is no torch model in it")
    folder = source.path
    fields = read_json(folder / "config.json")
    described = architecture(fields["model_type"])
    record = checkpoint.read_record(folder)
    decided = wanted or record.get("task") or checkpoint.detect_task(fields, folder)
    checkpoint.check_fit(decided, described, fields, folder)
    if decided == "sentence-embedding":
        checkpoint.check_sentence_transformer(folder)
    module = checkpoint.read_module(folder, decided, meta)
    model = Model(
        module=module,
        task=decided,
        problem=checkpoint.problem_of(module.config, decided),
        architecture=described,
        preprocessor=None,
        labels=checkpoint.labels_of(module.config, decided),
        lineage=tuple(record.get("lineage", ())),
        quantized=_read_quantized(record),
        sparsity=record.get("sparsity", 0.0),
    )
    if not described.reads_text:
        return replace(model, preprocessor=checkpoint.read_image_preprocessor(folder, fields))
    if described.reads_ngrams:
        ngrams = checkpoint.read_ngram_preprocessor(folder, module, described, record)
        return replace(model, preprocessor=ngrams)
    made = checkpoint.read_text_preprocessor(folder, module, described, decided, pair)
    if "inputs" in record:
        made = replace(made, inputs=tuple(record["inputs"]))
    return replace(model, preprocessor=made)


def save_model(model: Model, folder: Path) -> None:
    """Write a checkpoint that ``load_model`` and transformers read: safetensors, no pickle.

    A plain module has none: ModelError.
    """
    if model.architecture is None:
        raise ModelError("a plain module has no checkpoint format; keep its factory")
    checkpoint.write_module(folder, model.module)
    record: dict[str, Any] = {"task": model.task, "inputs": model.inputs, "lineage": model.lineage}
    if model.quantized is not None:
        record["quantized"] = asdict(model.quantized)
    if model.sparsity:
        record["sparsity"] = model.sparsity
    if isinstance(model.preprocessor, NgramPreprocessor):
        record["max_length"] = model.preprocessor.max_length
    checkpoint.write_preprocessor(folder, model.preprocessor)
    checkpoint.write_record(folder, record)


def reference_outputs(model: Model, encoded: Encoded) -> Array:
    """What the original model gives for each row alone: its own forward, without padding.

    Returns float32: logits [N, C], unit vectors [N, D] for sentence-embedding, or for
    token-classification logits [N, L, C] with zeros where a row has no token. Rows of one
    length run together; 3,080 short texts take MiniLM 7 s on 2 cores.
    """
    if len(encoded) == 0:
        return np.zeros((0, 0), np.float32)
    if encoded.lengths is None:
        batches = list(_batches(np.arange(len(encoded)), _batch_size(model)))
    else:
        order = np.argsort(encoded.lengths, kind="stable")
        edges = np.flatnonzero(np.diff(encoded.lengths[order])) + 1
        batches = [b for same in np.split(order, edges) for b in _batches(same, _BATCH)]
    answers = list(parallel(lambda rows: _answer(model, encoded.rows(rows)), batches))
    shape = answers[0].shape[1:]
    if model.task == "token-classification":
        shape = (next(iter(encoded.arrays.values())).shape[1], shape[-1])
    outputs = np.zeros((len(encoded), *shape), np.float32)
    for rows, answer in zip(batches, answers, strict=True):
        if model.task == "token-classification":
            outputs[rows, : answer.shape[1]] = answer
        else:
            outputs[rows] = answer
    return outputs


def _answer(model: Model, part: Encoded) -> Array:
    """Outputs of rows that are all of one length."""
    import torch

    length = None if part.lengths is None else int(part.lengths[0])
    inputs = {
        name: torch.from_numpy(array if length is None else array[:, :length])
        for name, array in part.arrays.items()
    }
    with torch.inference_mode():
        answer: Array = _original_forward(model, inputs).float().numpy()
    return answer


def export_forward(
    model: Model, *, decomposed_norm: bool = False, learning: bool = False
) -> "nn.Module":
    """The one clean forward for all exporters: the model's inputs in order, one tensor out.

    decomposed_norm: layer norms as elementary operations (for LiteRT). The weights are shared
    with the model, but for factored matrices: those are as files hold them, or with ``learning``
    as the model has them. A plain module is its own.
    """
    if model.architecture is None:
        return model.module
    made = model if learning else as_exported(model)
    return model.architecture.forward(made, decomposed_norm).eval()


def as_exported(model: Model) -> Model:
    """The model with its factored matrices as files hold them (see ``factored``)."""
    from edgekit.factored import is_factored, merge

    if not is_factored(model.module):
        return model
    return replace(model, module=merge(structure.sharing_copy(model.module)))


def _original_forward(model: Model, inputs: "dict[str, torch.Tensor]") -> "torch.Tensor":
    import torch

    if model.architecture is None:
        answer = model.module(*(inputs[name] for name in model.inputs))
        if not isinstance(answer, torch.Tensor):
            raise ModelError(f"the module returns a {type(answer).__name__}; return one tensor")
        return answer
    if "input_ids" in inputs:
        inputs = {name: tensor.long() for name, tensor in inputs.items()}
    outputs = model.module(**inputs)
    if model.task != "sentence-embedding":
        logits: torch.Tensor = outputs.logits
        return logits
    mean = outputs.last_hidden_state.mean(1)
    projection = structure.projection(model.module)
    return torch.nn.functional.normalize(projection(mean) if projection else mean, dim=-1)


def _read_quantized(record: dict[str, Any]) -> Quantized | None:
    found = record.get("quantized")
    if found is None:
        return None
    return Quantized(
        found["scheme"],
        {k: (low, high) for k, (low, high) in found["ranges"].items()},
        tuple(found.get("float_layers", ())),
        found.get("block"),
    )


def _batches(rows: Array, size: int) -> Iterator[Array]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _batch_size(model: Model) -> int:
    """A plain module may be written for the batch of its example."""
    return len(next(iter(model.example.values()))) if model.example else _BATCH


def _load_plain(source: Source, task: Task | None, meta: bool) -> Model:
    if task not in (None, "module"):
        raise ModelError(f"{source.reference} is a plain module: its task is 'module', not {task}")
    module, example = call_factory(source.reference)
    if module_digest(module, example) != source.digest:
        raise ModelError(
            f"{source.reference} returns other weights or inputs each time it is called; "
            "load them from a file, or seed it"
        )
    checkpoint.check_finite(module)
    module = module.float()
    if meta:
        module = module.to("meta")
    return Model(module, "module", None, None, None, (), example=example)
