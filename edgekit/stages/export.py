"""Files of the model, one for each format of a target."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.artifact import Artifact, Format
from edgekit.plan.propose import Plan
from edgekit.stages.compress import Compressed
from edgekit.stages.stage import read_record, run_stage
from edgekit.store import Entry
from edgekit.target import Target
from edgekit.workbench import Workbench


@dataclass(frozen=True)
class Exported:
    """A file in the store, and the float32 file of the same graphs where there is one."""

    artifact: Artifact
    entry: Entry

    @property
    def plain(self) -> Artifact | None:
        path = self.entry.path / "float32" / self.artifact.path.name
        return replace(self.artifact, path=path, scheme="fp32") if path.is_file() else None

    @property
    def packed(self) -> Path | None:
        """What an app ships instead, to be expanded by it, where weights are sparse."""
        from edgekit.export.tflite_packed import SUFFIX

        path = self.entry.path / "packed" / (self.artifact.path.name + SUFFIX)
        return path if path.is_file() else None

    @property
    def shipped_bytes(self) -> int:
        return self.artifact.bytes if self.packed is None else self.packed.stat().st_size


def export(
    work: Workbench, plan: Plan, compressed: Compressed, target: Target, format: Format
) -> Exported:
    """Write the model in one format with the target's scheme."""
    scheme = work.settings.scheme or target.scheme
    lengths = plan.lengths if format == "tflite" else ()
    any_length = format == "tflite" and plan.any_length(scheme)
    inputs = {
        "model": compressed.entry.key,
        "format": format,
        "scheme": scheme,
        "lengths": list(lengths),
        "any_length": any_length,
        "bits": target.weight_bits,
        "integer_ends": target.integer_ends,
    }

    def produce(folder: Path) -> None:
        from edgekit.export import export_artifact
        from edgekit.export.tflite_packed import pack_tflite

        beside = None if scheme == "fp32" else folder / "float32"
        artifact = export_artifact(
            compressed.model,
            folder,
            format,
            scheme,
            lengths,
            any_length,
            beside,
            target.weight_bits,
            target.integer_ends,
        )
        if format == "tflite":
            pack_tflite(artifact.path, folder / "packed")
        (folder / "artifact.json").write_text(json.dumps(artifact.to_json()))

    entry = run_stage(work, "export", f"writing {format} {scheme}", inputs, produce)
    artifact = read_record(entry.path / "artifact.json")
    return Exported(Artifact.from_json(entry.path, artifact), entry)
