"""edgekit: a fine-tuned model in, the smallest verified file for a device out.

The functions here are the command line, one to one:

    result = edgekit.build("checkpoints/intents", data="train.csv", eval="test.csv",
                           target="android-arm64", budget="30MB")
    print(result.outcome, result.bundles[0].figures)

They raise ``edgekit.errors.EdgekitError`` with one sentence for what a person can mend.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from edgekit.analysis import Analysis
    from edgekit.bundle.bench import Bench
    from edgekit.bundle.join import Joined
    from edgekit.bundle.verify import VerifyResult
    from edgekit.contents import Contents
    from edgekit.difference import Comparison
    from edgekit.events import Event
    from edgekit.gating.gate import GateResult
    from edgekit.pipeline import BuildResult
    from edgekit.steps.finetune.delta import Delta

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "analyze",
    "apply_delta",
    "bench",
    "build",
    "delta",
    "diff",
    "gate",
    "inspect",
    "join",
    "load",
    "report",
    "verify",
]


def build(
    model: str | Path | None = None,
    *,
    data: str | Path | None = None,
    eval: str | Path | None = None,
    unlabeled: str | Path | Sequence[str | Path] = (),
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    task: str | None = None,
    target: str | Sequence[str] | None = None,
    budget: str | None = None,
    output: str | Path | None = None,
    format: str | Sequence[str] | None = None,
    scheme: str | None = None,
    lengths: Sequence[int] | None = None,
    steps: Sequence[str] = (),
    seed: int | None = None,
    save_model: str | Path | None = None,
    device: str | Sequence[str] | None = None,
    launch: str | None = None,
    tensorboard: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    allow_random_calibration: bool = False,
    project: str | Path | None = None,
    on_event: "Callable[[Event], None] | None" = None,
) -> "BuildResult":
    """Build a verified bundle for each target; see ``edgekit build --help`` for the options.

    ``project`` is an ``edgekit.toml`` (or its folder) that the arguments override. A budget that
    the figures break is a verdict in the result; what cannot be built raises an EdgekitError.
    """
    from edgekit.events import silent
    from edgekit.pipeline import build as run
    from edgekit.project import load_project, read_flags, resolve

    flags = {
        "model": _text(model),
        "data": _text(data),
        "eval": _text(eval),
        "unlabeled": _texts(unlabeled),
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "task": task,
        "target": [target] if isinstance(target, str) else target,
        "budget": budget,
        "output": _text(output),
        "format": [format] if isinstance(format, str) else format,
        "scheme": scheme,
        "lengths": lengths,
        "steps": steps,
        "seed": seed,
        "device": [device] if isinstance(device, str) else device,
    }
    settings = resolve(
        None if project is None else load_project(Path(project)),
        read_flags(flags),
        overwrite=overwrite,
        allow_random_calibration=allow_random_calibration,
    )
    return run(
        settings,
        save_model=None if save_model is None else Path(save_model),
        launch=launch,
        tensorboard=None if tensorboard is None else Path(tensorboard),
        dry_run=dry_run,
        on_event=on_event or silent,
    )


def load(model: str | Path) -> "nn.Module":
    """The torch module of a checkpoint, in eval mode, whatever steps have made of its layers.

    It is transformers' own class. Raises ModelError.
    """
    from edgekit.model import identify, load_model

    return load_model(identify(str(model))).module


def verify(
    bundle: str | Path,
    *,
    device: str | Sequence[str] = "host",
    on_event: "Callable[[Event], None] | None" = None,
) -> "VerifyResult":
    """Re-check a bundle's digests, golden answers and budget with nothing but the bundle."""
    from edgekit.bundle.verify import verify as run
    from edgekit.devices.device import ready
    from edgekit.events import silent

    names = [device] if isinstance(device, str) else device
    return run(Path(bundle), devices=[ready(name) for name in names], on_event=on_event or silent)


def bench(
    path: str | Path,
    *,
    device: str | Sequence[str] = "host",
    against: str | Path | None = None,
    threads: int | None = None,
    seconds: float = 5.0,
    cores: Sequence[int] = (),
    nice: int = 0,
    profile: bool = False,
    on_event: "Callable[[Event], None] | None" = None,
) -> "Bench":
    """How a bundle's model files, or one file, run on devices; or one file against another."""
    from edgekit.bundle.bench import bench as run
    from edgekit.devices.device import ready
    from edgekit.events import silent

    names = [device] if isinstance(device, str) else device
    return run(
        Path(path),
        devices=[ready(name) for name in names],
        against=None if against is None else Path(against),
        threads=threads,
        seconds=seconds,
        cores=cores,
        nice=nice,
        profile=profile,
        on_event=on_event or silent,
    )


def gate(
    bundles: str | Path | Sequence[str | Path] = (),
    *,
    project: str | Path = "edgekit.toml",
    baseline: str | Path = "edgekit.lock.json",
    baseline_ref: str | None = None,
    against: str | Path | None = None,
    device: str = "host",
    seconds: float = 10.0,
    on_event: "Callable[[Event], None] | None" = None,
) -> "GateResult":
    """Judge bundles by the rules of ``[gate]`` in the project file, beside a baseline.

    bundles: folders, or folders of them; the project's output when left out. against: the base's
    bundles, beside which rules of latency run each file for ``seconds``. A rule that fails is a
    finding in the result; what cannot be judged raises an EdgekitError.
    """
    from edgekit.events import silent
    from edgekit.gating.gate import gate as run

    paths = [bundles] if isinstance(bundles, str | Path) else bundles
    return run(
        [Path(path) for path in paths],
        project=Path(project),
        baseline=Path(baseline),
        reference=baseline_ref,
        against=None if against is None else Path(against),
        device=device,
        seconds=seconds,
        on_event=on_event or silent,
    )


def report(
    bundles: str | Path | Sequence[str | Path] | None = None,
    *,
    output: str | Path | None = None,
    format: str = "html",
) -> Path:
    """Write one page (``html``) or a model card (``markdown``) about bundles; where it is.

    ``bundles``: folders that ``build`` wrote, or folders of them; the output folder of the
    project here when left out. The file lies beside the first bundle when ``output`` is left out.
    """
    from edgekit.errors import UsageError
    from edgekit.project import find_output
    from edgekit.reports.write import NAMES
    from edgekit.reports.write import report as run

    if format not in NAMES:
        raise UsageError(f"--format: '{format}' is none of {', '.join(NAMES)}")
    if bundles is None:
        bundles = [find_output(Path())]
    paths = [bundles] if isinstance(bundles, str | Path) else bundles
    return run(
        [Path(path) for path in paths],
        output=None if output is None else Path(output),
        kind=format,
    )


def inspect(file: str | Path) -> "Contents":
    """What is inside an ONNX, TFLite or TorchScript file, read without running it."""
    from edgekit.contents import read_contents

    return read_contents(Path(file))


def diff(
    first: str | Path,
    second: str | Path,
    *,
    inputs: str | Path | None = None,
    on_event: "Callable[[Event], None] | None" = None,
) -> "tuple[Comparison, ...]":
    """What grew between two model files or bundles, and how far their answers are apart."""
    from edgekit.difference import diff as run
    from edgekit.events import silent

    return run(Path(first), Path(second), inputs=_text(inputs), on_event=on_event or silent)


def delta(base: str | Path, tuned: str | Path, output: str | Path) -> "Delta":
    """Write what turns the checkpoint ``base`` into ``tuned``: biases and head, as one file."""
    from edgekit.steps.finetune.delta import make_delta

    return make_delta(str(base), str(tuned), Path(output))


def apply_delta(base: str | Path, delta: str | Path, output: str | Path) -> None:
    """Write the checkpoint that a base and a delta make into the new folder ``output``."""
    from edgekit.steps.finetune.delta import apply_delta as run

    run(str(base), Path(delta), Path(output))


def join(bundles: Mapping[str, str | Path], output: str | Path) -> "Joined":
    """Put the ONNX bundles of several tasks into one folder, what they have in common once."""
    from edgekit.bundle.join import join as run

    return run({name: Path(folder) for name, folder in bundles.items()}, Path(output))


def analyze(
    model: str | Path,
    *,
    data: str | Path | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    task: str | None = None,
    seed: int = 0,
    plot: str | Path | None = None,
    on_event: "Callable[[Event], None] | None" = None,
) -> "Analysis":
    """How much each layer, head and neuron of a checkpoint matters; ``plot`` is an SVG to write."""
    from edgekit.analysis import analyze as run
    from edgekit.data import Columns
    from edgekit.events import silent
    from edgekit.project import Settings

    settings = Settings(
        model=str(model),
        targets=(),
        task=task,
        data=_text(data),
        columns=Columns(text, text_pair, label),
        seed=seed,
    )
    found = run(settings, on_event=on_event or silent)
    if plot is not None:
        found.plot(Path(plot))
    return found


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


def _texts(paths: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(each) for each in ([paths] if isinstance(paths, str | Path) else paths)]
