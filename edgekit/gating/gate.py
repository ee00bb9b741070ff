"""The gate, top to bottom: bundles in, a verdict with its reasons out."""

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.budget import Outcome
from edgekit.bundle.manifest import FILE as MANIFEST
from edgekit.bundle.manifest import check_files, read_manifest
from edgekit.errors import BundleError, DeviceError, ProjectError, UsageError
from edgekit.events import Event, silent
from edgekit.gating.baseline import baseline_at, read_baseline, write_baseline
from edgekit.gating.figures import FIGURES, BundleFigures, figures_of, printable
from edgekit.gating.judge import Compare, judge_bundle
from edgekit.gating.rules import Policy, Rule, Rules, read_rules
from edgekit.gating.subject import Finding
from edgekit.toml import read_fields

if TYPE_CHECKING:
    from edgekit.devices.device import Device
    from edgekit.measure.compare import Comparison

PROJECT = "edgekit.toml"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files are what its manifest says, with its figures."""

    path: Path
    target: str
    figures: BundleFigures


@dataclass(frozen=True)
class GateResult:
    """What was judged. against: which baseline, in words; ``None`` when no rule needed one.

    policy: what an inconclusive verdict counts as. rules: the file they are in.
    """

    bundles: tuple[Bundle, ...]
    findings: tuple[Finding, ...]
    against: str | None
    rules: Path
    policy: Policy

    @property
    def outcome(self) -> Outcome:
        """The worst of the findings; ``policy`` decides for those that are inconclusive."""
        found = {
            self.policy if each.outcome == "inconclusive" else each.outcome
            for each in self.findings
        }
        if "fail" in found:
            return "fail"
        return "inconclusive" if "inconclusive" in found else "pass"

    def count(self, outcome: str) -> int:
        """How many findings came out so."""
        return sum(each.outcome == outcome for each in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "against": self.against,
            "bundles": {bundle.target: str(bundle.path) for bundle in self.bundles},
            "findings": [finding.to_json() for finding in self.findings],
        }


def gate(
    paths: Sequence[Path],
    *,
    project: Path,
    baseline: Path,
    reference: str | None = None,
    against: Path | None = None,
    device: str = "host",
    seconds: float = 10.0,
    on_event: Callable[[Event], None] = silent,
) -> GateResult:
    """Judge bundles by the rules of a project file.

    paths: bundles, or folders of them; none stand for the project's output folder. reference: a
    git reference, at whose merge base with HEAD the baseline is read. against: the base's
    bundles, to run files beside; device: the name of where; seconds: for each file.
    Raises an EdgekitError for what cannot be judged.
    """
    timer = _timer(device, against)
    bundles = read_bundles(paths, project)
    rules = read_rules(project, [bundle.target for bundle in bundles], datetime.date.today())
    before: Mapping[str, BundleFigures] = {}
    where = None
    if any(rule.of_baseline and rule.figure.name != "latency" for rule in _used(rules, bundles)):
        if reference is None:
            before, where = read_baseline(baseline).bundles, str(baseline)
        else:
            found, where = baseline_at(baseline, reference)
            before = found.bundles
    beside = [] if against is None else read_bundles([against], project)
    bases = {each.target: each for each in beside}
    findings: list[Finding] = []
    for bundle in bundles:
        base = bases.get(bundle.target)
        compare = _comparing(bundle, base, timer, seconds, on_event)
        figures = before.get(bundle.target)
        findings += judge_bundle(bundle.target, bundle.figures, figures, rules, compare)
    return GateResult(tuple(bundles), tuple(findings), where, project, rules.inconclusive)


@dataclass(frozen=True)
class Change:
    """A figure that moved with an update; ``before`` is empty where it is new."""

    figure: str
    where: str
    before: str
    now: str


@dataclass(frozen=True)
class Update:
    """What became the baseline, and which figures moved."""

    bundles: tuple[Bundle, ...]
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "bundles": {bundle.target: str(bundle.path) for bundle in self.bundles},
            "changes": [vars(change) for change in self.changes],
        }


def update(paths: Sequence[Path], *, project: Path, baseline: Path) -> Update:
    """Make the figures of these bundles the baseline. Raises an EdgekitError."""
    bundles = read_bundles(paths, project)
    before = write_baseline(baseline, {bundle.target: bundle.figures for bundle in bundles})
    changes = [
        change for bundle in bundles for change in _changes(bundle, before.get(bundle.target))
    ]
    return Update(tuple(bundles), tuple(changes))


def _changes(bundle: Bundle, before: BundleFigures | None) -> Iterator[Change]:
    for figure in FIGURES.values():
        if figure.name == "latency":
            continue
        for name in bundle.figures.files if figure.of_files else (None,):
            file = None if name is None else bundle.figures.files[name]
            old_file = None if name is None or before is None else before.files.get(name)
            now = figure.read(bundle.figures, file)
            old = None if before is None else figure.read(before, old_file)
            if now != old and not (now == 0 and old is None):
                where = bundle.target if name is None else f"{bundle.target} {name}"
                shown = ["" if each is None else figure.show(each) for each in (old, now)]
                yield Change(figure.name, where, *shown)


def read_bundles(paths: Sequence[Path], project: Path) -> list[Bundle]:
    """The bundles at these places, each file of them checked against its digest.

    Raises BundleError for a damaged one or none, UsageError for two of one target.
    """
    bundles: dict[str, Bundle] = {}
    for path in paths or [_output(project)]:
        for folder in _folders(path):
            manifest = read_manifest(folder)
            check_files(folder, manifest)
            target = printable(manifest.target)
            if target in bundles:
                raise UsageError(
                    f"{bundles[target].path} and {folder} are both for {target}; gate one of them"
                )
            bundles[target] = Bundle(folder, target, figures_of(manifest, folder))
    return list(bundles.values())


def _used(rules: Rules, bundles: Sequence[Bundle]) -> list[Rule]:
    return [rule for bundle in bundles for rule in rules.of(bundle.target)]


def _folders(path: Path) -> list[Path]:
    """The bundle at ``path``, or those in it."""
    if (path / MANIFEST).is_file():
        return [path]
    found = sorted(each.parent for each in path.glob(f"*/{MANIFEST}")) if path.is_dir() else []
    if not found:
        raise BundleError(f"{path} holds no bundle; write one with: edgekit build")
    return found


def _output(project: Path) -> Path:
    """Where the project's bundles are."""
    fields = read_fields(project, ProjectError)[0] if project.is_file() else {}
    output = fields.get("output", "dist")
    return project.parent / (output if isinstance(output, str) else "dist")


def _timer(name: str, against: Path | None) -> "Device | None":
    """The device that runs files beside their base, if there is one. Raises UsageError."""
    if against is None:
        if name != "host":
            raise UsageError("--device: runs bundles beside others; give those with --against")
        return None
    from edgekit.devices.device import open_device, ready

    if not open_device(name).timed:
        raise UsageError(f"--device: times of {name} mean nothing, so they gate nothing; use host")
    return ready(name)


def _comparing(
    bundle: Bundle,
    base: Bundle | None,
    device: "Device | None",
    seconds: float,
    on_event: Callable[[Event], None],
) -> Compare:
    """How a file of the bundle is run beside the base's."""

    def compare(name: str) -> "Comparison | Literal['same'] | None":
        if base is None or device is None:
            return None
        if (base.figures.model, base.figures.task) != (bundle.figures.model, bundle.figures.task):
            raise UsageError(
                f"--against: {base.path} is of {base.figures.model}, {bundle.path} of "
                f"{bundle.figures.model}; give bundles of the same model"
            )
        if name not in base.figures.files:
            raise UsageError(f"--against: {base.path} holds no {name}; build that format there too")
        if base.figures.files[name].sha256 == bundle.figures.files[name].sha256:
            return "same"
        from edgekit.bundle.bench import bench

        try:
            found = bench(
                bundle.path / name,
                against=base.path / name,
                devices=[device],
                # Which gives a comparison twice of it.
                seconds=seconds / 2,
                on_event=on_event,
            )
        except DeviceError as error:
            raise DeviceError(f"latency of {bundle.target} is not known: {error}") from error
        return found.comparison

    return compare
