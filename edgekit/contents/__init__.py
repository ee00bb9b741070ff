"""What is inside a model file: inputs, outputs, operations, and every stored constant.

Read from the file's own structure; nothing in it is run.
"""

import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.artifact import FORMATS, SUFFIXES, Format, Tensor
from edgekit.errors import ModelError


@dataclass(frozen=True)
class StoredTensor:
    """A constant as it lies in the file. Each stored buffer is one, however often it is used."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class Contents:
    """Everything that ``edgekit inspect`` shows.

    bytes: size of the file, with the files that it keeps its weights in.
    ops: how often each operation occurs.
    signatures: names of a TFLite file's signatures.
    """

    format: Format
    bytes: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    signatures: tuple[str, ...]
    ops: Mapping[str, int]
    tensors: tuple[StoredTensor, ...]

    def bytes_per_dtype(self) -> dict[str, int]:
        """Bytes of constants per dtype, the largest first."""
        count: Counter[str] = Counter()
        for tensor in self.tensors:
            count[tensor.dtype] += tensor.bytes
        return dict(count.most_common())


def read_contents(path: Path) -> Contents:
    """Read an ONNX, TFLite or TorchScript file.

    Raises ModelError when the file is missing, damaged, of another format than its name says,
    or of a format that we do not know.
    """
    format = identify_format(path)
    if format == "onnx":
        from edgekit.contents.onnx import read_onnx

        return read_onnx(path)
    if format == "tflite":
        from edgekit.contents.tflite import read_tflite

        return read_tflite(path)
    from edgekit.contents.torchscript import read_torchscript

    return read_torchscript(path)


def identify_format(path: Path) -> Format:
    """The format by the file's first bytes; ONNX, which has no mark, by its suffix.

    Raises ModelError as ``read_contents`` does.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; give a model file") from error
    named = next((format for format in FORMATS if path.suffix == SUFFIXES[format]), None)
    found = _format_of(path, head, named)
    if found is None and named is not None:
        raise ModelError(f"{path} is damaged or no {named} file; export it again")
    if found is None:
        raise ModelError(f"{path} is no model file that edgekit knows; it reads .onnx .tflite .pt")
    if named not in (None, found):
        suffix = SUFFIXES[found]
        raise ModelError(f"{path} holds {found}, not {named}; rename it to end in {suffix}")
    return found


def _format_of(path: Path, head: bytes, named: Format | None) -> Format | None:
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:4] == b"PK\x03\x04":
        return "torchscript" if _is_torchscript(path) else None
    return "onnx" if named == "onnx" and head else None


def _is_torchscript(path: Path) -> bool:
    """Whether a zip is a TorchScript archive, which holds code, and not ``torch.save``'s pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception as error:  # zipfile meets a garbled directory with errors of many kinds
        reason = " ".join(str(error).split())[:160]
        raise ModelError(f"{path} is truncated or damaged ({reason}); copy it again") from error
