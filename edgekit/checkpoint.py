"""A checkpoint folder, part by part: its task, its weights, what feeds it.

``load_model`` and ``save_model`` make the parts one model.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from edgekit import structure
from edgekit.architectures import Architecture
from edgekit.errors import ModelError
from edgekit.preprocess import (
    ImagePreprocessor,
    NgramPreprocessor,
    TextPreprocessor,
    image_preprocessor,
    read_ngrams,
)
from edgekit.source import read_json
from edgekit.task import Problem, Task

if TYPE_CHECKING:
    from torch import nn

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


def read_record(folder: Path) -> dict[str, Any]:
    """What ``write_record`` wrote; empty for a checkpoint that is not ours."""
    return read_json(folder / _RECORD) if (folder / _RECORD).is_file() else {}


def detect_task(fields: dict[str, Any], folder: Path) -> Task:
    """What the class that it was saved from is for. fields: of its ``config.json``."""
    names = fields.get("architectures") or [""]
    for ending, task in _TASKS.items():
        if names[0].endswith(ending):
            return task
    what = f"was saved from {names[0]}" if names[0] else "does not say what it is for"
    known = ", ".join(t for t in get_args(Task) if t != "module")
    raise ModelError(
        f"{folder} {what}, which is no task that we know; name one with --task ({known})"
    )


def check_fit(task: Task, described: Architecture, fields: dict[str, Any], folder: Path) -> None:
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


def check_sentence_transformer(folder: Path) -> None:
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


def read_module(folder: Path, task: Task, meta: bool) -> Any:
    """The torch module in float32 and eval mode; meta: its shapes only. Raises ModelError."""
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


def problem_of(config: Any, task: Task) -> Problem | None:
    """``None`` for tasks that do not classify whole rows."""
    if task == "image-classification":
        return "single-label"
    if task != "text-classification":
        return None
    if config.problem_type is not None:
        return _PROBLEMS[config.problem_type]
    return "regression" if config.num_labels == 1 else "single-label"


def labels_of(config: Any, task: Task) -> tuple[str, ...]:
    """By output index; empty where outputs have no names."""
    if task == "sentence-embedding" or problem_of(config, task) == "regression":
        return ()
    return tuple(str(config.id2label.get(i, f"LABEL_{i}")) for i in range(config.num_labels))


def read_image_preprocessor(folder: Path, fields: dict[str, Any]) -> ImagePreprocessor:
    """What makes its pictures. fields: of the checkpoint's ``config.json``."""
    settings = read_json(folder / "preprocessor_config.json")
    made = image_preprocessor(settings, fields.get("num_channels", 3), str(folder))
    side = fields.get("image_size", 224)
    if "patch_size" in fields and (made.height, made.width) != (side, side):
        raise ModelError(
            f"{folder} makes pictures of {made.height} x {made.width} and its position table is "
            f"for {side} x {side}; set size in preprocessor_config.json to {side}"
        )
    return made


def read_text_preprocessor(
    folder: Path, module: Any, described: Architecture, task: Task, pair: bool
) -> TextPreprocessor:
    """What makes tokens of its texts. pair: its rows hold two of them."""
    assert described.embeddings is not None
    embeddings = described.embeddings(module.base_model)
    tokenizer = _read_tokenizer(folder)
    settings = folder / "tokenizer_config.json"
    fields = read_json(settings) if settings.is_file() else {}
    rows = described.word_embeddings(module).weight.shape[0]
    if tokenizer.get_vocab_size() > rows:
        raise ModelError(
            f"{folder}: the tokenizer knows {tokenizer.get_vocab_size()} tokens and the word table "
            f"has {rows} rows; save the tokenizer and the model together"
        )
    limits = [fields.get("model_max_length") or _LONGEST, _LONGEST]
    if embeddings.positions is not None:
        limits[1] = embeddings.positions.weight.shape[0] - embeddings.first_position
    if task == "sentence-embedding" and (folder / "sentence_bert_config.json").is_file():
        limits.append(
            read_json(folder / "sentence_bert_config.json").get("max_seq_length") or limits[0]
        )
    pad = fields.get("pad_token")
    pad = pad.get("content") if isinstance(pad, dict) else pad
    pad_id = tokenizer.token_to_id(pad) if pad else getattr(module.config, "pad_token_id", 0)
    apart = task == "sentence-embedding"
    types = _reads_types(module.config, described, fields, pair and not apart)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return TextPreprocessor(
        tokenizer_json=tokenizer.to_str(),
        max_length=int(min(limits)),
        pad_id=pad_id or 0,
        inputs=("input_ids", "attention_mask", *(("token_type_ids",) if types else ())),
        pairs_apart=apart,
    )


def read_ngram_preprocessor(
    folder: Path, module: Any, described: Architecture, record: Mapping[str, Any]
) -> NgramPreprocessor:
    """What makes n-grams of its texts. record: what ``read_record`` gives."""
    ngrams = read_ngrams(folder / NGRAMS)
    rows = described.word_embeddings(module).weight.shape[0]
    if len(ngrams) != rows:
        raise ModelError(
            f"{folder}: {NGRAMS} has {len(ngrams)} lines and the table of n-grams {rows} rows; "
            "save the two together"
        )
    limit, inputs = record.get("max_length"), record.get("inputs")
    if not isinstance(limit, int) or limit < 2 or not isinstance(inputs, list):
        raise ModelError(f"{folder / _RECORD} lacks max_length or inputs; save the model again")
    return NgramPreprocessor(ngrams, limit, tuple(inputs))


def _reads_types(
    config: Any, described: Architecture, settings: dict[str, Any], pair: bool
) -> bool:
    """Whether the model's rows have token types that differ, as it was trained."""
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


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Keep what a checkpoint of transformers has no place for: the task, the inputs …"""
    _write_json(folder / _RECORD, record)


def write_module(folder: Path, module: Any) -> None:
    """Weights and config, as transformers reads them; of other shapes, as ``structure`` does."""
    with quiet():
        differs = structure.record(module)
        if differs is None:
            module.save_pretrained(folder)
        else:
            structure.save(module, folder, differs)


def write_preprocessor(
    folder: Path, preprocessor: TextPreprocessor | NgramPreprocessor | ImagePreprocessor | None
) -> None:
    """The files beside the weights that the ``read_…_preprocessor`` of its kind reads."""
    if isinstance(preprocessor, TextPreprocessor):
        (folder / "tokenizer.json").write_text(preprocessor.tokenizer_json, "utf-8")
        settings = {
            "model_max_length": preprocessor.max_length,
            "model_input_names": preprocessor.inputs,
            "pad_token": _token(preprocessor, preprocessor.pad_id),
        }
        _write_json(folder / "tokenizer_config.json", settings)
    elif isinstance(preprocessor, NgramPreprocessor):
        (folder / NGRAMS).write_text("\n".join(preprocessor.ngrams) + "\n", "utf-8")
    elif isinstance(preprocessor, ImagePreprocessor):
        _write_json(folder / "preprocessor_config.json", _image_settings(preprocessor))


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
