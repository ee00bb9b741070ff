"""A file on disk in one format, with its digest, inputs and outputs."""

import hashlib
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Format = Literal["onnx", "tflite", "torchscript"]
FORMATS: tuple[Format, ...] = ("onnx", "tflite", "torchscript")
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "tflite": ".tflite", "torchscript": ".pt"}

Scheme = Literal[
    "fp32",
    "fp16",
    "int8-dynamic",
    "int8-weights",
    "int4-weights",
    "int4-all",
    "int2-weights",
    "int8-static",
    "int16x8",
]
SCHEMES: tuple[Scheme, ...] = typing.get_args(Scheme)
# Those without integers, which are all that GPU delegates take.
FLOAT_SCHEMES: tuple[Scheme, ...] = ("fp32", "fp16")
# Those whose activations are integers too, of ranges that a step found.
STATIC: tuple[Scheme, ...] = ("int8-static", "int16x8")
# Bits of the matrices where they are fewer than 8.
MATRIX_BITS: dict[Scheme, int] = {"int4-weights": 4, "int4-all": 4, "int2-weights": 2}
# Bits of the tables where they are fewer than 8.
TABLE_BITS: dict[Scheme, int] = {"int4-all": 4}
# Why a format cannot hold a scheme. What is not named here, it can.
_CANNOT_HOLD: dict[tuple[Format, Scheme], str] = {
    ("torchscript", "int8-weights"): "libtorch would widen the weights again in every run",
    ("torchscript", "int4-weights"): "libtorch has no portable product with weights of 4 bits",
    ("torchscript", "int4-all"): "libtorch has no portable product with weights of 4 bits",
    ("torchscript", "int2-weights"): "libtorch has no product with weights of 2 bits",
    ("torchscript", "int8-static"): "libtorch's static kernels are leaving it with torch.ao",
    ("onnx", "int16x8"): "ONNX Runtime has no product of 16-bit activations and 8-bit weights",
    ("torchscript", "int16x8"): "libtorch has no product of 16-bit integers",
}


def activation_bits(scheme: Scheme) -> int:
    """Bits of an activation in a static scheme."""
    return 16 if scheme == "int16x8" else 8


def schemes_of(format: Format) -> tuple[Scheme, ...]:
    """The schemes that a format can hold."""
    return tuple(scheme for scheme in SCHEMES if (format, scheme) not in _CANNOT_HOLD)


def cannot_hold(format: Format, scheme: Scheme) -> str | None:
    """Why a format cannot hold a scheme, and what else would do; ``None`` when it can."""
    reason = _CANNOT_HOLD.get((format, scheme))
    if reason is None:
        return None
    able = " or ".join(other for other in FORMATS if (other, scheme) not in _CANNOT_HOLD)
    return (
        f"{format} cannot hold {scheme}: {reason}; choose {one_of(schemes_of(format))}, or "
        f"--format {able}"
    )


def one_of(names: Sequence[str]) -> str:
    """``a, b or c``."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


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
