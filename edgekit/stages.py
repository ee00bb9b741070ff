"""The stages of a build: each finds its output in the store, or makes it there.

A stage's key holds the keys of what it is made from, never their content, so that a build with
nothing changed loads no model and no runtime. The heavy work is in the rooms that these call.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgekit import __version__
from edgekit.artifact import STATIC, Artifact, Format
from edgekit.budget import Verdict
from edgekit.data import identify_data
from edgekit.errors import ProofError
from edgekit.events import Event, Sink
from edgekit.plan.propose import Plan
from edgekit.project import Settings
from edgekit.recipe import StepSpec, paths_in
from edgekit.store import Entry, Store, versions
from edgekit.target import Target
from edgekit.workbench import Workbench, answers_of, encode

if TYPE_CHECKING:
    from edgekit.devices.device import Device
    from edgekit.filemodel import FileModel
    from edgekit.measure.expected import Expected
    from edgekit.model import Model
    from edgekit.preprocess import Encoded

# How long latency is sampled, in seconds. The median over mixed lengths settles within it.
_LATENCY_SECONDS = 2.0
# How long a file runs beside its float32 form.
_COMPARISON_SECONDS = 1.0


def open_workbench(settings: Settings, store: Store, on_event: Sink) -> Workbench:
    """Identify the model; raises ModelError before anything is read or written."""
    from edgekit.model import identify

    return Workbench(settings, identify(settings.model), store, on_event)


def plan(work: Workbench, targets: Sequence[Target]) -> Plan:
    """Which steps, which lengths, and the bytes to expect."""
    settings = work.settings
    inputs = {
        **work.identity,
        "targets": [_outcome_fields(target) for target in targets],
        "formats": list(settings.formats),
        "scheme": settings.scheme,
        "random": settings.allow_random_calibration,
        "size": settings.budget.size,
        "lengths": list(settings.lengths),
        "steps": [_step_fields(spec) for spec in settings.steps],
    }

    def produce(folder: Path) -> None:
        from edgekit.plan.search import search

        (folder / "plan.json").write_text(json.dumps(search(work, targets).to_json(), indent=1))

    entry = _run(work, "plan", "planning", inputs, produce)
    return Plan.from_json(_read(entry.path / "plan.json"))


@dataclass(frozen=True)
class Compressed:
    """The model after the plan's steps, and the text files that an app ships beside it."""

    work: Workbench
    plan: Plan
    entry: Entry

    @cached_property
    def model(self) -> "Model | FileModel":
        """The model itself, loaded when first needed."""
        from edgekit.model import identify, load_model

        if not self.plan.steps:
            return self.work.original
        return load_model(identify(str(self.checkpoint)))

    @property
    def checkpoint(self) -> Path:
        """Where the changed model is, if there are steps."""
        return self.entry.path / "checkpoint"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Task, problem, labels and lineage."""
        return _read(self.entry.path / "facts.json")

    @cached_property
    def scored(self) -> dict[str, Any]:
        """``rows``: how many were scored (``Workbench.scored``); ``scores``: the primary metric
        on them, of the original and after each step. None where there are no steps or labels."""
        return _read(self.entry.path / "scores.json")

    @property
    def app_files(self) -> dict[str, str]:
        folder = self.entry.path / "app"
        return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.iterdir())}

    @property
    def app_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.app_files.values())

    @property
    def app_download_bytes(self) -> int:
        from edgekit.measure.size import deflated_bytes

        return sum(deflated_bytes(text.encode()) for text in self.app_files.values())


def compress(
    work: Workbench,
    plan: Plan,
    *,
    launcher: Sequence[str] = (),
    tensorboard: Path | None = None,
) -> Compressed:
    """Apply the plan's steps to the model.

    launcher: the command that runs them as several processes (``launch.py``). tensorboard: where
    trainings write their curves. Neither is part of the key.
    """
    inputs = {**work.identity, "steps": [_step_fields(spec) for spec in plan.steps]}

    def produce(folder: Path) -> None:
        from edgekit.bundle.write import app_files
        from edgekit.launch import apply_launched
        from edgekit.model import identify, load_model, save_model
        from edgekit.step import Context, apply_steps
        from edgekit.train_curves import curves_in

        model: Model | FileModel = work.outline
        scores: list[dict[str, Any]] = []

        def score(model: "Model | FileModel") -> None:
            names = ["original", *(str(spec) for spec in plan.steps)]
            found = work.score_some(model)
            if found is not None:
                scores.append({"stage": names[len(scores)], "score": found})

        if plan.steps:
            scratch = work.store.scratch("compress", inputs)
            if launcher:
                made = apply_launched(
                    launcher, work.settings, plan.steps, scratch, tensorboard, work.on_event
                )
                made.rename(folder / "checkpoint")
                model = load_model(identify(str(folder / "checkpoint")))
            else:
                context = Context(
                    work.data.train,
                    work.settings.seed,
                    folder=scratch,
                    on_progress=lambda fraction, text: work.on_event(
                        Event("progress", "compress", text, fraction=fraction)
                    ),
                    unlabeled=work.data.unlabeled,
                )
                steps = [spec.step for spec in plan.steps]
                score(work.original)
                with curves_in(tensorboard):
                    model = apply_steps(steps, cast("Model", work.original), context, score)
                save_model(model, folder / "checkpoint")
        (folder / "app").mkdir()
        for name, text in app_files(model).items():
            (folder / "app" / name).write_text(text, encoding="utf-8")
        facts = {
            "task": model.task,
            "problem": model.problem,
            "labels": list(model.labels),
            "lineage": list(model.lineage),
        }
        (folder / "facts.json").write_text(json.dumps(facts))
        rows = len(work.scored) if scores else 0
        (folder / "scores.json").write_text(json.dumps({"rows": rows, "scores": scores}))

    title = "applying " + ", ".join(str(step) for step in plan.steps) if plan.steps else "preparing"
    return Compressed(work, plan, _run(work, "compress", title, inputs, produce))


@dataclass(frozen=True)
class Answers:
    """The original's outputs on the eval rows."""

    work: Workbench
    entry: Entry

    @cached_property
    def expected(self) -> "Expected":
        from edgekit.measure.expected import Expected

        original = self.work.original
        with np.load(self.entry.path / "outputs.npz", allow_pickle=False) as archive:
            outputs = archive["outputs"]
        return Expected(
            task=original.task,
            problem=original.problem,
            outputs=outputs,
            labels=self.work.eval_labels(),
            label_names=original.labels,
            scores=_read(self.entry.path / "scores.json"),
        )


def answer_originally(work: Workbench) -> Answers:
    """Run the fp32 original on the eval rows: what every file is held against.

    Raises ProofError when its metric is no better than guessing.
    """

    def produce(folder: Path) -> None:
        from edgekit.measure import accuracy
        from edgekit.measure.expected import per_answer

        model = work.original
        encoded = encode(model, work.eval_rows)
        outputs = answers_of(model, encoded)
        labels = work.eval_labels()
        scores = {}
        if labels is not None:
            task, problem = model.task, model.problem
            scores = accuracy.score(
                outputs,
                labels,
                task=task,
                problem=problem,
                labels=model.labels,
                encoded=encoded,
            )
            accuracy.refuse_vacuous(scores, labels, task=task, problem=problem)
        np.savez(folder / "outputs.npz", outputs=per_answer(outputs, encoded))
        (folder / "scores.json").write_text(json.dumps(scores))

    title = "running the fp32 original on the eval rows"
    return Answers(work, _run(work, "reference", title, work.identity, produce))


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

    entry = _run(work, "export", f"writing {format} {scheme}", inputs, produce)
    return Exported(Artifact.from_json(entry.path, _read(entry.path / "artifact.json")), entry)


@dataclass(frozen=True)
class Proof:
    """What was proven and measured of one file, its golden answers, and what a report shows."""

    record: Mapping[str, Any]
    golden: Mapping[str, Any]
    evidence: Mapping[str, Any]
    entry: Entry

    @property
    def latency(self) -> float:
        return float(self.record["latency"]["p50"])

    @property
    def memory(self) -> int | None:
        """Peak bytes above an empty process."""
        found: int | None = self.record["peak_memory"]
        return found

    @property
    def drop(self) -> float | None:
        """The original's primary metric minus the file's, or ``None`` without labels."""
        found: float | None = self.record["metrics"]["drop"]
        return found


def prove(
    work: Workbench, compressed: Compressed, answers: Answers, exported: Exported, target: Target
) -> Proof:
    """Run the file in a fresh process and hold it against the original.

    Raises ProofError, naming the stage that diverged first, when it is beyond tolerance.
    """
    threads = target.threads
    inputs = {
        "export": exported.entry.key,
        "reference": answers.entry.key,
        "threads": threads,
        "parity": asdict(target.parity),
        "host": _host(),
    }

    def produce(folder: Path) -> None:
        from edgekit.measure.diagnose import first_divergence
        from edgekit.measure.parity import Difference, too_far
        from edgekit.measure.proof import prove as prove_file

        artifact = exported.artifact
        longest = max(artifact.lengths, default=None)
        encoded = encode(compressed.model, work.eval_rows, max_length=longest)
        record, golden, evidence = prove_file(
            artifact,
            encoded,
            answers.expected,
            exported=lambda sample: answers_of(compressed.model, sample, artifact.scheme),
            rows=work.eval_rows,
            threads=threads,
            seconds=_LATENCY_SECONDS,
            scored=work.scored if compressed.scored["rows"] else (),
        )
        record |= _proofs(compressed, exported, encoded, target)
        for name, found in record["parity"].items():
            reason = too_far(Difference(**found), target, artifact.scheme)
            if reason is not None:
                if record["saturates"]:
                    raise ProofError(
                        f"{artifact.path.name} cannot be judged here ({name}: {reason}): its "
                        "layers share int8 weights, whose sums overflow on a CPU without VNNI; "
                        "build on one that has it, or with --scheme int8-weights"
                    )
                stage = first_divergence(compressed.model, encoded, artifact)
                raise ProofError(
                    f"{artifact.path.name} does not do what the fp32 model does ({name}: "
                    f"{reason}); the first stage that diverges is {stage}"
                )
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "golden.json").write_text(json.dumps(golden))
        (folder / "evidence.json").write_text(json.dumps(evidence))

    title = f"proving {exported.artifact.path.name} in a fresh process"
    entry = _run(work, "prove", title, inputs, produce)
    record, golden, evidence = (
        _read(entry.path / f"{name}.json") for name in ("record", "golden", "evidence")
    )
    return Proof(record, golden, evidence, entry)


def _proofs(
    compressed: Compressed, exported: Exported, encoded: "Encoded", target: Target
) -> dict[str, Any]:
    """What it is to download; of a quantized file its integers, its float islands, its speed
    beside the float file."""
    from edgekit.contents.islands import float_islands
    from edgekit.filemodel import FileModel
    from edgekit.measure.integers import check_integers
    from edgekit.measure.size import deflated_bytes
    from edgekit.measure.speedup import against_float

    artifact, plain = exported.artifact, exported.plain
    shipped = exported.packed or artifact.path
    found: dict[str, Any] = {"deflated_bytes": deflated_bytes(shipped)}
    if not isinstance(compressed.model, FileModel):
        integers = check_integers(artifact, compressed.model, target.weight_bits)
        found |= {} if integers is None else {"integers": integers}
    if artifact.scheme in STATIC:
        from edgekit.steps.quantize.static import output_step

        model = cast("Model", compressed.model)
        kept = () if model.quantized is None else model.quantized.float_layers
        found["float_islands"] = float_islands(artifact.path, kept)
        found["output_step"] = output_step(model)
    if plain is not None:
        seconds = _COMPARISON_SECONDS
        found["against_float"] = against_float(
            artifact, plain, encoded, threads=target.threads, seconds=seconds
        )
    return found


def prove_elsewhere(
    work: Workbench,
    compressed: Compressed,
    exported: Exported,
    proof: Proof,
    target: Target,
    device: "Device",
) -> Proof:
    """Run the file on another device too; the proof with what was found in its record.

    Raises ProofError when it answers otherwise than here, beyond tolerance, or when a GPU delegate
    leaves an operator to the CPU, and DeviceError when the device cannot run it.
    """
    inputs = {"proof": proof.entry.key, "device": device.name, "target": asdict(target.parity)}

    def produce(folder: Path) -> None:
        from edgekit.measure.elsewhere import hold, prove_on

        artifact = exported.artifact
        longest = max(artifact.lengths, default=None)
        encoded = encode(compressed.model, work.eval_rows, max_length=longest)
        facts = compressed.facts
        found = prove_on(device, artifact, encoded, task=facts["task"], problem=facts["problem"])
        hold(found, artifact, target)
        (folder / "record.json").write_text(json.dumps(found))

    title = f"proving {exported.artifact.path.name} on {device.name}"
    entry = _run(work, "elsewhere", title, inputs, produce)
    elsewhere = [*proof.record.get("elsewhere", ()), _read(entry.path / "record.json")]
    return replace(proof, record={**proof.record, "elsewhere": elsewhere})


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


def report(work: Workbench, bundles: Sequence[Path], place: Path) -> None:
    """Write the page about the bundles; the one in the store, where it is of these very bundles."""
    from edgekit.bundle.manifest import read_manifest
    from edgekit.reports import source_digest
    from edgekit.reports.write import write_text

    inputs = {
        "bundles": [[str(folder), read_manifest(folder).seal] for folder in bundles],
        "report": source_digest(),
    }

    def produce(folder: Path) -> None:
        from edgekit.reports.subject import read_subjects
        from edgekit.reports.write import render

        text = render(read_subjects(bundles), "html")
        (folder / place.name).write_text(text, encoding="utf-8")

    entry = _run(work, "report", "writing the report", inputs, produce)
    write_text(place, (entry.path / place.name).read_text(encoding="utf-8"))


def _run(
    work: Workbench,
    name: str,
    title: str,
    inputs: Mapping[str, Any],
    produce: Callable[[Path], None],
) -> Entry:
    """A stage with its events."""
    started = time.perf_counter()
    work.on_event(Event("stage-start", name, title))
    entry = work.store.stage(name, inputs, produce)
    seconds = time.perf_counter() - started
    work.on_event(Event("stage-end", name, title, seconds=seconds, reused=entry.reused))
    return entry


def _read(path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields


def _step_fields(spec: StepSpec) -> dict[str, Any]:
    """What decides a step's outcome: its options, and the content of what they name."""
    files = {
        name: [identify_data(str(path)) for path in paths_in(value) if path.exists()]
        for name, value in spec.options().items()
        if paths_in(value)
    }
    return {**spec.to_json(), "files": files}


def _outcome_fields(target: Target) -> dict[str, Any]:
    """What of a target decides a plan; not where its folder is."""
    return {
        "name": target.name,
        "formats": list(target.formats),
        "on_request": list(target.on_request),
        "scheme": target.scheme,
    }


def _host() -> dict[str, Any]:
    """What decides a measurement on this host besides the file."""
    import platform

    from edgekit.devices.agent import fingerprint

    found = fingerprint({"threads": 0}, "")
    return {"cpu": found["cpu"], "cores": found["cores"], "node": platform.node()}
