"""What reports are about: bundles, held against their digests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle.evidence import Evidence, read_evidence
from edgekit.bundle.manifest import FILE, Manifest, ModelFile, read_manifest
from edgekit.bundle.verify import check_files
from edgekit.errors import BundleError
from edgekit.measure.evidence import FileEvidence


@dataclass(frozen=True)
class Subject:
    """A bundle. ``evidence`` is none in one from before there were reports."""

    folder: Path
    manifest: Manifest
    evidence: Evidence | None

    @property
    def files(self) -> "Iterator[SubjectFile]":
        for model in self.manifest.models:
            seen = None if self.evidence is None else self.evidence.files.get(model.file)
            yield SubjectFile(self, model, seen)


@dataclass(frozen=True)
class SubjectFile:
    """One model file of a bundle."""

    subject: Subject
    model: ModelFile
    evidence: FileEvidence | None

    @property
    def name(self) -> str:
        """The target, with the file's name where it is not the only one."""
        alone = len(self.subject.manifest.models) == 1
        target = self.subject.manifest.target
        return target if alone else f"{target} {self.model.file}"


def read_subjects(paths: Sequence[Path]) -> list[Subject]:
    """Bundles, or folders of them, each bundle once.

    Raises BundleError for what is none, is damaged, or does not match its digests.
    """
    folders = dict.fromkeys(folder for path in paths for folder in _bundles(path))
    return [_read(folder) for folder in folders]


def _bundles(path: Path) -> list[Path]:
    if (path / FILE).is_file():
        return [path]
    found = sorted(manifest.parent for manifest in path.glob(f"*/{FILE}"))
    if not found:
        raise BundleError(
            f"{path} is not a bundle and holds none; name folders that edgekit build wrote, such "
            "as dist/android-arm64"
        )
    return found


def _read(folder: Path) -> Subject:
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    return Subject(folder, manifest, read_evidence(folder))
