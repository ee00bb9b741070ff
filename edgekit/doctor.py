"""Is everything here that edgekit needs: versions, disk, memory, CPU features, tools."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.store import cache_folder
from edgekit.units import format_bytes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

State = Literal["ok", "missing", "unsupported", "low"]

_PACKAGE = "edgekit"
_ROOM = 2 * 10**9  # a build of a 100 MB checkpoint needs about 1 GB of either
_FEATURES = {
    "avx2": "8-bit kernels of x86-64",
    "avx512_vnni": "fast int8 on x86-64",
    "avx_vnni": "fast int8 on x86-64",
    "amx_int8": "fastest int8 on x86-64",
    "asimddp": "fast int8 on Arm (dotprod)",
    "i8mm": "fastest int8 on Arm",
}
_TOOLS = {
    "qemu-aarch64": "runs Arm files here; edgekit devices setup emulated:arm64 fetches it, too",
    "adb": "measures on an Android phone",
    "node": "runs web files",
    "chromium": "runs web files in a browser, and GPU files without a GPU",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``required``: edgekit does not work without it."""

    group: str
    name: str
    state: State
    text: str
    required: bool = False


def examine() -> tuple[Finding, ...]:
    """Everything that decides whether and how well edgekit runs here."""
    return (
        _python(),
        *_packages(),
        *_disk(),
        _memory(),
        *_processor(),
        *_tools(),
    )


def is_well(findings: Sequence[Finding]) -> bool:
    """Whether nothing that is required is missing or unsupported."""
    return all(finding.state in ("ok", "low") for finding in findings if finding.required)


def _python() -> Finding:
    from packaging.specifiers import SpecifierSet

    wanted, _ = _metadata()
    found = platform.python_version()
    state: State = "ok" if SpecifierSet(wanted).contains(found) else "unsupported"
    return Finding("Python", "python", state, f"{found} ({wanted}), {sys.executable}", True)


def _packages() -> Iterator[Finding]:
    _, requirements = _metadata()
    for extra, requirement in requirements:
        needed = extra is None
        brings = "" if needed else f", in edgekit[{extra}]"
        name = requirement.name
        # Lower bounds first.
        wanted = ",".join(sorted(map(str, requirement.specifier), reverse=True)) or "any version"
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            what = f"{name}{requirement.specifier}" if needed else f"edgekit[{extra}]"
            mend = f'pip install "{what}"'
            yield Finding("Packages", name, "missing", f"{wanted}{brings}; {mend}", needed)
            continue
        inside = requirement.specifier.contains(found, prereleases=True)
        state: State = "ok" if inside else "unsupported"
        yield Finding("Packages", name, state, f"{found} ({wanted}{brings})", needed)


def _metadata() -> tuple[str, list[tuple[str | None, "Requirement"]]]:
    """The Python range, and each requirement with the extra that it belongs to.

    As installed, or from ``pyproject.toml`` when edgekit runs from its source tree.
    """
    from packaging.requirements import Requirement

    source = Path(__file__).parents[1] / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        extras = {None: project["dependencies"], **project.get("optional-dependencies", {})}
        listed = [(extra, Requirement(each)) for extra, group in extras.items() for each in group]
        python = project["requires-python"]
    else:
        installed = importlib.metadata.metadata(_PACKAGE)
        python = installed["Requires-Python"] or ""
        listed = []
        for each in importlib.metadata.requires(_PACKAGE) or ():
            requirement = Requirement(each)
            extras_named = installed.get_all("Provides-Extra") or []
            marker = requirement.marker
            extra = None
            if marker is not None and not marker.evaluate({"extra": ""}):
                extra = next((e for e in extras_named if marker.evaluate({"extra": e})), None)
                if extra is None:
                    continue  # of another platform
            listed.append((extra, requirement))
    return python, [
        (extra, requirement)
        for extra, requirement in listed
        if extra != "dev" and requirement.name != _PACKAGE
    ]


def _disk() -> Iterator[Finding]:
    for name, folder in (("cache", cache_folder()), ("here", Path.cwd())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free
        state: State = "ok" if free >= _ROOM else "low"
        if not os.access(existing, os.W_OK):
            yield Finding("Disk", name, "missing", f"{folder} cannot be written", name == "cache")
        else:
            yield Finding("Disk", name, state, f"{format_bytes(free)} free at {folder}")


def _memory() -> Finding:
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    state: State = "ok" if total >= _ROOM else "low"
    return Finding(
        "Memory", "memory", state, f"{format_bytes(total)}, {format_bytes(free)} of it unused"
    )


def _processor() -> Iterator[Finding]:
    from edgekit.devices.agent import fingerprint

    found = fingerprint({"threads": 0}, "")
    model = found["cpu"] or found["machine"]
    yield Finding("Processor", "model", "ok", f"{model}, {found['cores']} cores")
    arm = found["machine"] in ("aarch64", "arm64")
    for feature, use in _FEATURES.items():
        if feature in found["features"]:
            yield Finding("Processor", feature, "ok", use)
        elif arm == ("Arm" in use):
            yield Finding("Processor", feature, "missing", use)


def _tools() -> Iterator[Finding]:
    for tool, use in _TOOLS.items():
        path = shutil.which(tool)
        text = f"{use} ({path})" if path else use
        yield Finding("Tools", tool, "ok" if path else "missing", text)
