"""A class of devices: what a file for it must be, and the oldest runtime it must run on."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from packaging.version import Version

from edgekit.artifact import SCHEMES, STATIC, Format, Scheme, cannot_hold, one_of
from edgekit.errors import TargetError
from edgekit.toml import read_toml

_FILE = "target.toml"
# Schemes that only newer runtimes run, and the first version of each that does.
_RUNS_FROM: dict[Scheme, dict[str, str]] = {
    "int2-weights": {"onnxruntime": "1.24.1", "ai-edge-litert": "2.2.0"}
}


@dataclass(frozen=True)
class Runtime:
    """The package that runs the file, and the oldest version the target promises."""

    package: str
    oldest: str
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class Parity:
    """How far a file may stray from the fp32 model that it was exported from.

    agreement: share of rows with the same prediction, at least. difference: root-mean-square
    difference of the outputs as a share of their standard deviation, at most; ``None`` leaves it
    to the scheme. What a file may lose against the original is the budget's to say.
    """

    agreement: float = 0.9
    difference: float | None = None
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class Target:
    """One ``target.toml``. ``formats`` are built by default, ``on_request`` with ``--format``.

    scheme: the one that is built by default, of the ``schemes`` that the target takes.
    no_others: why it takes no others. integer_ends: inputs and outputs are integers, too.
    """

    description: str
    formats: tuple[Format, ...]
    scheme: Scheme
    instruction_set: str
    threads: int
    runtime: Runtime
    parity: Parity = field(default_factory=Parity)
    on_request: tuple[Format, ...] = ()
    schemes: tuple[Scheme, ...] = SCHEMES
    no_others: str = ""
    integer_ends: bool = False
    name: str = ""
    folder: Path = Path()
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    @property
    def weight_bits(self) -> int:
        """Bits of an int8 weight in ONNX: 7 where two products are summed in 16 bits and saturate.

        That is x86-64 without VNNI (AVX2's and AVX-512's vpmaddubsw). Arm's and WebAssembly's
        instructions do not saturate.
        """
        saturates = self.instruction_set.startswith("x86-64") and "vnni" not in self.instruction_set
        return 7 if saturates else 8


def targets_folder() -> Path:
    """Where the targets that come with edgekit are: in the wheel, or beside the package."""
    package = Path(__file__).parent
    shipped = package / "targets"
    return shipped if shipped.is_dir() else package.parent / "targets"


def target_names() -> tuple[str, ...]:
    """Names of the targets that come with edgekit, sorted."""
    return tuple(sorted(path.parent.name for path in targets_folder().glob(f"*/{_FILE}")))


def load_target(name: str) -> Target:
    """A target by name, or any folder with a ``target.toml`` by path.

    Raises TargetError when there is none of that name (suggesting the nearest), or when its
    file is malformed (with line and key).
    """
    import dataclasses

    names = target_names()
    folder = targets_folder() / name if name in names else Path(name)
    if not (folder / _FILE).is_file():
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known targets: {', '.join(names)}"
        raise TargetError(f"no target '{name}', and no folder of that path with a {_FILE}; {hint}")
    target = read_toml(folder / _FILE, Target, TargetError)
    if not target.formats:
        raise TargetError(f"{folder / _FILE}: formats: name at least one format")
    if target.threads < 1:
        raise TargetError(f"{folder / _FILE}: threads: must be at least 1, is {target.threads}")
    if target.integer_ends and (
        (*target.formats, *target.on_request) != ("tflite",) or set(target.schemes) - set(STATIC)
    ):
        raise TargetError(
            f"{folder / _FILE}: integer_ends: is for TFLite and for the schemes {one_of(STATIC)}; "
            "name no other formats and schemes"
        )
    target = dataclasses.replace(target, name=folder.resolve().name, folder=folder.resolve())
    refused = scheme_refusal(target, target.formats, target.scheme)
    if refused is not None:
        raise TargetError(f"{folder / _FILE}: scheme: {refused}")
    return target


def scheme_refusal(target: Target, formats: Sequence[Format], scheme: Scheme) -> str | None:
    """Why a target cannot have files of these formats in a scheme; ``None`` when it can."""
    if scheme not in target.schemes:
        reason = f" ({target.no_others})" if target.no_others else ""
        return (
            f"{target.name} takes {one_of(target.schemes)}, not {scheme}{reason}; choose one of "
            "those, or another target"
        )
    if scheme in STATIC and "onnx" in formats and target.weight_bits < 8:
        return (
            f"{target.name}: the instruction set {target.instruction_set} saturates with 8-bit "
            f"weights, which {scheme} has; choose int8-dynamic, or --format tflite"
        )
    oldest = _RUNS_FROM.get(scheme)
    if oldest is not None:
        runtime = target.runtime
        needed = oldest.get(runtime.package)
        if needed is None or Version(runtime.oldest) < Version(needed):
            listed = one_of([f"{package} {version}" for package, version in oldest.items()])
            return (
                f"{target.name} promises {runtime.package} {runtime.oldest}, and {scheme} runs "
                f"from {listed} on; choose another scheme, or a target with a newer runtime"
            )
    refusals = (cannot_hold(format, scheme) for format in formats)
    return next((refusal for refusal in refusals if refusal is not None), None)
