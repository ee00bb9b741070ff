"""``manifest.json``: what a bundle holds, what was measured, and how it came to be.

The published schema is ``manifest.schema.json`` beside this file, written from these classes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.artifact import sha256
from edgekit.errors import BundleError

FILE = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file of the bundle. ``role`` says what it is for; ``shipped`` counts for the budget."""

    path: str
    bytes: int
    sha256: str
    role: Literal["model", "tokenizer", "labels", "preprocessor", "golden", "readme", "report"]
    shipped: bool


class TensorEntry(_Part):
    name: str
    dtype: str
    shape: list[int | str]


class ModelFile(_Part):
    """One model file: how to call it, and what was proven of it on ``proof.device``."""

    file: str
    format: Literal["onnx", "tflite", "torchscript"]
    scheme: str
    inputs: list[TensorEntry]
    outputs: list[TensorEntry]
    lengths: list[int] = Field(description="sequence-length buckets; empty when dynamic")
    packed: str | None = Field(default=None, description="the file that expands to it, if any")
    predicted_bytes: int | None
    proof: dict[str, Any]


class ManifestModel(_Part):
    """The original, and what was done to it."""

    reference: str
    digest: str
    task: str
    problem: str | None
    labels: list[str]
    lineage: list[str]


class Manifest(_Part):
    schema_version: Literal[1] = 1
    edgekit: str
    target: str
    runtime: dict[str, str]
    parity: dict[str, float | None]
    model: ManifestModel
    files: list[FileEntry]
    models: list[ModelFile]
    shipped_bytes: int
    download_bytes: int | None = Field(default=None, description="those bytes, each file deflated")
    budget: dict[str, float | None]
    verdict: dict[str, Any]
    notes: list[str]
    settings: dict[str, Any]
    versions: dict[str, str]
    seal: str = Field(default="", description="sha256 of this manifest with an empty seal")

    def model_file(self, name: str) -> ModelFile:
        """The record of one model file."""
        return next(entry for entry in self.models if entry.file == name)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """``manifest.json`` in the bundle folder, sealed, and indented for reading."""
    sealed = manifest.model_copy(update={"seal": _seal(manifest)})
    (folder / FILE).write_text(_text(sealed), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle.

    Raises BundleError when there is none, or it is malformed, or was changed after it was sealed.
    """
    path = folder / FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError:
        raise BundleError(f"{folder} is not a bundle: it has no {FILE}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BundleError(f"{path}: {key}: {first['msg']}; build the bundle again") from None
    if manifest.seal != _seal(manifest):
        raise BundleError(f"{path} was changed after it was written; build the bundle again")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise BundleError for a file that is missing, changed or not listed."""
    listed = {entry.path for entry in manifest.files} | {FILE}
    for entry in manifest.files:
        path = folder / entry.path
        if not path.is_file():
            raise BundleError(f"{path} is missing; build the bundle again")
        if path.stat().st_size != entry.bytes or sha256(path) != entry.sha256:
            raise BundleError(f"{path} does not match its digest; build the bundle again")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in listed:
            raise BundleError(f"{path} is not in the manifest; remove it or build the bundle again")


def schema() -> dict[str, Any]:
    """The JSON schema of ``manifest.json``."""
    return Manifest.model_json_schema()


def _seal(manifest: Manifest) -> str:
    return hashlib.sha256(_text(manifest.model_copy(update={"seal": ""})).encode()).hexdigest()


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("manifest.schema.json").write_text(
        json.dumps(schema(), indent=1) + "\n"
    )
