"""The bundle folder of a target, of what the stages before it found."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edgekit import __version__
from edgekit.budget import Verdict
from edgekit.plan.propose import Plan
from edgekit.stages.compress import Compressed
from edgekit.stages.export import Exported
from edgekit.stages.prove import Proof
from edgekit.store import versions
from edgekit.target import Target
from edgekit.workbench import Workbench


def bundle(
    work: Workbench,
    plan: Plan,
    compressed: Compressed,
    target: Target,
    made: Sequence[tuple[Exported, Proof]],
    shipped: int,
    verdict: Verdict,
    folder: Path,
) -> None:
    """Write the bundle folder. Raises OutputError."""
    from edgekit.bundle.evidence import Evidence, Prediction
    from edgekit.bundle.manifest import Manifest, ManifestModel, ModelFile
    from edgekit.bundle.write import write_bundle
    from edgekit.measure.evidence import FileEvidence, StageScore

    settings = work.settings
    predicted = next(p for p in plan.predicted if p.target == target.name)
    manifest = Manifest(
        edgekit=__version__,
        target=target.name,
        runtime=asdict(target.runtime),
        parity=asdict(target.parity),
        model=ManifestModel(
            reference=settings.model, digest=work.source.digest, **compressed.facts
        ),
        files=[],
        models=[
            ModelFile(
                **exported.artifact.to_json(),
                packed=None if exported.packed is None else exported.packed.name,
                predicted_bytes=predicted.models.get(exported.artifact.format),
                proof=dict(proof.record),
            )
            for exported, proof in made
        ],
        shipped_bytes=shipped,
        download_bytes=compressed.app_download_bytes
        + sum(proof.record["deflated_bytes"] for _, proof in made),
        budget=settings.budget.to_json(),
        verdict=verdict.to_json(),
        notes=list(plan.notes),
        settings=settings.to_json(),
        versions=versions(),
    )
    evidence = Evidence(
        original_bytes=plan.original_bytes,
        steps=[str(step) for step in plan.steps],
        asked=[str(step) for step in settings.steps],
        lengths=list(plan.lengths),
        predicted=Prediction(
            scheme=predicted.scheme,
            models={str(k): v for k, v in predicted.models.items()},
            beside=predicted.beside,
        ),
        sample=compressed.scored["rows"],
        stages=[StageScore(**score) for score in compressed.scored["scores"]],
        files={
            exported.artifact.path.name: FileEvidence.model_validate(proof.evidence)
            for exported, proof in made
        },
    )
    golden = dict(made[0][1].golden)
    for _, proof in made[1:]:
        golden["tolerance"] |= proof.golden["tolerance"]
        for row, other in zip(golden["rows"], proof.golden["rows"]):
            row["outputs"] |= other["outputs"]
    with work.store.lock(str(folder.absolute())):
        write_bundle(
            folder,
            target=target,
            artifacts=[exported.artifact for exported, _ in made],
            packed={
                exported.artifact.path.name: exported.packed
                for exported, _ in made
                if exported.packed is not None
            },
            files=compressed.app_files,
            golden=golden,
            evidence=evidence,
            manifest=manifest,
        )
