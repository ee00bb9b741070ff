"""Where the outputs of stages are kept, by what went into them.

A stage is a name, its inputs and a function that fills a folder. The key is the digest of the
name, the inputs, the seed, edgekit's own source and the versions of the libraries that decide
the outcome; so the same inputs find the same folder, and a change of anything makes another.

Rules:

1. A folder appears under its key by one rename, after everything in it is written. A build
   killed at any moment leaves at most a ``.partial`` folder, which the next one clears.
2. One lock per key: two builds at once make a stage once, and both use it.
3. Each entry carries the digest of each of its files; an entry that does not match is
   thrown away and made again.
4. Entries that nobody used for long are pruned first (``prune``).
5. A stage that takes long may keep a scratch folder (``scratch``): a killed build finds it again
   under the same key, and it goes when the stage is done.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import sha256
from edgekit.errors import OutputError

# Libraries whose version can change what a stage writes.
_DECISIVE = (
    "torch",
    "transformers",
    "tokenizers",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "numpy",
    "scikit-learn",
    "neural-compressor-pt",
    "torch-pruning",
)
_RECORD = "entry.json"


@dataclass(frozen=True)
class Entry:
    """One finished stage: its folder, its key, and whether it was already there."""

    name: str
    key: str
    path: Path
    reused: bool


def cache_folder() -> Path:
    """``$EDGEKIT_CACHE``, or edgekit's folder in the user's cache."""
    chosen = os.environ.get("EDGEKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("edgekit"))


class Store:
    """The entries under one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder()

    def stage(
        self,
        name: str,
        inputs: Mapping[str, Any],
        produce: Callable[[Path], None],
    ) -> Entry:
        """The entry for these inputs, made by ``produce(folder)`` if it is not there yet.

        ``inputs`` is JSON-able and holds all that decides the outcome: options, digests and
        keys of earlier entries. Raises OutputError when the store cannot be written.
        """
        key = self.key(name, inputs)
        home = self._home(name, key)
        if _intact(home):
            os.utime(home / _RECORD)
            return Entry(name, key, home, reused=True)
        import filelock

        self._prepare(home.parent)
        with filelock.FileLock(str(home) + ".lock"):
            if _intact(home):
                return Entry(name, key, home, reused=True)
            shutil.rmtree(home, ignore_errors=True)
            for leftover in home.parent.glob(f"{key}.*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=f"{key}.", suffix=".partial", dir=home.parent))
            try:
                produce(partial)
                _seal(partial, name, inputs)
                partial.rename(home)
                shutil.rmtree(_scratch(home), ignore_errors=True)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return Entry(name, key, home, reused=False)

    def scratch(self, name: str, inputs: Mapping[str, Any]) -> Path:
        """The scratch folder of a stage, made if it is not there; for its ``produce`` alone.

        What is in it when a build is killed is there for the next one with the same inputs.
        """
        folder = _scratch(self._home(name, self.key(name, inputs)))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _home(self, name: str, key: str) -> Path:
        return self.folder / name / key[:2] / key

    def _prepare(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise OutputError(
                f"cannot write to the cache {self.folder}: {error.strerror or error}; free some "
                "space there or set EDGEKIT_CACHE to another folder"
            ) from None

    def key(self, name: str, inputs: Mapping[str, Any]) -> str:
        """The key under which ``stage(name, inputs, …)`` keeps its output."""
        text = json.dumps(
            {"stage": name, "inputs": inputs, "code": _source_digest(), "versions": versions()},
            sort_keys=True,
        )
        return hashlib.sha256(text.encode()).hexdigest()

    @contextlib.contextmanager
    def lock(self, what: str) -> Iterator[None]:
        """Hold the lock of that name against other builds on this machine."""
        import filelock

        name = hashlib.sha256(what.encode()).hexdigest()
        self._prepare(self.folder / "locks")
        with filelock.FileLock(self.folder / "locks" / f"{name}.lock"):
            yield

    def entries(self) -> Iterator[Entry]:
        """Every finished entry, in no particular order."""
        for record in self.folder.glob(f"*/*/*/{_RECORD}"):
            home = record.parent
            yield Entry(home.parent.parent.name, home.name, home, reused=True)

    def prune(self, older_than: float) -> int:
        """Remove entries, and leftovers of killed builds, that nobody used for ``older_than``
        seconds; the bytes that this freed."""
        freed = 0
        limit = time.time() - older_than
        for entry in list(self.entries()):
            if (entry.path / _RECORD).stat().st_mtime <= limit:
                freed += folder_bytes(entry.path)
                shutil.rmtree(entry.path, ignore_errors=True)
                Path(str(entry.path) + ".lock").unlink(missing_ok=True)
        leftovers = (*self.folder.glob("*/*/*.partial"), *self.folder.glob("*/*/*.scratch"))
        for leftover in leftovers:
            if leftover.stat().st_mtime <= limit:
                freed += folder_bytes(leftover)
                shutil.rmtree(leftover, ignore_errors=True)
        return freed


def _scratch(home: Path) -> Path:
    return home.with_name(home.name + ".scratch")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide what a stage writes."""
    found = {}
    for package in _DECISIVE:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _source_digest() -> str:
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        # The command line and what people read cannot change what a stage writes.
        if path.relative_to(package).parts[0] in ("cli", "gating", "reports"):
            continue
        digest.update(str(path.relative_to(package)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _seal(folder: Path, name: str, inputs: Mapping[str, Any]) -> None:
    files = {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    record = {"stage": name, "inputs": inputs, "files": files}
    (folder / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True))


def _intact(home: Path) -> bool:
    try:
        files = json.loads((home / _RECORD).read_text())["files"]
        return all(sha256(home / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
