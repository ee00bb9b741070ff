"""A file on disk in one format, with its digest, inputs and outputs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Format = Literal["onnx", "tflite", "torchscript"]
FORMATS: tuple[Format, ...] = ("onnx", "tflite", "torchscript")
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "tflite": ".tflite", "torchscript": ".pt"}

Scheme = Literal["fp32", "fp16", "int8-dynamic", "int8-static", "int16x8"]
SCHEMES: tuple[Scheme, ...] = ("fp32", "fp16", "int8-dynamic", "int8-static", "int16x8")

# Those whose activations are integers of a range found beforehand.
STATIC: tuple[Scheme, ...] = ("int8-static", "int16x8")


@dataclass(frozen=True)
class Tensor:
    """A named input or output. A dimension is an ``int``, or a name where it is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Artifact:
    """One exported file. ``lengths`` are its sequence-length buckets; none when dynamic."""

    path: Path
    format: Format
    scheme: Scheme
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    lengths: tuple[int, ...] = ()

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size

    def to_json(self) -> dict[str, Any]:
        """Everything but the folder, for a manifest or an agent's job."""
        return {
            "file": self.path.name,
            "format": self.format,
            "scheme": self.scheme,
            "inputs": [vars(tensor) | {"shape": list(tensor.shape)} for tensor in self.inputs],
            "outputs": [vars(tensor) | {"shape": list(tensor.shape)} for tensor in self.outputs],
            "lengths": list(self.lengths),
        }

    @staticmethod
    def from_json(folder: Path, fields: dict[str, Any]) -> "Artifact":
        def tensors(key: str) -> tuple[Tensor, ...]:
            return tuple(Tensor(t["name"], t["dtype"], tuple(t["shape"])) for t in fields[key])

        return Artifact(
            path=folder / fields["file"],
            format=fields["format"],
            scheme=fields["scheme"],
            inputs=tensors("inputs"),
            outputs=tensors("outputs"),
            lengths=tuple(fields["lengths"]),
        )


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
