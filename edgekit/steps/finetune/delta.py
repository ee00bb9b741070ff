"""What a small change of a base is kept as: one safetensors file, the delta.

Rules:

1. It holds each tensor of the tuned checkpoint that the base does not have, byte for byte: of a
   model that learned with ``finetune:what=bias`` its biases and its head.
2. Its metadata hold the digest of all the other tensors, and the tuned checkpoint's small files
   (config, labels, lineage). What the base has in the delta's place does not matter: deltas of
   several tasks share one encoder, whatever head that has, if any.
3. Base and delta together are the tuned checkpoint, byte for byte. A base that differs in a
   tensor that it has to give, or splits text into other tokens, is refused.
4. Numbers of 16 bits in a base count as the float32 that edgekit reads them as.
5. A delta of more than a tenth of the model is none: too much has changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import ModelError, OutputError, UsageError
from edgekit.source import check_safetensors, identify, weight_files

if TYPE_CHECKING:
    from torch import Tensor

_KIND = "edgekit-delta-1"
_TOKENIZER = "tokenizer.json"
_FILES = ("config.json", "edgekit.json", "preprocessor_config.json", "tokenizer_config.json")
_MOST = 0.1


@dataclass(frozen=True)
class Delta:
    """What is in a delta: numbers of tensors and of bytes in the file, and in the whole model."""

    path: Path
    tensors: int
    bytes: int
    model_bytes: int


def make_delta(base: str, tuned: str, output: Path) -> Delta:
    """Write what turns the checkpoint ``base`` into the checkpoint ``tuned``.

    Raises ModelError when one of them cannot be read or they differ in too much, and OutputError
    when the file cannot be written.
    """
    from safetensors.torch import save_file

    tuned_folder = _folder(tuned)
    theirs, ours = _tensors(_folder(base)), _tensors(tuned_folder)
    theirs = _renamed(theirs, ours)
    changed = {
        name: tensor
        for name, tensor in ours.items()
        if name not in theirs
        or theirs[name].shape != tensor.shape
        or not _same(theirs[name], tensor)
    }
    total, small = (sum(each.nbytes for each in part.values()) for part in (ours, changed))
    if small > _MOST * total:
        largest = max(changed, key=lambda name: changed[name].nbytes)
        raise ModelError(
            f"{tuned} differs from {base} in {small / total:.0%} of its bytes ({largest} among "
            "them), and a delta is for biases and a head; train it with finetune:what=bias"
        )
    tokens = _tokenizer(tuned_folder)
    if tokens != _tokenizer(_folder(base)):
        raise ModelError(f"{tuned} splits text into other tokens than {base}; a delta keeps them")
    kept = sorted(set(ours) - set(changed))
    metadata = {
        "kind": _KIND,
        "base": _digest(theirs, kept),
        "kept": json.dumps(kept),
        "tokenizer": hashlib.sha256(tokens.encode()).hexdigest(),
        "files": json.dumps(
            {
                name: (tuned_folder / name).read_text(encoding="utf-8")
                for name in _FILES
                if (tuned_folder / name).is_file()
            }
        ),
    }
    partial = output.with_name(output.name + ".partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file(changed, partial, metadata=metadata)
        partial.replace(output)
    except OSError as error:
        raise OutputError(
            f"cannot write {output}: {error.strerror or error}; name a file in a folder of yours"
        ) from None
    return Delta(output, len(changed), output.stat().st_size, total)


def apply_delta(base: str, delta: Path, output: Path) -> None:
    """Write the tuned checkpoint into the new folder ``output``.

    Raises ModelError when the delta is damaged or is of another base, UsageError when the folder
    is there already, OutputError when it cannot be written.
    """
    from safetensors.torch import save_file

    from edgekit.model import load_model

    if output.exists():
        raise UsageError(f"{output} is there already; name a new folder")
    metadata, changed = _read(delta)
    folder = _folder(base)
    tensors = _tensors(folder)
    tensors = _renamed(tensors, (*metadata["kept"], *changed))
    lacking = [name for name in metadata["kept"] if name not in tensors]
    tokens = _tokenizer(folder)
    if (
        lacking
        or _digest(tensors, metadata["kept"]) != metadata["base"]
        or hashlib.sha256(tokens.encode()).hexdigest() != metadata["tokenizer"]
    ):
        raise ModelError(
            f"{base} is not the base that {delta} was made on; give the checkpoint that was tuned"
        )
    merged = {name: _wide(tensors[name]) for name in metadata["kept"]} | changed
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write {output}: {error.strerror or error}; name a folder in one of yours"
        ) from None
    try:
        save_file(merged, partial / "model.safetensors", metadata={"format": "pt"})
        for name, text in metadata["files"].items():
            (partial / name).write_text(text, encoding="utf-8")
        if tokens:
            (partial / _TOKENIZER).write_text(tokens, encoding="utf-8")
        # Whatever the file says has to be a model.
        load_model(identify(str(partial)))
        partial.chmod(0o755)
        partial.rename(output)
    except ModelError as error:
        raise ModelError(f"{delta} makes no model of {base} ({error}); make it anew") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A delta's metadata, parsed, and its tensors. Raises ModelError."""
    from safetensors import safe_open

    check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        if metadata.get("kind") != _KIND:
            raise ModelError(f"{path} is no delta; write one with: edgekit delta")
        kept, files = json.loads(metadata["kept"]), json.loads(metadata["files"])
        sound = _texts(kept) and _texts(files) and _texts(files.values()) and "config.json" in files
        if not sound or not set(files) <= set(_FILES) or set(kept) & set(tensors):
            raise ValueError
        return metadata | {"kept": sorted(kept), "files": files}, tensors
    except ModelError:
        raise
    except Exception:  # a file from anywhere can be wrong in any way
        raise ModelError(f"{path} is a damaged delta; make it anew with: edgekit delta") from None


def _texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _folder(reference: str) -> Path:
    source = identify(reference)
    if source.path is None or not source.path.is_dir():
        raise ModelError(f"{reference} is no checkpoint folder, and deltas are between two")
    return source.path


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = {}
    for path in weight_files(folder):
        found |= load_file(path)
    return found


def _renamed(base: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The base's tensors by the names that a task model has: ``bert.`` before an encoder's own."""
    wanted = set(wanted)
    prefixes = {"", *(name.partition(".")[0] + "." for name in wanted)}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + n in wanted for n in base))
    return {best + name: tensor for name, tensor in base.items()}


def _wide(tensor: Tensor) -> Tensor:
    """Rule 4."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return _bytes(one) == _bytes(other)


def _bytes(tensor: Tensor) -> bytes:
    import torch

    data: bytes = _wide(tensor).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _digest(tensors: Mapping[str, Tensor], names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {_wide(tensors[name]).dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _tokenizer(folder: Path) -> str:
    """tokenizer.json without what only decides how batches are padded; empty for pictures."""
    from tokenizers import Tokenizer

    if not (folder / _TOKENIZER).is_file():
        return ""
    try:
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ModelError(f"{folder / _TOKENIZER} is damaged ({error}); download it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text: str = tokenizer.to_str()
    return text
