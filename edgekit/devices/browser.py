"""A browser as a device: the page of ``page/`` runs the job and posts the result.

``browser`` is headless Chromium on this machine; ``serve`` gives the same page to any browser that
can reach it, such as a phone's. onnxruntime-web runs ONNX, LiteRT.js runs TFLite.

``browser:webgpu`` runs them through WebGPU. Headless Chromium does that in software, on any
machine alike, so its times mean nothing.
"""

import ipaddress
import json
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np

from edgekit.artifact import Format
from edgekit.devices.agent import fingerprint
from edgekit.devices.exchange import Exchange, offer
from edgekit.devices.process import run_tool
from edgekit.errors import DeviceError, OutputError, UsageError
from edgekit.store import cache_folder

_PAGE = Path(__file__).with_name("page")
_ACCELERATORS = ("wasm", "webgpu")
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")

_RUNTIMES = {"onnx": "onnxruntime-web 1.30.0", "tflite": "@litertjs/core 2.5.3"}
# What the page loads of each package of the npm registry: member of the archive, our name for it.
_WASM = "ort-wasm-simd-threaded"
_LITERT = [f"litert_wasm{kind}_internal" for kind in ("", "_compat", "_threaded", "_jspi")]
_PACKAGES: dict[str, dict[str, str]] = {
    "onnxruntime-web@1.30.0": {
        f"dist/{name}": name
        for name in (
            "ort.wasm.min.mjs",
            f"{_WASM}.mjs",
            f"{_WASM}.wasm",
            "ort.webgpu.min.mjs",
            f"{_WASM}.asyncify.mjs",
            f"{_WASM}.asyncify.wasm",
        )
    },
    "@litertjs/core@2.5.3": {
        "dist/index.js": "litert.js",
        **{f"wasm/{name}.{end}": f"{name}.{end}" for name in _LITERT for end in ("js", "wasm")},
    },
    "@litertjs/wasm-utils@2.5.3": {"dist/index.js": "wasm-utils.js"},
}

# No sandbox: Chromium's needs rights that containers do not give, and the page is our own. The
# rest keeps it quiet, and our one page at full speed.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-extensions",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--enable-blink-features=ForceEagerMeasureMemory",
)
_ACCELERATOR_FLAGS = {
    "wasm": ("--disable-gpu",),
    "webgpu": ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
}


@dataclass(frozen=True)
class Browser:
    """Headless Chromium on this machine."""

    accelerator: str = "wasm"
    formats: tuple[Format, ...] = ("onnx", "tflite")

    @property
    def name(self) -> str:
        return "browser" if self.accelerator == "wasm" else f"browser:{self.accelerator}"

    @property
    def timed(self) -> bool:
        return self.accelerator == "wasm"

    def missing(self) -> str | None:
        if _program() is None:
            return "no Chromium here; install your system's package chromium"
        return _no_runtimes()

    def set_up(self) -> None:
        """Fetch the runtimes for browsers. Raises DeviceError, or OutputError for the cache."""
        fetch_runtimes()

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        program = _program()
        assert program is not None
        with (
            offer(_files(folder, job, self.accelerator), "127.0.0.1") as exchange,
            tempfile.TemporaryDirectory(prefix="edgekit-browser-") as profile,
            _chromium(program, self.accelerator, exchange.url, Path(profile)) as (process, log),
        ):
            _await(exchange, process, log, job["file"], timeout)
            result = json.loads(exchange.result)
        # What a browser does not tell about this machine.
        host = fingerprint(dict(job), "")
        told = {key: host[key] for key in ("machine", "system", "cpu")}
        if "fingerprint" in result:
            result["fingerprint"].update(told)
        (folder / "result.json").write_text(json.dumps(result))


@dataclass(frozen=True)
class ServedBrowser:
    """Whatever browser opens the address that ``announce`` is told, once for each job."""

    address: str
    port: int
    announce: Callable[[str], None]
    accelerator: str = "wasm"
    timed: bool = True
    formats: tuple[Format, ...] = ("onnx", "tflite")

    @property
    def name(self) -> str:
        return f"a browser at {self.address}"

    def missing(self) -> str | None:
        return _no_runtimes()

    def set_up(self) -> None:
        """Fetch the runtimes for browsers. Raises DeviceError, or OutputError for the cache."""
        fetch_runtimes()

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        files = _files(folder, job, self.accelerator)
        try:
            with offer(files, self.address, self.port) as exchange:
                self.announce(_invitation(exchange.url))
                if not exchange.done.wait(timeout):
                    raise DeviceError(
                        f"no browser sent a result for {job['file']} within {timeout:.0f} s; open "
                        "the address on a device in the same network"
                    )
                (folder / "result.json").write_bytes(exchange.result)
        except OSError as error:
            raise UsageError(
                f"--serve: cannot listen on {self.address}, port {self.port or 'any'} "
                f"({error.strerror or error}); give an address of this machine"
            ) from None


def open_device(rest: str) -> Browser:
    """``browser`` or ``browser:webgpu``. Raises UsageError."""
    accelerator = rest or "wasm"
    if accelerator not in _ACCELERATORS:
        raise UsageError(
            f"--device: no device {f'browser:{rest}'!r}; write browser or browser:webgpu"
        )
    return Browser(accelerator)


def serve(where: str, announce: Callable[[str], None], accelerator: str = "wasm") -> ServedBrowser:
    """A device that is whatever browser opens an address of this machine.

    where: the IPv4 address of the interface to listen on, ``192.168.1.5`` or ``192.168.1.5:8080``.
    announce: is told, for each job, a text with the address to open (and its QR code). Raises
    UsageError.
    """
    address, _, port = where.partition(":")
    try:
        number = ipaddress.IPv4Address(address)
        fits = not port or (port.isascii() and port.isdigit() and 0 < int(port) < 2**16)
    except ValueError:
        fits = False
    if not fits or number.is_unspecified:
        raise UsageError(
            f"--serve: '{where}' is no address to listen on; give one of this machine's, such as "
            "192.168.1.5 or 192.168.1.5:8080"
        )
    return ServedBrowser(str(number), int(port or 0), announce, accelerator)


def fetch_runtimes() -> None:
    """Have the runtimes for browsers in the cache folder. Raises DeviceError and OutputError."""
    home = _home()
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(home) + ".lock"):
            if _no_runtimes() is not None:
                _fetch(home)
    except OSError as error:
        raise OutputError(
            f"cannot write to {home.parent}: {error.strerror or error}; free some space there or "
            "set EDGEKIT_CACHE to another folder"
        ) from None


def _home() -> Path:
    versions = "-".join(text.rpartition(" ")[2] for text in _RUNTIMES.values())
    return cache_folder() / "devices" / f"browser-{versions}"


def _no_runtimes() -> str | None:
    if _home().is_dir():
        return None
    return "its runtimes are not here; run `edgekit devices setup browser`"


def _fetch(home: Path) -> None:
    """Fill ``home``, by one rename at the end."""
    npm = shutil.which("npm")
    if npm is None:
        raise DeviceError("browser: no npm here to fetch onnxruntime-web with; install npm")
    partial = Path(tempfile.mkdtemp(prefix="browser.", suffix=".partial", dir=home.parent))
    try:
        found = partial / "found"
        found.mkdir()
        for number, (package, members) in enumerate(_PACKAGES.items()):
            folder = partial / str(number)
            folder.mkdir()
            _unpack(_pack(npm, package, folder), members, found)
        module = found / "litert.js"
        # A browser has no folder of packages to look the name up in.
        module.write_text(module.read_text().replace("@litertjs/wasm-utils", "./wasm-utils.js"))
        found.rename(home)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pack(npm: str, package: str, folder: Path) -> Path:
    """A package's archive; nothing in it is run."""
    options = ["--ignore-scripts", "--no-update-notifier", "--cache", str(folder / "cache")]
    run_tool(
        [npm, "pack", *options, "--", package], f"npm pack {package}", "browser", folder=folder
    )
    return next(folder.glob("*.tgz"))


def _unpack(archive: Path, members: Mapping[str, str], found: Path) -> None:
    with tarfile.open(archive) as packed:
        for member, name in members.items():
            try:
                content = packed.extractfile(f"package/{member}")
            except KeyError:
                content = None
            if content is None:
                raise DeviceError(f"browser: {archive.name} holds no {member}; try again")
            with (found / name).open("wb") as stream:
                shutil.copyfileobj(content, stream)


def _files(folder: Path, job: Mapping[str, Any], accelerator: str) -> dict[str, Path | bytes]:
    """All that the page may ask for."""
    arrays, block = _block(folder / job["inputs"])
    fields = {
        **job,
        "arrays": arrays,
        "accelerator": accelerator,
        "runtime": _RUNTIMES[job["format"]],
    }
    runtimes = {f"runtime/{path.name}": path for path in sorted(_home().iterdir())}
    return {
        "": _PAGE / "index.html",
        "agent.js": _PAGE / "agent.js",
        "job.json": json.dumps(fields).encode(),
        "inputs.bin": block,
        job["file"]: folder / job["file"],
        **runtimes,
    }


def _block(inputs: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The arrays of an .npz one after the other, little-endian, and what is where."""
    told: list[dict[str, Any]] = []
    block = bytearray()
    with np.load(inputs, allow_pickle=False) as archive:
        for name in archive.files:
            array = archive[name]
            kind = "float32" if array.dtype.kind == "f" else "int32"
            told.append(
                {"name": name, "dtype": kind, "shape": list(array.shape), "offset": len(block)}
            )
            block += array.astype(np.dtype(kind).newbyteorder("<")).tobytes()
    return told, bytes(block)


def _program() -> str | None:
    """Chromium: the system's, or the newest that Playwright installed."""
    for name in _PROGRAMS:
        found = shutil.which(name)
        if found:
            return found
    chosen = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "ms-playwright"
    installed = sorted(folder.glob("chromium-*/chrome-linux*/chrome"))
    return str(installed[-1]) if installed else None


@contextmanager
def _chromium(
    program: str, accelerator: str, url: str, profile: Path
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """Chromium with our page, and what it says to stderr; killed with all its processes."""
    flags = (*_FLAGS, *_ACCELERATOR_FLAGS[accelerator], f"--user-data-dir={profile}")
    # Its crash reports, too, go where the profile is and vanish with it.
    homes = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(profile))
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                [program, *flags, url],
                env={**os.environ, **homes},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        except OSError as error:
            raise DeviceError(f"cannot start {program}: {error.strerror}") from None
        try:
            yield process, log
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _await(
    exchange: Exchange,
    process: subprocess.Popen[bytes],
    log: IO[bytes],
    what: str,
    timeout: float,
) -> None:
    """Wait for the result. Raises DeviceError when none can come any more."""
    deadline = time.monotonic() + timeout
    while not exchange.done.wait(0.1):
        if process.poll() is not None:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
            raise DeviceError(
                f"Chromium ended with status {process.returncode} while it ran {what} ({last[0]})"
            )
        if exchange.lost.is_set():
            raise DeviceError(
                f"the page that ran {what} in Chromium is gone; it crashed, perhaps for want of "
                "memory"
            )
        if time.monotonic() > deadline:
            raise DeviceError(f"{what} did not finish within {timeout:.0f} s in Chromium")


def _invitation(url: str) -> str:
    """The address, and its QR code where segno is installed."""
    lines = [f"open {url} on the device, in the same network; keep the page in front"]
    try:
        import segno
    except ImportError:
        return lines[0]
    import io

    code = io.StringIO()
    segno.make(url, error="l").terminal(code, compact=True)
    return "\n".join([*lines, code.getvalue()])
