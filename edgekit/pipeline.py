"""The main job, top to bottom: a checkpoint in, a verified bundle for each target out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.budget import Outcome, Verdict, judge
from edgekit.bundle.write import check_new, check_output, copy_folder
from edgekit.devices.device import Device, open_device, ready
from edgekit.errors import BudgetError, UsageError
from edgekit.events import Event, silent
from edgekit.launch import read_launcher
from edgekit.plan.propose import Plan
from edgekit.project import Settings
from edgekit.reports.write import NAMES, check_place
from edgekit.stages.answers import Answers, answer_originally
from edgekit.stages.bundle import bundle
from edgekit.stages.compress import Compressed, compress
from edgekit.stages.export import Exported, export
from edgekit.stages.plan import make_plan
from edgekit.stages.prove import Proof, prove, prove_elsewhere
from edgekit.stages.report import report
from edgekit.store import Store
from edgekit.target import Target, load_target
from edgekit.workbench import Workbench, open_workbench

REPORT = NAMES["html"]


@dataclass(frozen=True)
class BundleResult:
    """One target's bundle. ``figures`` holds the record of each model file by its name."""

    target: str
    path: Path
    shipped_bytes: int
    figures: Mapping[str, Any]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "path": str(self.path),
            "shipped_bytes": self.shipped_bytes,
            "figures": dict(self.figures),
            "verdict": self.verdict.to_json(),
        }


@dataclass(frozen=True)
class BuildResult:
    """What a build did: its plan, a bundle for each target and their report (none on a dry run)."""

    plan: Plan
    bundles: tuple[BundleResult, ...]
    report: Path | None = None

    @property
    def outcome(self) -> Outcome:
        outcomes = {bundle.verdict.outcome for bundle in self.bundles}
        if "fail" in outcomes:
            return "fail"
        return "inconclusive" if "inconclusive" in outcomes else "pass"

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "plan": self.plan.to_json(),
            "bundles": [bundle.to_json() for bundle in self.bundles],
            "report": None if self.report is None else str(self.report),
        }


def build(
    settings: Settings,
    *,
    save_model: Path | None = None,
    launch: str | None = None,
    tensorboard: Path | None = None,
    dry_run: bool = False,
    on_event: Callable[[Event], None] = silent,
) -> BuildResult:
    """Build a bundle for each target of the settings.

    save_model: a new folder for the model that the steps made, as a checkpoint. launch: what runs
    the steps as several processes, ``torchrun …`` or ``accelerate launch …``. tensorboard: a
    folder for the curves of what learns.

    Raises an EdgekitError for input that cannot be used (nothing is written then), BudgetError
    when no plan fits the size limit, ProofError when a file does not do what the original does.
    A budget that the measured figures break is a verdict in the result, not an error.
    """
    targets = [load_target(name) for name in settings.targets]
    for target in targets:
        check_output(_folder(settings, target), model=settings.model, overwrite=settings.overwrite)
    check_place(settings.output / REPORT)
    if save_model is not None:
        check_new(save_model)
    launcher = () if launch is None else read_launcher(launch)

    devices = [ready(name) for name in settings.devices]
    work = open_workbench(settings, Store(), on_event)
    plan = make_plan(work, targets)
    on_event(Event("plan", "plan", plan.text()))
    if plan.misfit is not None:
        raise BudgetError(plan.misfit)
    if dry_run:
        return BuildResult(plan, ())

    if save_model is not None and not plan.steps:
        raise UsageError("no step changes this model, so there is none to save; add a --step")
    compressed = compress(work, plan, launcher=launcher, tensorboard=tensorboard)
    if save_model is not None:
        copy_folder(compressed.checkpoint, save_model)
    # Converters need the most memory, so they run before anything else has taken some.
    exported = {
        target.name: [
            export(work, plan, compressed, target, format)
            for format in settings.formats or target.formats
        ]
        for target in targets
    }
    answers = answer_originally(work)
    bundles = []
    for target in targets:
        made = [
            (each, _prove(work, compressed, answers, each, target, devices))
            for each in exported[target.name]
        ]
        bundles.append(_finish(work, plan, compressed, target, made))
    place = settings.output / REPORT
    report(work, [each.path for each in bundles], place)
    return BuildResult(plan, tuple(bundles), place)


def _prove(
    work: Workbench,
    compressed: Compressed,
    answers: Answers,
    exported: Exported,
    target: Target,
    devices: Sequence[Device],
) -> Proof:
    """Prove a file here, and on every other device that the settings or the target ask for."""
    proof = prove(work, compressed, answers, exported, target)
    if target.instruction_set == "gpu":
        delegate = open_device("gpu-delegate")
        missing = delegate.missing()
        devices = [*devices, *([delegate] if missing is None else [])]
        if missing is not None:
            text = f"not proven: that the GPU takes every operator ({delegate.name}: {missing})"
            work.on_event(Event("note", "prove", text))
    for device in devices:
        if exported.artifact.format in device.formats:
            proof = prove_elsewhere(work, compressed, exported, proof, target, device)
    return proof


def _finish(
    work: Workbench,
    plan: Plan,
    compressed: Compressed,
    target: Target,
    made: Sequence[tuple[Exported, Proof]],
) -> BundleResult:
    """Judge what was measured, and write the bundle with the verdict in it."""
    shipped = compressed.app_bytes + sum(exported.shipped_bytes for exported, _ in made)
    verdict = judge(
        work.settings.budget,
        size=shipped,
        latency=max(proof.latency for _, proof in made),
        memory=max((p.memory for _, p in made if p.memory is not None), default=None),
        accuracy_drop=max((p.drop for _, p in made if p.drop is not None), default=None),
    )
    folder = _folder(work.settings, target)
    bundle(work, plan, compressed, target, made, shipped, verdict, folder)
    return BundleResult(
        target=target.name,
        path=folder,
        shipped_bytes=shipped,
        figures={exported.artifact.path.name: proof.record for exported, proof in made},
        verdict=verdict,
    )


def _folder(settings: Settings, target: Target) -> Path:
    return settings.output / target.name
