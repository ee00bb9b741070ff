"""Write a bundle: everything into a folder beside the place, then one rename.

Rules:

1. A folder that is not a bundle of ours is never touched.
2. A bundle of another model is replaced only with ``overwrite``.
3. A build killed half-way leaves the old bundle, or none; never half of one.
"""

import json
import os
import shutil
import string
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.artifact import Artifact, sha256
from edgekit.bundle.evidence import FILE as EVIDENCE
from edgekit.bundle.evidence import Evidence, evidence_text
from edgekit.bundle.golden import FILE as GOLDEN
from edgekit.bundle.golden import write_golden
from edgekit.bundle.manifest import FILE as MANIFEST
from edgekit.bundle.manifest import FileEntry, Manifest, read_manifest, write_manifest
from edgekit.checkpoint import NGRAMS
from edgekit.errors import BundleError, OutputError
from edgekit.preprocess import ImagePreprocessor, NgramPreprocessor, TextPreprocessor, TextReader
from edgekit.target import Target

if TYPE_CHECKING:
    from edgekit.filemodel import FileModel
    from edgekit.model import Model

LABELS = "labels.json"
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor.json"
README = "README.md"

Role = Literal["model", "tokenizer", "labels", "preprocessor", "golden", "readme", "report"]
_ROLES: dict[str, tuple[Role, bool]] = {
    TOKENIZER: ("tokenizer", True),
    NGRAMS: ("tokenizer", True),
    LABELS: ("labels", True),
    PREPROCESSOR: ("preprocessor", True),
    GOLDEN: ("golden", False),
    README: ("readme", False),
    EVIDENCE: ("report", False),
}

_EXPAND = """
`model.tflite` is shipped as `model.tflite.packed`, without the zeros of its weights. Expand it
once, at first start (the rules are in edgekit's `export/tflite_packed.py`):

```kotlin
val packed = ByteBuffer.wrap(File(folder, "model.tflite.packed").readBytes())
packed.order(ByteOrder.LITTLE_ENDIAN).position(8)
File(folder, "model.tflite").outputStream().buffered().use { out ->
    while (packed.hasRemaining()) {
        val plain = ByteArray(packed.getInt())
        val span = ByteArray(packed.getInt())
        val distances = ByteArray(packed.getInt())
        packed.get(plain).get(distances)
        var at = 0
        for (distance in distances) { at += distance.toInt() and 255; span[at] = packed.get() }
        out.write(plain)
        out.write(span)
    }
}
```
"""


_NGRAMS = """
## Ids of a text

There is no tokenizer: the ids are those of the text's n-grams, which are the lines of `ngrams.txt`
from 0. `token_type_ids`, where the file takes them, are 0 for those of the first text and 1 for
those of the second; the mask is 1 for each. Keep the first `max_length` of `preprocessor.json`.
This is all of it, in Python without any library; `golden.json` has texts with their ids to hold
your own against:

```python
import unicodedata

LONGEST, NOTHING = 4, "[NONE]"
lines = open("ngrams.txt", encoding="utf-8").read().split("\\n")[:-1]
known = {line: number for number, line in enumerate(lines)}


CODE```

In Kotlin:

```kotlin
val known = File(folder, "ngrams.txt").readLines().withIndex().associate { it.value to it.index }
val text = Normalizer.normalize(text, Normalizer.Form.NFC)
val words = Regex("[\\p{L}\\p{M}\\p{N}]+|[\\p{P}\\p{S}]").findAll(text)
    .map { word -> word.value.map { it.lowercase() }.joinToString("") }.toList()
val found = words.indices.flatMap { start ->
    (start + 1..minOf(start + 4, words.size))
        .mapNotNull { end -> known[words.subList(start, end).joinToString(" ")] }
}
val ids = found.ifEmpty { listOf(known.getValue("[NONE]")) }.toIntArray()
```
"""


def app_files(model: "Model | FileModel") -> dict[str, str]:
    """Text files that an app ships beside the model, by name; their bytes count for the budget."""
    files = {}
    if isinstance(model.preprocessor, TextPreprocessor):
        tokenizer = json.loads(model.preprocessor.tokenizer_json)
        files[TOKENIZER] = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    if isinstance(model.preprocessor, NgramPreprocessor):
        files[NGRAMS] = "\n".join(model.preprocessor.ngrams) + "\n"
    if isinstance(model.preprocessor, TextReader):
        limits = {"max_length": model.preprocessor.max_length, "pad_id": model.preprocessor.pad_id}
        files[PREPROCESSOR] = json.dumps(limits, separators=(",", ":"))
    if isinstance(model.preprocessor, ImagePreprocessor):
        files[PREPROCESSOR] = json.dumps(asdict(model.preprocessor), separators=(",", ":"))
    if model.labels:
        files[LABELS] = json.dumps(list(model.labels), ensure_ascii=False, separators=(",", ":"))
    return files


def _explain_ngrams() -> str:
    """How an app makes ids, with the code that makes them here."""
    import inspect

    from edgekit import ngrams

    parts = (ngrams.split_words, ngrams.ngrams, ngrams.ngram_ids)
    return _NGRAMS.replace("CODE", "\n\n".join(inspect.getsource(part) for part in parts))


def check_output(folder: Path, *, model: str, overwrite: bool) -> None:
    """Raise OutputError unless the folder may be written (rules 1 and 2)."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another folder with --output")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / MANIFEST).is_file():
            raise OutputError(
                f"{folder} holds files that edgekit did not write; choose another --output"
            )
        try:
            other = read_manifest(folder).model.reference
        except BundleError:
            other = model  # a damaged bundle of ours: writing it again is the mend
        if other != model and not overwrite:
            raise OutputError(
                f"{folder} holds a bundle of {other}; choose another --output, or --overwrite"
            )
    parent = next(path for path in [folder, *folder.absolute().parents] if path.is_dir())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write to {parent}; choose another --output")


def write_bundle(
    folder: Path,
    *,
    target: Target,
    artifacts: Sequence[Artifact],
    files: Mapping[str, str],
    golden: Mapping[str, Any],
    evidence: Evidence,
    manifest: Manifest,
    packed: Mapping[str, Path],
) -> Manifest:
    """Write all of it; the manifest with its files listed. Raises OutputError.

    packed: of an artifact's file by its name, the one that is written instead.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for artifact in artifacts:
            source = packed.get(artifact.path.name, artifact.path)
            shutil.copyfile(source, partial / source.name)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
        write_golden(golden, partial)
        (partial / EVIDENCE).write_text(evidence_text(evidence), encoding="utf-8")
        text = _readme(target, artifacts, manifest, tokens=TOKENIZER in files)
        text += (_EXPAND if packed else "") + (_explain_ngrams() if NGRAMS in files else "")
        (partial / README).write_text(text, encoding="utf-8")
        complete = manifest.model_copy(update={"files": _entries(partial)})
        write_manifest(complete, partial)
        _replace(partial, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}; nothing was left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return complete


def check_new(folder: Path) -> None:
    """Raise OutputError when there is something in the folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"{folder} is there already; choose a new folder")


def copy_folder(source: Path, folder: Path) -> None:
    """Copy a folder to a new place, where it appears when it is whole. Raises OutputError."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial)
        partial.replace(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}; nothing was left there"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _entries(folder: Path) -> list[FileEntry]:
    entries = []
    for path in sorted(folder.iterdir()):
        role, shipped = _ROLES.get(path.name, ("model", True))
        entries.append(
            FileEntry(
                path=path.name,
                bytes=path.stat().st_size,
                sha256=sha256(path),
                role=role,
                shipped=shipped,
            )
        )
    return entries


def _replace(partial: Path, folder: Path) -> None:
    """Put the new folder in the old one's place, which goes only when the new one is there."""
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _readme(
    target: Target, artifacts: Sequence[Artifact], manifest: Manifest, *, tokens: bool
) -> str:
    """The target's README with the names of this bundle filled in; ``tokens``: there are any."""
    artifact = artifacts[0]
    template = (target.folder / "README.md").read_text(encoding="utf-8")
    if not tokens:
        # The code in it feeds tokens; for anything else the names and shapes are all there is.
        shapes = ", ".join(f"`{t.name}` {t.dtype} {list(t.shape)}" for t in artifact.inputs)
        template = template.partition("```")[0] + f"Feed {shapes}.\n"
    elif len(artifact.lengths) > 1 and "serving_default" in template:
        # The code in it is for a file that takes any length.
        template += (
            "\nThis file has fixed lengths instead: pad ids and mask with zeros to the smallest N "
            "of $lengths that fits, and call its signature, length_N.\n"
        )
    return string.Template(template).safe_substitute(
        model=manifest.model.reference,
        file=artifact.path.name,
        inputs=", ".join(tensor.name for tensor in artifact.inputs),
        output=artifact.outputs[0].name,
        lengths=", ".join(str(length) for length in artifact.lengths) or "any",
        runtime=f"{target.runtime.package} {target.runtime.oldest} or later",
    )
