"""Several tasks on one base in one folder: what their model files have in common, once.

Rules:

1. Each bundle is of the same target, holds an ONNX file, and has the same tokenizer.
2. A tensor of 1 KiB or more that stands in two of the files byte for byte goes to ``weights.bin``,
   and they refer to it there (ONNX external data, which every ONNX Runtime reads from the file's
   own folder). Models that differ in biases and head share all else, quantized or not.
3. Each file is run beside the one that it was made of on the bundle's golden rows: the answers are
   the same to the bit, or nothing is written.
4. ``tasks.json`` says for each task its model file, labels and digest.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.artifact import sha256
from edgekit.bundle.golden import read_golden
from edgekit.bundle.manifest import Manifest, ModelFile, check_files, read_manifest
from edgekit.bundle.write import LABELS, PREPROCESSOR, TOKENIZER, check_new, copy_folder
from edgekit.errors import ProofError, UsageError
from edgekit.store import folder_bytes

WEIGHTS = "weights.bin"
TASKS = "tasks.json"
_LEAST = 1024
# Where a page begins, so that a runtime can map the file.
_PAGE = 4096


@dataclass(frozen=True)
class Joined:
    """bytes: of the folder; apart: of the same files before, with a tokenizer each."""

    path: Path
    bytes: int
    apart: int


def join(bundles: Mapping[str, Path], output: Path) -> Joined:
    """Write the bundles' models, by the names of their tasks, into the new folder ``output``.

    Raises UsageError for bundles that do not go together, BundleError for a damaged one, and
    ProofError when a file answers otherwise than before.
    """
    check_new(output)
    if len(bundles) < 2:
        raise UsageError("one bundle has nothing to share; name two or more, as task=BUNDLE")
    manifests = {name: read_manifest(folder) for name, folder in bundles.items()}
    entries = {name: _model(bundles[name], manifests[name]) for name in bundles}
    for name, folder in bundles.items():
        check_files(folder, manifests[name])
    first, *others = bundles
    shared = [file for file in (TOKENIZER, PREPROCESSOR) if (bundles[first] / file).is_file()]
    for other in others:
        for file in shared:
            if (bundles[other] / file).read_bytes() != (bundles[first] / file).read_bytes():
                raise UsageError(f"{bundles[other]} has another {file} than {bundles[first]}")
        if manifests[other].target != manifests[first].target:
            raise UsageError(f"{bundles[other]} is for another target than {bundles[first]}")
    with tempfile.TemporaryDirectory() as scratch:
        _fill(Path(scratch), bundles, manifests, entries, shared)
        copy_folder(Path(scratch), output)
    apart = sum(
        (bundles[name] / file).stat().st_size
        for name in bundles
        for file in (entries[name].file, LABELS, *shared)
        if (bundles[name] / file).is_file()
    )
    return Joined(output, folder_bytes(output), apart)


def _fill(
    folder: Path,
    bundles: Mapping[str, Path],
    manifests: Mapping[str, Manifest],
    entries: Mapping[str, ModelFile],
    shared: Sequence[str],
) -> None:
    """Everything that ``output`` will hold."""
    first = next(iter(bundles))
    _write_models({name: bundles[name] / entries[name].file for name in bundles}, folder)
    for file in shared:
        shutil.copyfile(bundles[first] / file, folder / file)
    tasks = {}
    for name in bundles:
        _hold(bundles[name], entries[name], folder / f"{name}.onnx")
        labels = manifests[name].model.labels
        tasks[name] = {"model": f"{name}.onnx", "labels": labels}
        tasks[name]["sha256"] = sha256(folder / f"{name}.onnx")
    document = {
        "target": manifests[first].target,
        "weights": {"file": WEIGHTS, "sha256": sha256(folder / WEIGHTS)},
        "tasks": tasks,
    }
    (folder / TASKS).write_text(
        json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def _model(folder: Path, manifest: Manifest) -> ModelFile:
    for entry in manifest.models:
        if entry.format == "onnx":
            return entry
    raise UsageError(f"{folder} holds no ONNX file, and only those can share weights")


def _write_models(files: Mapping[str, Path], folder: Path) -> None:
    """Rule 2."""
    import onnx
    from onnx import TensorProto, numpy_helper

    models = {name: onnx.load(path) for name, path in files.items()}
    held: Counter[bytes] = Counter()
    for model in models.values():
        for tensor in model.graph.initializer:
            if not tensor.raw_data:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        held.update({bytes(tensor.raw_data) for tensor in model.graph.initializer})
    places: dict[bytes, int] = {}
    with (folder / WEIGHTS).open("wb") as stream:
        for name, model in models.items():
            for tensor in model.graph.initializer:
                data = bytes(tensor.raw_data)
                if len(data) < _LEAST or held[data] < 2:
                    continue
                if data not in places:
                    stream.write(bytes(-stream.tell() % _PAGE))
                    places[data] = stream.tell()
                    stream.write(data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                said = {"location": WEIGHTS, "offset": places[data], "length": len(data)}
                for key, value in said.items():
                    tensor.external_data.add(key=key, value=str(value))
            (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    if not places:
        raise UsageError("these bundles have no weights in common; build them of one base")


def _hold(bundle: Path, entry: ModelFile, joined: Path) -> None:
    """Rule 3."""
    import onnxruntime

    kinds = {tensor.name: np.dtype(tensor.dtype) for tensor in entry.inputs}
    before, after = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for path in (bundle / entry.file, joined)
    )
    for row in read_golden(bundle)["rows"]:
        feed = {name: np.asarray([row["inputs"][name]], kind) for name, kind in kinds.items()}
        if not np.array_equal(before.run(None, feed)[0], after.run(None, feed)[0]):
            raise ProofError(f"{joined.name} answers otherwise than its bundle; a bug of edgekit")


def read_names(texts: list[str]) -> dict[str, Path]:
    """``intents=dist-a/linux-x86_64`` and so on. Raises UsageError."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not name.replace("-", "").replace("_", "").isalnum() or name in found:
            raise UsageError(
                f"'{text}' names no task; write intents=dist/linux-x86_64, each name once, of "
                "letters, digits, - and _"
            )
        found[name] = Path(folder)
    return found
