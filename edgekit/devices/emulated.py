"""64-bit Arm under qemu-user: the real aarch64 wheels of the runtimes, on a host without a board.

``emulated:arm64``, or with a core: ``emulated:arm64-cortex-a76``. What a file answers there is what
it answers on that core; how long it takes says nothing.

Everything lives in ``devices/emulated-arm64`` of the cache folder: ``rootfs`` holds Python and the
libraries that it needs, out of arm64 packages; ``site`` the wheels; ``qemu`` a qemu-aarch64, unless
a recent one is on the PATH. The packages come from the machine's own sources, through an apt whose
state is not the system's, so nothing else on the machine changes.
"""

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.artifact import Format
from edgekit.devices.process import run_process, run_tool
from edgekit.errors import DeviceError, UsageError
from edgekit.store import Store, cache_folder

# Each core in /proc/cpuinfo: variant, part, revision and features, as qemu 10 shows them. An older
# qemu shows the host's file instead, in which onnxruntime finds no Arm core, and crashes.
# Never ``-cpu max``: its int8 answers are wrong.
_ARMV8 = "fp asimd aes pmull sha1 sha2 crc32"
_CORES = {
    "cortex-a53": ("0x0", "0xd03", 4, f"{_ARMV8} cpuid"),
    "cortex-a76": (
        "0x4",
        "0xd0b",
        1,
        f"{_ARMV8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
    ),
    "cortex-a710": (
        "0x2",
        "0xd47",
        1,
        f"{_ARMV8} atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 sm4 asimddp "
        "sha512 sve asimdfhm dit uscat ilrcpc flagm sb paca pacg dcpodp sve2 sveaes svepmull "
        "svebitperm svesha3 svesm4 flagm2 frint svei8mm svebf16 i8mm bf16 bti mte",
    ),
}
_BASELINE = "cortex-a53"
_NAME = "emulated:arm64"
_RECENT = (10, 0)  # from here on qemu shows Arm's cpuinfo itself, and knows every core above
_QEMU = ("qemu-aarch64", "qemu-aarch64-static")
_WHEELS = ("numpy", "onnxruntime", "ai-edge-litert")
_IMPORTS = "import numpy, onnxruntime, ai_edge_litert.interpreter"
_RECORD = "ready.json"
_LAYOUT = 1  # of the folder; a cache that an older edgekit prepared is prepared again


@dataclass(frozen=True)
class Emulated:
    """A 64-bit Arm core under qemu-user."""

    core: str = _BASELINE
    timed: bool = False
    formats: tuple[Format, ...] = ("onnx", "tflite")

    @property
    def name(self) -> str:
        return f"emulated:arm64-{self.core}"

    def missing(self) -> str | None:
        mend = f"run edgekit devices setup {self.name}"
        record = _record(_home())
        if record is None:
            return f"it is not set up; {mend}"
        if not _is_whole(_home(), record):
            return f"what was set up is damaged; {mend}"
        if self.core not in record["cores"]:
            return (
                f"qemu {record['qemu_version']} does not know {self.core}; install qemu-user 10 "
                f"or later and {mend}"
            )
        return None

    def set_up(self) -> None:
        """Fetch and unpack packages, wheels and qemu, about 60 MB and half a minute.

        Nothing is done where that is already so; what is damaged, or was made for other versions
        of the runtimes, is made again. Raises DeviceError, and OutputError for a cache folder that
        cannot be written.
        """
        home = _home()
        with Store().lock("devices/emulated-arm64"):
            record = _record(home)
            if self.missing() is not None or record is None or record["asked"] != _asked():
                _prepare(home)
        reason = self.missing()
        if reason is not None:
            raise DeviceError(f"{self.name}: {reason}")

    def qemu(self) -> str:
        """The version of qemu that runs it. Raises DeviceError when it is not set up."""
        record = _record(_home())
        if record is None:
            raise DeviceError(f"{self.name}: {self.missing()}")
        return str(record["qemu_version"])

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        home = _home()
        record = _record(home)
        if record is None:
            raise DeviceError(f"{self.name}: {self.missing()}")
        command, environment = _guest(home, record, self.core, folder)
        run_process(
            [*command, "-s", "agent.py", "job.json", "result.json"],
            folder,
            timeout=timeout,
            what=job["file"],
            where=self.name,
            environment=environment,
        )


def open_device(rest: str) -> Emulated:
    """``arm64`` or ``arm64-<core>``. Raises UsageError."""
    machine, dash, core = rest.partition("-")
    if machine != "arm64" or (dash and core not in _CORES):
        names = ", ".join(f"emulated:arm64-{known}" for known in _CORES)
        raise UsageError(
            f"--device: no device {f'emulated:{rest}'!r}; there are emulated:arm64 (its core is "
            f"{_BASELINE}), {names}"
        )
    return Emulated(core or _BASELINE)


def _home() -> Path:
    return cache_folder() / "devices" / "emulated-arm64"


def _record(home: Path) -> dict[str, Any] | None:
    """What the set-up wrote last, or ``None`` when it never got there."""
    try:
        record: dict[str, Any] = json.loads((home / _RECORD).read_text())
        return record if record["layout"] == _LAYOUT else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_whole(home: Path, record: Mapping[str, Any]) -> bool:
    """Whether qemu and every file is there, in the size that it had."""
    sizes: Mapping[str, int] = record["files"]
    return (home / record["qemu"]).is_file() and dict(_sizes(home)) == sizes


def _sizes(home: Path) -> Iterator[tuple[str, int]]:
    """Every file below a folder with its bytes, but for what the set-up or Python adds later."""
    start = len(str(home)) + 1
    pending = [str(home)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != "__pycache__":
                        pending.append(entry.path)
                elif entry.name != _RECORD:
                    yield entry.path[start:], entry.stat(follow_symlinks=False).st_size


def _asked() -> dict[str, str | None]:
    """The versions of the runtimes on this host; ``None`` for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in _WHEELS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _guest(
    home: Path, record: Mapping[str, Any], core: str, scratch: Path
) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of Python on that core.

    qemu looks up absolute paths under its prefix first. Each run has a prefix of its own in
    ``scratch``, links into the one rootfs and the core's cpuinfo, so that cores run side by side.
    """
    rootfs, prefix = home / "rootfs", scratch / "prefix"
    (prefix / "proc").mkdir(parents=True)
    (prefix / "proc" / "cpuinfo").write_text(_cpuinfo(core, os.cpu_count() or 1))
    for entry in rootfs.iterdir():
        (prefix / entry.name).symlink_to(entry)
    python = rootfs / "usr" / "bin" / record["python"]
    command = [str(home / record["qemu"]), "-cpu", core, "-L", str(prefix), str(python)]
    environment = {
        "PYTHONHOME": str(rootfs / "usr"),
        "PYTHONPATH": str(home / "site"),
        "LD_LIBRARY_PATH": "",  # the host's libraries are no use to the guest
        "LD_PRELOAD": "",
        "PYTHONDONTWRITEBYTECODE": "",  # compiling takes most of the time there
    }
    return command, environment


def _cpuinfo(core: str, processors: int) -> str:
    """``/proc/cpuinfo`` as Linux writes it on that many such cores."""
    variant, part, revision, features = _CORES[core]
    return "".join(
        f"processor\t: {processor}\nmodel name\t: ARMv8 Processor rev {revision} (v8l)\n"
        f"BogoMIPS\t: 100.00\nFeatures\t: {features}\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n\n"
        for processor in range(processors)
    )


def _prepare(home: Path) -> None:
    """Fill a folder beside ``home`` and put it there by one rename."""
    for tool in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DeviceError(
                f"emulated:arm64 cannot be set up: there is no {tool}; it takes its packages from "
                "apt, so use Debian or Ubuntu, there or in a container"
            )
    # What a killed set-up left; a process that it had started may still be writing there.
    for leftover in home.parent.glob(f"{home.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = None
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"{home.name}.", dir=home.parent))
        partial = scratch / "partial"
        partial.mkdir()
        _fill(partial)
        if home.exists():
            home.rename(scratch / "old")
        partial.rename(home)
    except OSError as error:
        raise DeviceError(
            f"cannot set up emulated:arm64 in {home.parent}: {error.strerror or error}; free some "
            "space there or set EDGEKIT_CACHE to another folder"
        ) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _fill(partial: Path) -> None:
    """Packages, wheels and qemu, tried by an import, and the record of what there is."""
    apt = _apt(partial / "apt")
    python, glibc = _unpack_packages(apt, partial / "apt", partial / "rootfs")
    asked = _asked()
    _unpack_wheels(partial / "wheels", asked, python, glibc, partial / "site")
    qemu = _choose_qemu(apt, partial / "apt", partial / "qemu")
    record = {
        "layout": _LAYOUT,
        "asked": asked,
        "python": python,
        "qemu": str(qemu.relative_to(partial) if qemu.is_relative_to(partial) else qemu),
        "qemu_version": ".".join(map(str, _version(qemu))),
        "cores": _known_cores(qemu),
    }
    with tempfile.TemporaryDirectory(prefix="edgekit-job-") as name:
        scratch = Path(name)
        command, environment = _guest(partial, record, _BASELINE, scratch)
        command += ["-s", "-c", _IMPORTS]
        # Python keeps the modules that it compiles here for all later runs.
        run_tool(
            command, "the first import under qemu", _NAME, folder=scratch, environment=environment
        )
    shutil.rmtree(partial / "wheels")
    shutil.rmtree(partial / "apt")
    (partial / _RECORD).write_text(json.dumps(record | {"files": dict(_sizes(partial))}))


def _apt(folder: Path) -> list[str]:
    """Options for an apt of our own: state and cache in ``folder``, for arm64 and this host.

    The package sources are the machine's, read anew. One that fails counts only when a package
    cannot be found without it.
    """
    host = run_tool(["dpkg", "--print-architecture"], "dpkg", _NAME).strip()
    (folder / "lists").mkdir(parents=True)
    (folder / "status").touch()  # as if no package were installed
    settings = folder / "apt.conf"
    settings.write_text(
        'APT::Architecture "arm64";\n'
        "#clear APT::Architectures;\n"
        f'APT::Architectures {{ "arm64"; "{host}"; }};\n'
        'APT::Sandbox::User "root";\n'  # apt's own user cannot enter a home folder
        "#clear APT::Update;\n#clear DPkg;\n"  # hooks that tidy the system's cache
        'Dir::Cache::pkgcache "pkgcache.bin";\n'  # which container images turn off
        'Dir::Cache::srcpkgcache "srcpkgcache.bin";\n'
        'Acquire::Languages "none";\n'
    )
    paths = {"Dir::State": folder, "Dir::State::status": folder / "status", "Dir::Cache": folder}
    options = ["-qq", "-c", str(settings)]
    options += [part for key, path in paths.items() for part in ("-o", f"{key}={path}")]
    with contextlib.suppress(DeviceError):
        run_tool(["apt-get", *options, "update"], "apt-get update", _NAME)
    return options


def _unpack_packages(apt: Sequence[str], folder: Path, rootfs: Path) -> tuple[str, int]:
    """Python and what it and the wheels link to; the interpreter's name and glibc's minor."""
    try:
        depends = run_tool(
            ["apt-cache", *apt, "depends", "python3-minimal:arm64"], "apt-cache", _NAME
        )
    except DeviceError:
        depends = ""
    python = re.search(r"(python3\.\d+)-minimal", depends)
    if python is None:
        raise DeviceError(
            "emulated:arm64 cannot be set up: this machine's package sources offer no arm64 "
            "packages, or cannot be reached; check with apt-get update, and on Ubuntu add its "
            "ports mirror as a source with [arch=arm64]"
        )
    wanted = [f"{python[1]}-minimal", f"lib{python[1]}-stdlib", "libstdc++6"]
    install = ["install", "--yes", "--download-only", "--no-install-recommends", *wanted]
    run_tool(["apt-get", *apt, *install], "apt-get", _NAME)
    packages = sorted((folder / "archives").glob("*.deb"))
    for package in packages:
        run_tool(["dpkg-deb", "-x", str(package), str(rootfs)], "dpkg-deb", _NAME)
    shutil.rmtree(rootfs / "usr" / "share", ignore_errors=True)
    if not (rootfs / "lib").exists():
        (rootfs / "lib").symlink_to("usr/lib")
    names = " ".join(package.name for package in packages)
    glibc = re.search(r"\blibc6_2\.(\d+)", names)
    return python[1], int(glibc[1]) if glibc else 17


def _unpack_wheels(
    wheels: Path, asked: Mapping[str, str | None], python: str, glibc: int, site: Path
) -> None:
    """The host's versions of the runtimes, or the newest of those that have no wheel."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(glibc, 16, -1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--dest", str(wheels)]
    command += ["--python-version", python.removeprefix("python")]
    for name in (*platforms, "manylinux2014_aarch64"):
        command += ["--platform", name]
    same = [f"{name}=={version}" if version else name for name, version in asked.items()]
    try:
        run_tool([*command, "--", *same], "pip download", _NAME)
    except DeviceError:
        run_tool([*command, "--", *asked], "pip download", _NAME)
    for wheel in sorted(wheels.glob("*.whl")):
        unpack_wheel(wheel, site)


def unpack_wheel(wheel: Path, site: Path) -> None:
    """Unpack a wheel into ``site``. Raises DeviceError when it is damaged, or a name leaves it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if not (site / name).resolve().is_relative_to(site.resolve()):
                    raise DeviceError(f"{wheel.name} holds '{name}', a path outside of it")
            archive.extractall(site)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DeviceError(f"{wheel.name} is damaged ({error}); set up again") from None


def _choose_qemu(apt: Sequence[str], folder: Path, home: Path) -> Path:
    """The qemu on the PATH when it is recent, or else the newest that there is."""
    found = next((path for path in map(shutil.which, _QEMU) if path), None)
    if found and _version(Path(found)) >= _RECENT:
        return Path(found)
    known = _version(Path(found)) if found else (0, 0)
    try:
        return _fetch_qemu(apt, folder, home, newer_than=known)
    except DeviceError:
        if found is None:
            raise
        return Path(found)


def _fetch_qemu(apt: Sequence[str], folder: Path, home: Path, newer_than: tuple[int, ...]) -> Path:
    """A static qemu-aarch64 for this host; on Debian, its backports are looked at too."""
    offers = _offers(apt)
    if max((o[0] for o in offers), default=(0, 0)) < _RECENT:
        apt = _with_backports(apt, folder)
        offers += _offers(apt)
    version, package = max(offers, default=((0, 0), ""))
    if version <= newer_than:
        raise DeviceError(
            "emulated:arm64 cannot be set up: this machine's package sources offer no qemu-user; "
            "put a qemu-aarch64 on the PATH"
        )
    home.mkdir()
    run_tool(["apt-get", *apt, "download", package], "apt-get download", _NAME, folder=home)
    deb = next(home.glob("*.deb"))
    qemu = _extract(deb, home)
    deb.unlink()
    return qemu


def _offers(apt: Sequence[str]) -> list[tuple[tuple[int, ...], str]]:
    """Static builds of qemu-user in the sources: version, and name as apt-get takes it."""
    host = run_tool(["dpkg", "--print-architecture"], "dpkg", _NAME).strip()
    found = []
    for name in ("qemu-user", "qemu-user-static"):
        try:
            text = run_tool(["apt-cache", *apt, "show", f"{name}:{host}"], "apt-cache", _NAME)
        except DeviceError:
            continue
        for stanza in text.split("\n\n"):
            version = re.search(r"^Version: (\S+)", stanza, re.MULTILINE)
            # One that depends on libraries, or is there for its dependencies only, is of no use.
            if version and not re.search(r"^Depends:", stanza, re.MULTILINE):
                found.append((_numbers(version[1]), f"{name}:{host}={version[1]}"))
    return found


def _with_backports(apt: Sequence[str], folder: Path) -> list[str]:
    """The same sources, and on Debian the backports that its mirror holds beside the release."""
    fields = "$(REPO_URI) $(CODENAME) $(LABEL) $(COMPONENT) $(ARCHITECTURE)"
    targets = run_tool(["apt-get", *apt, "indextargets", "--format", fields], "apt-get", _NAME)
    found = re.search(r"^(\S+) (\w+) Debian main ", targets, re.MULTILINE)
    if found is None:
        return list(apt)
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.is_file() else ""
    system = Path("/etc/apt/sources.list")
    lines = system.read_text() if system.is_file() else ""
    sources = folder / "sources.list"
    sources.write_text(f"{lines}\ndeb {signed}{found[1]} {found[2]}-backports main\n")
    options = [*apt, "-o", f"Dir::Etc::sourcelist={sources}"]
    with contextlib.suppress(DeviceError):
        run_tool(["apt-get", *options, "update"], "apt-get update", _NAME)
    return options


def _extract(package: Path, folder: Path) -> Path:
    """Only qemu-aarch64 out of the emulators of all machines; where it is now."""
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as archive,
    ):
        for member in archive:
            name = member.name.removeprefix("./usr/bin/")
            content = archive.extractfile(member) if name in _QEMU else None
            if content is not None:
                with (folder / name).open("wb") as stream:
                    shutil.copyfileobj(content, stream)
                (folder / name).chmod(0o755)
                return folder / name
    raise DeviceError(f"emulated:arm64 cannot be set up: {package.name} holds no qemu-aarch64")


def _version(qemu: Path) -> tuple[int, ...]:
    """``(10, 0)`` of what calls itself ``qemu-aarch64 version 10.0.2 (…)``."""
    return _numbers(
        run_tool([str(qemu), "--version"], "qemu-aarch64", _NAME).partition("version ")[2]
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Major and minor of a version; a Debian epoch before it does not count."""
    found = re.match(r"(?:\d+:)?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _known_cores(qemu: Path) -> list[str]:
    # Listing the cores ends with status 1.
    offered = run_tool([str(qemu), "-cpu", "help"], "qemu-aarch64", _NAME, status=1).split()
    return [core for core in _CORES if core in offered]
