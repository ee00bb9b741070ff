"""What is proven of a file, here and on other devices."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.artifact import STATIC
from edgekit.errors import ProofError
from edgekit.stages.answers import Answers
from edgekit.stages.compress import Compressed
from edgekit.stages.export import Exported
from edgekit.stages.stage import read_record, run_stage
from edgekit.store import Entry
from edgekit.target import Target
from edgekit.workbench import Workbench, answers_of, encode

if TYPE_CHECKING:
    from edgekit.devices.device import Device
    from edgekit.model import Model
    from edgekit.preprocess import Encoded

# How long latency is sampled, in seconds. The median over mixed lengths settles within it.
_LATENCY_SECONDS = 2.0
# How long a file runs beside its float32 form.
_COMPARISON_SECONDS = 1.0


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
    entry = run_stage(work, "prove", title, inputs, produce)
    record, golden, evidence = (
        read_record(entry.path / f"{name}.json") for name in ("record", "golden", "evidence")
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
    entry = run_stage(work, "elsewhere", title, inputs, produce)
    elsewhere = [*proof.record.get("elsewhere", ()), read_record(entry.path / "record.json")]
    return replace(proof, record={**proof.record, "elsewhere": elsewhere})


def _host() -> dict[str, Any]:
    """What decides a measurement on this host besides the file."""
    import platform

    from edgekit.devices.agent import fingerprint

    found = fingerprint({"threads": 0}, "")
    return {"cpu": found["cpu"], "cores": found["cores"], "node": platform.node()}
