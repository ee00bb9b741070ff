"""What reports are about: bundles, held against their digests."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from edgekit.bundle.evidence import Evidence, read_evidence
from edgekit.bundle.manifest import FILE, Manifest, ModelFile, check_files, read_manifest
from edgekit.errors import BundleError
from edgekit.measure.evidence import FileEvidence
from edgekit.reports.proof import Proof, Settings, Verdict


@dataclass(frozen=True)
class Subject:
    """A bundle. ``evidence`` is none in one from before there were reports."""

    folder: Path
    manifest: Manifest
    evidence: Evidence | None
    verdict: Verdict
    settings: Settings
    proofs: tuple[Proof, ...]

    @property
    def files(self) -> "list[SubjectFile]":
        seen = {} if self.evidence is None else self.evidence.files
        return [
            SubjectFile(self, model, proof, seen.get(model.file))
            for model, proof in zip(self.manifest.models, self.proofs, strict=True)
        ]


@dataclass(frozen=True)
class SubjectFile:
    """One model file of a bundle."""

    subject: Subject
    model: ModelFile
    proof: Proof
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
    listed = {entry.path for entry in manifest.files}
    if not manifest.models or {each.packed or each.file for each in manifest.models} - listed:
        raise BundleError(f"{folder / FILE} lists no model file, or lacks one; build it again")
    try:
        return Subject(
            folder,
            manifest,
            read_evidence(folder),
            Verdict.model_validate(manifest.verdict),
            Settings.model_validate(manifest.settings),
            tuple(Proof.model_validate(model.proof) for model in manifest.models),
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}"
        raise BundleError(
            f"{folder / FILE} does not hold what a report shows ({what}); build the bundle again"
        ) from None
