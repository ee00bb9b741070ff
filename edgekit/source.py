"""What ``model =`` names: found, checked and identified without torch.

A digest stands for the source in the store, so it covers all that decides what is loaded. Damage
is looked for here, where a refusal is quick: a checkpoint's header must fit the bytes behind it.
"""

import hashlib
import json
import math
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.architectures import check_family
from edgekit.artifact import sha256
from edgekit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["checkpoint", "file", "module", "hub", "sample"]

_EXPORTED = (".onnx", ".tflite", ".pt", ".pts", ".torchscript")
_PICKLES = (".bin", ".pth", ".ckpt", ".pkl", ".pickle")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Beside the weights, whatever decides how a checkpoint is loaded.
_DECISIVE = ("*.json", "*/config.json", "*.txt", "*.model")
_CONVERT = (
    "convert it once where you trust it: "
    "AutoModel….from_pretrained(old).save_pretrained(new) writes model.safetensors"
)
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "U16": 16, "I16": 16}
_BITS |= {"F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64}


@dataclass(frozen=True)
class Source:
    """A model by name: a checkpoint folder, an exported file, a module's factory, a hub id or
    the embedded sample.

    path: the folder or file; for a hub id its folder in the hub's cache; ``None`` for a module.
    digest: hex, of everything that decides what is loaded.
    """

    reference: str
    kind: Kind
    path: Path | None
    digest: str


def identify(reference: str) -> Source:
    """Find what a reference names and check that it is whole.

    A checkpoint of 91 MB takes 0.1 s; a hub id may have to be downloaded, and a module's factory
    is called. Raises ModelError.
    """
    if reference.startswith("sample:"):
        from edgekit import sample

        digest = sample.digest(reference.removeprefix("sample:"))
        return Source(reference, "sample", None, digest)
    path = Path(reference).expanduser()
    if path.is_dir():
        return Source(reference, "checkpoint", path, _checkpoint_digest(path))
    if path.is_file():
        _check_file(path)
        return Source(reference, "file", path, sha256(path))
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", reference):
        return Source(reference, "module", None, module_digest(*call_factory(reference)))
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", reference) and not (
        path.parent.is_dir() or path.suffix in _EXPORTED
    ):
        folder = _download(reference)
        return Source(reference, "hub", folder, _checkpoint_digest(folder))
    raise ModelError(
        f"no model at {reference}; give a checkpoint folder, an .onnx, .tflite or TorchScript "
        "file, a hub id (owner/name) or package.module:factory"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint: one, or the shards that its index names.

    Raises ModelError when there are none, naming the conversion when there are pickles instead.
    """
    index = folder / _INDEX
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise ModelError(f"{index} is no index of shards; download the checkpoint again")
        return [folder / shard for shard in sorted(set(shards.values()))]
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is "
            f"opened; {_CONVERT}"
        )
    raise ModelError(f"{folder} has no {_WEIGHTS}; save the model there with save_pretrained")


def check_safetensors(path: Path) -> None:
    """Raise ModelError unless the header is sound and fits the bytes behind it, to the byte.

    Also when a matrix is of 8-bit integers: those of others, on scales that we do not know.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing; download the checkpoint again")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= 100_000_000:
            raise _damaged(path, "its header's length cannot be")
        if size < 8 + length:
            raise ModelError(f"{path} ends within its header; download it again")
        try:
            tensors = json.loads(stream.read(length))
            tensors.pop("__metadata__", None)
            spans = sorted(_span(name, tensor) for name, tensor in tensors.items())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _damaged(path, f"its header is garbled ({error})") from None
    for name, tensor in tensors.items():
        if tensor["dtype"] in ("I8", "U8") and len(tensor["shape"]) > 1:
            raise ModelError(
                f"{path} is quantized already: see {name}; give the float checkpoint that it was "
                "made of"
            )
    end = 0
    for start, stop, name in spans:
        if start != end:
            raise _damaged(path, f"tensor {name} does not begin where the one before it ends")
        end = stop
    missing = end - (size - 8 - length)
    if missing > 0:
        raise ModelError(f"{path} is cut off: {missing} bytes are missing; download it again")
    if missing < 0:
        raise _damaged(path, f"{-missing} bytes belong to no tensor")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError when the file holds none."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}; download it again") from None
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds no JSON object; download it again")
    return fields


def call_factory(reference: str) -> "tuple[nn.Module, dict[str, Tensor]]":
    """Call ``package.module:factory`` for a module and an example of each input, by name.

    The package is looked for in the working folder first. Raises ModelError.
    """
    import importlib

    from torch import Tensor, nn

    name, _, factory = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(name), factory)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"cannot import {name} for {reference}: {error}; run edgekit where it can be imported"
        ) from None
    except AttributeError:
        raise ModelError(f"{name} has no {factory}; name a function in it") from None
    try:
        made = function()
    except Exception as error:  # whatever the user's code raises
        raise ModelError(f"{reference} fails: {type(error).__name__}: {error}; mend it") from error
    if not (
        isinstance(made, tuple)
        and len(made) == 2
        and isinstance(made[0], nn.Module)
        and isinstance(made[1], Mapping)
        and made[1]
        and all(isinstance(value, Tensor) and value.dim() > 0 for value in made[1].values())
    ):
        raise ModelError(
            f"{reference} must return (module, example_inputs): an nn.Module, and a tensor with a "
            "batch dimension for each input by name"
        )
    return made[0].eval(), dict(made[1])


def module_digest(module: "nn.Module", example: "Mapping[str, Tensor]") -> str:
    """Digest of a module's code file, weights and example inputs."""
    import inspect

    digest = hashlib.sha256()
    try:
        digest.update(Path(inspect.getfile(type(module))).read_bytes())
    except (OSError, TypeError):
        digest.update(repr(module).encode())
    for name, tensor in (*module.state_dict().items(), *example.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _span(name: str, tensor: Any) -> tuple[int, int, str]:
    start, stop = tensor["data_offsets"]
    bits = math.prod(tensor["shape"]) * _BITS.get(tensor["dtype"], 0)
    if not 0 <= start <= stop or (tensor["dtype"] in _BITS and bits != (stop - start) * 8):
        raise ValueError(f"tensor {name} does not fit its bytes")
    return start, stop, name


def _damaged(path: Path, how: str) -> ModelError:
    return ModelError(f"{path} is damaged: {how}; download it again")


def _check_file(path: Path) -> None:
    """Refuse files that are no exported model: pickles, bare weights, anything else."""
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        raise ModelError(f"{path} is weights alone; give the folder with its config.json")
    if suffix in _PICKLES:
        raise ModelError(f"{path} is a pickle, which can run code when it is opened; {_CONVERT}")
    if suffix not in _EXPORTED:
        raise ModelError(
            f"{path} is no model that we know; give a checkpoint folder or a file that ends in "
            + ", ".join(_EXPORTED)
        )
    if suffix in (".onnx", ".tflite"):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise ModelError(
            f"{path} is no TorchScript archive; write it with torch.jit.save"
        ) from None
    if not any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(
            f"{path} was written by torch.save, not torch.jit.save: a pickle, which can run code "
            f"when it is opened; {_CONVERT}"
        )


def _checkpoint_digest(folder: Path) -> str:
    """Check a checkpoint folder and digest the files that decide what is loaded."""
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(
            f"{folder} has no config.json, so it is no checkpoint; give a folder that "
            "save_pretrained wrote"
        )
    fields = read_json(config)
    if "model_type" not in fields:
        raise ModelError(f"{config} has no model_type; give a folder that save_pretrained wrote")
    check_family(fields["model_type"], str(config))
    quantized = fields.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "") if isinstance(quantized, dict) else ""
        raise ModelError(
            f"{folder} is quantized already{f' ({method})' if method else ''}; give the float "
            "checkpoint that it was made of"
        )
    weights = weight_files(folder)
    for path in weights:
        check_safetensors(path)
    digest = hashlib.sha256()
    for path in (*_decisive_files(folder), *weights):
        digest.update(f"{path.relative_to(folder)} {sha256(path)}\n".encode())
    return digest.hexdigest()


def _decisive_files(folder: Path) -> Iterator[Path]:
    found = {path for pattern in _DECISIVE for path in folder.glob(pattern)}
    yield from sorted(path for path in found if path.is_file())


def _download(name: str) -> Path:
    """A hub model's folder in the hub's own cache; safetensors only, never code or pickles."""
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, allow_patterns=["*.json", "*.txt", "*.model", "*.safetensors"]
            )
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).removeprefix("Got: ").split(". ")[0].strip() or type(error).__name__
        raise ModelError(
            f"{name} is no folder here, and the hub does not give it ({reason}); check the name "
            "and the network"
        ) from None
