"""A model: a torch module with its preprocessor, its task and what was done to it."""

import contextlib
import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgekit import structure
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
    image_preprocessor,
    read_ngrams,
)
from edgekit.source import Source, call_factory, identify, module_digest, read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "Model",
    "Problem",
    "Source",
    "Task",
    "check_task",
    "export_forward",
    "identify",
    "load_model",
    "reference_outputs",
    "save_model",
]

Task = Literal[
    "text-classification",
    "token-classification",
    "sentence-embedding",
    "image-classification",
    "module",
]
Problem = Literal["single-label", "multi-label", "regression"]

# What the class that a checkpoint was saved from is for, by the end of its name.
_TASKS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForMaskedLM": "sentence-embedding",
    "ForPreTraining": "sentence-embedding",
    "LMHeadModel": "sentence-embedding",
    "Model": "sentence-embedding",
}
_CLASSES: dict[Task, str] = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "sentence-embedding": "AutoModel",
}
_PROBLEMS: dict[str, Problem] = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
# Where neither a position table nor the tokenizer sets a limit (XLNet).
_LONGEST = 512
_RECORD = "edgekit.json"
NGRAMS = "ngrams.txt"
_BATCH = 64


@dataclass(frozen=True)
class Quantized:
    """The integer grids that a model was calibrated for or trained on.

    ranges: the smallest and largest number of each point (``steps/quantize/points``) by its name;
    none on the meta device. float_layers: the layers whose arithmetic stays float, as
    ``points.layer_of`` names them. block: how many inputs of a matrix share a scale; all, when
    none.
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


def check_task(task: str) -> Task:
    """The task of that name. Raises ModelError with the nearest name."""
    known = get_args(Task)
    if task in known:
        found: Task = task  # type: ignore[assignment]
        return found
    near = difflib.get_close_matches(task, known, n=1)
    raise ModelError(
        f"unknown task '{task}'"
        + (f", did you mean '{near[0]}'?" if near else "")
        + f" (known: {', '.join(known)})"
    )


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
    record = read_json(folder / _RECORD) if (folder / _RECORD).is_file() else {}
    decided = wanted or record.get("task") or _detect_task(fields, folder, described)
    _check_fit(decided, described, fields, folder)
    if decided == "sentence-embedding":
        _check_sentence_transformer(folder)
    module = _load_module(folder, decided, meta)
    model = Model(
        module=module,
        task=decided,
        problem=_problem(module.config, decided),
        architecture=described,
        preprocessor=None,
        labels=_labels(module.config, decided),
        lineage=tuple(record.get("lineage", ())),
        quantized=_read_quantized(record),
        sparsity=record.get("sparsity", 0.0),
    )
    if not described.reads_text:
        return replace(model, preprocessor=_image_preprocessor(folder, fields))
    if described.reads_ngrams:
        return replace(model, preprocessor=_ngram_preprocessor(folder, model, record))
    made = _text_preprocessor(folder, model, pair)
    if "inputs" in record:
        made = replace(made, inputs=tuple(record["inputs"]))
    return replace(model, preprocessor=made)


def save_model(model: Model, folder: Path) -> None:
    """Write a checkpoint that ``load_model`` and transformers read: safetensors, no pickle.

    A plain module has none: ModelError.
    """
    if model.architecture is None:
        raise ModelError("a plain module has no checkpoint format; keep its factory")
    module: Any = model.module
    with quiet():
        differs = structure.record(module)
        if differs is None:
            module.save_pretrained(folder)
        else:
            structure.save(module, folder, differs)
    record: dict[str, Any] = {"task": model.task, "inputs": model.inputs, "lineage": model.lineage}
    if model.quantized is not None:
        record["quantized"] = asdict(model.quantized)
    if model.sparsity:
        record["sparsity"] = model.sparsity
    if isinstance(model.preprocessor, TextPreprocessor):
        (folder / "tokenizer.json").write_text(model.preprocessor.tokenizer_json, "utf-8")
        settings = {
            "model_max_length": model.preprocessor.max_length,
            "model_input_names": model.preprocessor.inputs,
            "pad_token": _token(model.preprocessor, model.preprocessor.pad_id),
        }
        _write_json(folder / "tokenizer_config.json", settings)
    elif isinstance(model.preprocessor, NgramPreprocessor):
        (folder / NGRAMS).write_text("\n".join(model.preprocessor.ngrams) + "\n", "utf-8")
        record["max_length"] = model.preprocessor.max_length
    elif isinstance(model.preprocessor, ImagePreprocessor):
        _write_json(folder / "preprocessor_config.json", _image_settings(model.preprocessor))
    _write_json(folder / _RECORD, record)


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
    check_finite(module)
    module = module.float()
    if meta:
        module = module.to("meta")
    return Model(module, "module", None, None, None, (), example=example)


def _detect_task(fields: dict[str, Any], folder: Path, described: Architecture) -> Task:
    names = fields.get("architectures") or [""]
    for ending, task in _TASKS.items():
        if names[0].endswith(ending):
            return task
    what = f"was saved from {names[0]}" if names[0] else "does not say what it is for"
    known = ", ".join(t for t in get_args(Task) if t != "module")
    raise ModelError(
        f"{folder} {what}, which is no task that we know; name one with --task ({known})"
    )


def _check_fit(task: Task, described: Architecture, fields: dict[str, Any], folder: Path) -> None:
    """Refuse a task that the family cannot do, and variants that the clean forward lacks."""
    family = fields["model_type"]
    if task == "module" or described.reads_text == (task == "image-classification"):
        reads = "texts" if described.reads_text else "pictures"
        raise ModelError(f"{folder} is a {family}, which reads {reads}: it cannot do {task}")
    if fields.get("position_embedding_type", "absolute") != "absolute":
        kind = fields["position_embedding_type"]
        raise ModelError(f"{folder} has {kind} positions, and {family} is known with absolute ones")
    if fields.get("is_decoder"):
        raise ModelError(f"{folder} is a decoder (is_decoder), and only encoders can be exported")


def _check_sentence_transformer(folder: Path) -> None:
    """Refuse pooling other than the mean, and layers behind it (sentence-transformers)."""
    if not (folder / "modules.json").is_file():
        return
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
    except (OSError, ValueError, TypeError, KeyError):
        raise ModelError(f"{folder / 'modules.json'} is damaged; download it again") from None
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ModelError(
            f"{folder} ends in a {unknown[0]} layer, and only mean pooling and normalization can "
            "be exported; choose a checkpoint without it"
        )
    if "Pooling" not in kinds:
        return
    pooling = read_json(folder / kinds["Pooling"] / "config.json")
    chosen = pooling.get("pooling_mode") or [
        name.removeprefix("pooling_mode_")
        for name, on in pooling.items()
        if name.startswith("pooling_mode_") and on
    ]
    modes = [chosen] if isinstance(chosen, str) else list(chosen)
    if modes not in (["mean"], ["mean_tokens"]):
        raise ModelError(
            f"{folder} pools by {' and '.join(modes)}, and only the mean can be exported; choose "
            "a checkpoint that pools by the mean"
        )


def _load_module(folder: Path, task: Task, meta: bool) -> Any:
    with quiet():
        import torch
        import transformers
        from safetensors.torch import load_file

        auto = getattr(transformers, _CLASSES[task])
        read: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        made: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **read)
            differs = config.__dict__.pop(structure.KEY, None)
            if task == "sentence-embedding" and _has_pooler(auto, config):
                made["add_pooling_layer"] = False
            if meta:
                with torch.device("meta"):
                    outline = auto.from_config(config, **made)
                # XLNet makes some of its parameters on the CPU whatever the device.
                outline = outline.to("meta")
                if differs is not None:
                    structure.rebuild(outline, differs, None)
                return outline.eval()
            if differs is not None:
                module = auto.from_config(config, **made)
                structure.rebuild(module, differs, load_file(folder / "model.safetensors"))
                check_finite(module)
                return module.eval()
            module, report = auto.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                **read,
                **made,
            )
        except ModelError:
            raise
        except Exception as error:  # transformers raises many kinds
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ModelError(
                f"{folder} cannot be loaded for {task} ({reason}); save it anew"
            ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{folder} lacks {missing[0]}"
            + (f" and {len(missing) - 1} more weights" if len(missing) > 1 else "")
            + f" that {task} needs; fine-tune it for that, or name its own task with --task"
        )
    check_finite(module)
    return module.eval()


def check_finite(module: "nn.Module") -> None:
    """Raise ModelError, naming the tensor, when a weight is NaN or infinite."""
    import torch

    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise ModelError(
                f"{name} holds {count} values that are NaN or infinite; the file is damaged or "
                "training diverged: take an earlier checkpoint"
            )


def _has_pooler(auto: Any, config: Any) -> bool:
    """Whether the base model has a pooling layer that can be left out: nothing here uses it."""
    import inspect

    base = auto._model_mapping[type(config)]
    return "add_pooling_layer" in inspect.signature(base.__init__).parameters


def _problem(config: Any, task: Task) -> Problem | None:
    if task == "image-classification":
        return "single-label"
    if task != "text-classification":
        return None
    if config.problem_type is not None:
        return _PROBLEMS[config.problem_type]
    return "regression" if config.num_labels == 1 else "single-label"


def _labels(config: Any, task: Task) -> tuple[str, ...]:
    if task == "sentence-embedding" or _problem(config, task) == "regression":
        return ()
    return tuple(str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels))


def _image_preprocessor(folder: Path, fields: dict[str, Any]) -> ImagePreprocessor:
    settings = read_json(folder / "preprocessor_config.json")
    made = image_preprocessor(settings, fields.get("num_channels", 3), str(folder))
    side = fields.get("image_size", 224)
    if "patch_size" in fields and (made.height, made.width) != (side, side):
        raise ModelError(
            f"{folder} makes pictures of {made.height} x {made.width} and its position table is "
            f"for {side} x {side}; set size in preprocessor_config.json to {side}"
        )
    return made


def _text_preprocessor(folder: Path, model: Model, pair: bool) -> TextPreprocessor:
    described = model.architecture
    assert described is not None and described.embeddings is not None
    embeddings = described.embeddings(model.module.base_model)
    tokenizer = _read_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    fields = read_json(settings) if settings.is_file() else {}
    rows = described.word_embeddings(model.module).weight.shape[0]
    if tokenizer.get_vocab_size() > rows:
        raise ModelError(
            f"{folder}: the tokenizer knows {tokenizer.get_vocab_size()} tokens and the word table "
            f"has {rows} rows; save the tokenizer and the model together"
        )
    limits = [fields.get("model_max_length") or _LONGEST, _LONGEST]
    if embeddings.positions is not None:
        limits[1] = embeddings.positions.weight.shape[0] - embeddings.first_position
    if model.task == "sentence-embedding" and (folder / "sentence_bert_config.json").is_file():
        limits.append(
            read_json(folder / "sentence_bert_config.json").get("max_seq_length") or limits[0]
        )
    pad = fields.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(pad) if pad else getattr(model.module.config, "pad_token_id", 0)
    apart = model.task == "sentence-embedding"
    types = _reads_types(model, fields, pair and not apart)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextPreprocessor(
        tokenizer_json=tokenizer.to_str(),
        max_length=int(min(limits)),
        pad_id=pad_id or 0,
        inputs=("input_ids", "attention_mask", *(("token_type_ids",) if types else ())),
        pairs_apart=apart,
    )


def _ngram_preprocessor(folder: Path, model: Model, record: Mapping[str, Any]) -> NgramPreprocessor:
    ngrams = read_ngrams(folder / NGRAMS)
    assert model.architecture is not None
    rows = model.architecture.word_embeddings(model.module).weight.shape[0]
    if len(ngrams) != rows:
        raise ModelError(
            f"{folder}: {NGRAMS} has {len(ngrams)} lines and the table of n-grams {rows} rows; "
            "save the two together"
        )
    limit, inputs = record.get("max_length"), record.get("inputs")
    if not isinstance(limit, int) or limit < 2 or not isinstance(inputs, list):
        raise ModelError(f"{folder / _RECORD} lacks max_length or inputs; save the model again")
    return NgramPreprocessor(ngrams, limit, tuple(inputs))


def _reads_types(model: Model, settings: dict[str, Any], pair: bool) -> bool:
    """Whether the model's rows have token types that differ, as it was trained."""
    described = model.architecture
    config: Any = model.module.config
    assert described is not None
    if described.token_types == "never" or getattr(config, "type_vocab_size", 2) < 2:
        return False
    names = settings.get("model_input_names")
    if names is not None:
        made = "token_type_ids" in names
    else:
        version = str(config.transformers_version or "").partition(".")[0]
        last = described.types_until
        made = last is None or not version.isdecimal() or int(version) <= last
    return made and (pair or described.token_types == "always")


def _read_tokenizer(folder: Path) -> Any:
    """A ``tokenizers.Tokenizer``: from tokenizer.json, or converted from the older files."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise ModelError(f"{path} is damaged ({error}); download it again") from None
    with quiet():
        import transformers

        try:
            slow = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            return Tokenizer.from_str(slow.backend_tokenizer.to_str())
        except Exception as error:  # a conversion can fail in any way
            raise ModelError(
                f"{folder} has no tokenizer.json, and none can be made of its other files "
                f"({str(error).strip().splitlines()[0]}); save the tokenizer with the model"
            ) from None


def _token(preprocessor: TextPreprocessor, index: int) -> str | None:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(preprocessor.tokenizer_json).id_to_token(index)


def _image_settings(preprocessor: ImagePreprocessor) -> dict[str, Any]:
    """``preprocessor_config.json`` as transformers writes it."""
    fields = asdict(preprocessor)
    target = {"height": fields["height"], "width": fields["width"]}
    shortest = fields["shortest_edge"]
    return {
        "size": target if shortest is None else {"shortest_edge": shortest},
        "crop_size": target,
        "do_center_crop": shortest is not None,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": fields["rescale"],
        "image_mean": fields["mean"],
        "image_std": fields["std"],
        "resample": fields["resample"],
    }


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(
        json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings from libraries inside."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    library: Any = transformers.utils.logging

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
