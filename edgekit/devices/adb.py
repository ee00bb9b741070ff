"""A phone, through the Android Debug Bridge: ``adb`` for the only one, ``adb:<serial>``.

Two ways to run a file there:

- the agent, where the shell of the phone finds Python 3.9 or later with numpy: as ``python3``, or
  in Termux on a phone whose shell may look into it (on others Termux has an ssh server: take
  ``ssh:``). Everything as on any device.
- LiteRT's ``benchmark_model``, for TFLite files: a binary for the phone, whose path on this
  machine is in EDGEKIT_BENCHMARK_MODEL. It answers nothing and keeps no samples, so a pass for
  outputs holds only why there are none (``missing``), and a pass for latency holds ``rounds``:
  a run each for rows of increasing length, summed up in seconds.

Either way the process is bound to the fastest cores that suffice for its threads, and the phone's
temperature and charge are read before each round and after the last, waiting for the phone to
cool down first. The result's ``conditions`` say what was found: ``cores`` (or none, where their
speed cannot be read) and ``readings`` (degrees Celsius, percent, seconds waited).

Everything lies in a folder of /data/local/tmp that is removed at the end. What a phone that was
unplugged has kept is removed a day later, when edgekit meets it again.

Not tried on any phone. The tests drive this module with a stand-in for ``adb`` that runs the same
shell commands in a folder of this machine, and with a stand-in for ``benchmark_model`` that
prints what the sources of LiteRT's print.
"""

import hashlib
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Format
from edgekit.devices.agent import VERSION, Rows
from edgekit.devices.process import died
from edgekit.errors import DeviceError, UsageError
from edgekit.export.tflite_file import read_program
from edgekit.export.tflite_graph import Graph, Program, type_name

TOOL = "EDGEKIT_BENCHMARK_MODEL"

_SERIAL = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:\[\]%-]*")
_MARK = "edgekit-status:"
_ROUNDS = 5
_WARM_UP = 10  # calls before a round
_FEATURES = ("asimd", "asimddp", "i8mm", "sve", "sve2", "bf16")

_STATES = {
    "unauthorized": "the phone does not trust this machine; unlock it and accept the dialog there",
    "authorizing": "the phone does not trust this machine yet; accept the dialog there",
    "offline": "the phone is offline; plug it in again, or run `adb reconnect`",
    "no permissions": "this user may not open the phone's USB device; install the udev rules "
    "(Debian: android-sdk-platform-tools-common) and plug it in again",
}


@dataclass(frozen=True)
class Phone:
    """The phone of that serial, or the only one.

    cool: degrees Celsius to wait for before a round, ``patience`` seconds at most.
    """

    name: str = "adb"
    serial: str | None = None
    cool: float = 38.0
    patience: float = 120.0
    timed: bool = True
    formats: tuple[Format, ...] = ("onnx", "tflite", "torchscript")

    def missing(self) -> str | None:
        try:
            _find(self.serial)
        except DeviceError as error:
            return str(error)
        return None

    def run(self, folder: Path, job: Mapping[str, Any], timeout: float) -> None:
        try:
            serial = _find(self.serial)
        except DeviceError as error:
            raise DeviceError(f"{self.name}: {error}") from None
        place = f"/data/local/tmp/edgekit-{secrets.token_hex(8)}"
        bridge = _Bridge(serial, place, self.name, job["file"], timeout)
        try:
            found = _look(bridge)
            conditions = _Conditions(self, bridge, _fastest(found, job["threads"]))
            if "python" in found:
                result = _run_agent(bridge, folder, found["python"][0], conditions)
            else:
                result = _run_tool(bridge, folder, job, found, conditions)
        finally:
            bridge.clear()
        result["conditions"] = {"cores": conditions.cores, "readings": conditions.readings}
        (folder / "result.json").write_text(json.dumps(result))


def open_device(rest: str) -> Phone:
    """``adb`` or ``adb:<serial>``. Raises UsageError for what cannot be a serial."""
    if not rest:
        return Phone()
    if not _SERIAL.fullmatch(rest):
        raise UsageError(
            f"--device: {rest!r} is no phone's serial; write one that `adb devices` lists"
        )
    return Phone(f"adb:{rest}", rest)


def _find(serial: str | None) -> str:
    """The serial of the phone asked for, if it is ready. Raises DeviceError."""
    if shutil.which("adb") is None:
        raise DeviceError("there is no adb client; install one (Debian: adb)")
    try:
        done = subprocess.run(
            ["adb", "devices"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30
        )
    except subprocess.TimeoutExpired:
        raise DeviceError("adb does not answer; run `adb kill-server` and try again") from None
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"adb does not start ({last}); run `adb devices` by hand")
    lines = done.stdout.decode(errors="replace").splitlines()
    phones = {name: state for name, tab, state in (line.partition("\t") for line in lines) if tab}
    if not phones:
        raise DeviceError("no phone is connected; plug one in and switch on USB debugging there")
    names = ", ".join(f"adb:{name}" for name in phones)
    if serial is None:
        if len(phones) > 1:
            raise DeviceError(f"several phones are connected; name one of {names}")
        serial = next(iter(phones))
    if serial not in phones:
        raise DeviceError(f"no phone {serial} is connected; there is {names}")
    if phones[serial] != "device":
        raise DeviceError(_state(phones[serial]) or f"the phone is in the state {phones[serial]}")
    return serial


def _state(said: str) -> str | None:
    return next((sentence for state, sentence in _STATES.items() if state in said), None)


class _Bridge:
    """One phone, a folder there (``place``), and the seconds that are left for the job."""

    def __init__(self, serial: str, place: str, name: str, what: str, timeout: float) -> None:
        self.serial, self.place, self.name, self.what = serial, place, name, what
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout

    def shell(self, script: str) -> tuple[int, str]:
        """Run a script there: its exit status, and what it said on stdout and stderr.

        The status is printed, as ``adb shell`` has one of its own only from Android 7 on.
        """
        own = f"sh -c {shlex.quote(script)} </dev/null 2>&1"
        done = self._adb("shell", f"{own}; status=$?; rm -f {self.place}/pid; echo {_MARK}$status")
        said, mark, status = done.stdout.decode(errors="replace").rpartition(_MARK)
        if not mark or not status.strip().isdigit():
            raise self._gone(done)
        return int(status), said.replace("\r\n", "\n")

    def start(self, command: Sequence[str], cores: str | None) -> tuple[int, str]:
        """Run a program in the folder, on those cores; ``clear`` ends it if this does not."""
        pinned = [*(["taskset", cores] if cores else []), *command]
        environment = f"TMPDIR={self.place} TF_CPP_MIN_LOG_LEVEL=3"
        return self.shell(
            f"cd {self.place} && echo $$ >pid && {environment} exec {shlex.join(pinned)}"
        )

    def push(self, files: Sequence[Path]) -> None:
        done = self._adb("push", *(str(path.absolute()) for path in files), f"{self.place}/")
        if done.returncode:
            if b"No space left on device" in done.stderr + done.stdout:
                raise DeviceError(
                    f"{self.name}: {self.what} does not fit into /data/local/tmp; "
                    "free some space on the phone"
                )
            raise self._gone(done)

    def pull(self, name: str, folder: Path) -> bool:
        """Fetch a file; whether it was there."""
        done = self._adb("pull", f"{self.place}/{name}", str(folder.absolute() / name))
        if done.returncode:
            (folder / name).unlink(missing_ok=True)
            if b"does not exist" not in done.stderr + done.stdout:
                raise self._gone(done)
        return done.returncode == 0

    def clear(self) -> None:
        """End what still runs, and remove the folder, if the phone is there."""
        script = f"[ -f {self.place}/pid ] && kill -9 $(cat {self.place}/pid); rm -rf {self.place}"
        self.deadline = time.monotonic() + 15
        try:
            self._adb("shell", script)
        except DeviceError:
            return

    def _adb(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        left = max(self.deadline - time.monotonic(), 0)
        try:
            return subprocess.run(
                ["adb", "-s", self.serial, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=left,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise DeviceError(
                f"{self.what} did not finish within {self.timeout:.0f} s on {self.name}"
            ) from None
        except OSError as error:
            raise DeviceError(f"{self.name}: cannot start adb: {error.strerror}") from None

    def _gone(self, done: subprocess.CompletedProcess[bytes]) -> DeviceError:
        said = (done.stderr + done.stdout).decode(errors="replace")
        lines = said.strip().splitlines() or ["no message"]
        lost = f"the phone went away while {self.what} ran ({lines[-1].strip()}); "
        return DeviceError(f"{self.name}: {_state(said) or lost + 'plug it in and run again'}")


class _Conditions:
    """What the phone was like: the cores that were used, and its temperature and charge."""

    def __init__(self, phone: Phone, bridge: _Bridge, cores: str | None) -> None:
        self.phone, self.bridge, self.cores = phone, bridge, cores
        self.readings: list[dict[str, Any]] = []

    def settle(self) -> None:
        """Wait until the phone is cool, or for as long as there is patience, and note it."""
        waited = 0.0
        reading = _read(self.bridge)
        while (reading["celsius"] or 0) > self.phone.cool and waited < self.phone.patience:
            pause = min(5.0, self.phone.patience - waited)
            time.sleep(pause)
            waited += pause
            reading = _read(self.bridge)
        self.readings.append(reading | {"waited": waited})

    def note(self) -> None:
        self.readings.append(_read(self.bridge) | {"waited": 0.0})


def _read(bridge: _Bridge) -> dict[str, Any]:
    """The battery's temperature, or else the hottest core's, and its charge; none if unknown."""
    _, said = bridge.shell(
        "dumpsys battery 2>/dev/null; for zone in /sys/class/thermal/thermal_zone*; do "
        'echo "zone $(cat $zone/type) $(cat $zone/temp)"; done 2>/dev/null'
    )
    fields = dict(re.findall(r"^ *(level|temperature): *(-?\d+)", said, re.MULTILINE))
    zones = [int(value) for value in re.findall(r"^zone \S*cpu\S* (\d+)", said, re.MULTILINE)]
    celsius = None
    if "temperature" in fields:
        celsius = int(fields["temperature"]) / 10
    elif zones:
        # Thousandths of a degree, but for a few phones that tell degrees.
        celsius = max(zones) / 1000 if max(zones) > 1000 else float(max(zones))
    return {"celsius": celsius, "battery": int(fields["level"]) if "level" in fields else None}


def _look(bridge: _Bridge) -> dict[str, list[str]]:
    """Make the folder; what there is on the phone: words by what they are."""
    python = "import sys, numpy; sys.exit(sys.version_info < (3, 9))"
    script = f"""
        find /data/local/tmp -maxdepth 1 -name 'edgekit-*' -mmin +1440 \\
            -exec rm -rf {{}} + 2>/dev/null
        mkdir -m 700 {bridge.place} || exit 1
        for python in python3 /data/data/com.termux/files/usr/bin/python3; do
            "$python" -c {shlex.quote(python)} 2>/dev/null && echo "python $python" && break
        done
        command -v taskset >/dev/null &&
            for file in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq; do
                number="${{file%/cpufreq/*}}"
                echo "core ${{number##*cpu}} $(cat "$file")"
            done 2>/dev/null
        echo "machine $(uname -m)"
        echo "android $(getprop ro.build.version.release)"
        echo "model $(getprop ro.product.manufacturer) $(getprop ro.product.model)"
        echo "chip $(getprop ro.soc.model)"
        echo "features $(grep -m 1 Features /proc/cpuinfo)"
    """
    status, said = bridge.shell(script)
    if status:
        said = said.strip().rpartition("\n")[2]
        raise DeviceError(f"{bridge.name}: cannot make {bridge.place} on the phone ({said})")
    found: dict[str, list[str]] = {}
    for line in said.splitlines():
        kind, _, words = line.strip().partition(" ")
        found.setdefault(kind, []).append(words)
    return found


def _fastest(found: Mapping[str, list[str]], threads: int) -> str | None:
    """The mask for ``taskset`` of the fastest cores, as many as there are threads or more.

    Cores as fast as the last that is needed are all taken. None where speeds cannot be read.
    """
    speeds: dict[int, int] = {}
    for line in found.get("core", ()):
        core, _, speed = line.partition(" ")
        if core.isdigit() and speed.isdigit():
            speeds[int(core)] = int(speed)
    if not speeds:
        return None
    ranked = sorted(speeds.values(), reverse=True)
    slowest = ranked[min(threads, len(ranked)) - 1]
    return f"{sum(1 << core for core, speed in speeds.items() if speed >= slowest):x}"


def _run_agent(
    bridge: _Bridge, folder: Path, python: str, conditions: _Conditions
) -> dict[str, Any]:
    bridge.push([path for path in sorted(folder.iterdir()) if path.is_file()])
    conditions.settle()
    status, said = bridge.start([python, "agent.py", "job.json", "result.json"], conditions.cores)
    if not bridge.pull("result.json", folder):
        raise died(bridge.what, bridge.name, status, said.encode())
    conditions.note()
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    except ValueError:
        (folder / "result.json").unlink()
        raise DeviceError(
            f"{bridge.name} left no readable result for {bridge.what}; run again"
        ) from None
    return result


def _run_tool(
    bridge: _Bridge,
    folder: Path,
    job: Mapping[str, Any],
    found: Mapping[str, list[str]],
    conditions: _Conditions,
) -> dict[str, Any]:
    """Latency by ``benchmark_model``: some rows of each pass, from the shortest to the longest."""
    tool = _tool(bridge, job)
    program = read_program((folder / job["file"]).read_bytes(), job["file"])
    with np.load(folder / job["inputs"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    rows = Rows(arrays, arrays.pop("lengths", None), job["lengths"], job["signature_inputs"])
    chosen = {
        step["name"]: _spread(step["rows"], rows)
        for step in job["passes"]
        if step["kind"] == "latency"
    }
    flags, files = {}, []
    for row in sorted({row for each in chosen.values() for row in each}):
        flags[row], written = _feed(program, rows, row, folder)
        files += written
    copied = shutil.copyfile(tool, folder / "benchmark_model")
    bridge.push([copied, folder / job["file"], *files])

    result: dict[str, Any] = {"agent": VERSION, "passes": {}, "error": None}
    for step in job["passes"]:
        if step["kind"] != "latency":
            result["passes"][step["name"]] = {"missing": "benchmark_model answers nothing"}
            continue
        rounds = result["passes"].setdefault(step["name"], {"rounds": []})["rounds"]
        for row in chosen[step["name"]]:
            conditions.settle()
            seconds = max(step["seconds"] / len(chosen[step["name"]]), 0.1)
            command = [
                "./benchmark_model",
                f"--graph={job['file']}",
                f"--num_threads={job['threads']}",
                f"--warmup_runs={_WARM_UP}",
                "--num_runs=50",
                f"--min_secs={seconds:.3f}",
                f"--max_secs={max(4 * seconds, 20):.3f}",
                "--report_peak_memory_footprint=true",
                *flags[row],
            ]
            status, said = bridge.start(
                ["sh", "-c", 'chmod 755 "$1" && exec "$@"', "sh", *command], conditions.cores
            )
            seen = _parse(said) if status == 0 else None
            if seen is None:
                raise died(bridge.what, bridge.name, status, said.encode())
            rounds.append({"row": row, "width": rows.width([row]), **seen["round"]})
            result.setdefault("load_seconds", seen["load"])
            result.setdefault("first_run_seconds", seen["first"])
            peaks = [seen["peak"], result.get("memory", {}).get("peak")]
            known = [peak for peak in peaks if peak is not None]
            result["memory"] = {"peak": max(known, default=None)}
    conditions.note()
    result["fingerprint"] = _fingerprint(found, tool, job["threads"])
    return result


def _tool(bridge: _Bridge, job: Mapping[str, Any]) -> Path:
    """Where ``benchmark_model`` is on this machine, if it can do the job. Raises DeviceError."""
    without = f"{bridge.name}: the phone's shell finds no Python 3.9 with numpy, and "
    mend = "install Termux on the phone, with its ssh server, and use ssh:"
    if job["format"] != "tflite":
        raise DeviceError(f"{without}benchmark_model runs .tflite files only; {mend}")
    if not any(step["kind"] == "latency" for step in job["passes"]):
        raise DeviceError(f"{without}benchmark_model tells latencies but no answers; {mend}")
    chosen = os.environ.get(TOOL, "")
    if not chosen:
        raise DeviceError(
            f"{without}{TOOL} is not set; set it to the path of LiteRT's benchmark_model for "
            f"Android, or {mend}"
        )
    path = Path(chosen)
    if not path.is_file():
        raise DeviceError(f"{without}{TOOL}={chosen} is no file; correct the path")
    return path


def _spread(rows: Sequence[int] | None, inputs: Rows) -> list[int]:
    """A few of the rows (of all, where none are named), spread evenly over their lengths."""
    named = range(inputs.count) if rows is None else rows
    ordered = sorted(named, key=lambda row: inputs.width([row]) or 0)
    count = min(_ROUNDS, len(ordered))
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _feed(program: Program, rows: Rows, row: int, folder: Path) -> tuple[list[str], list[Path]]:
    """The tool's flags for a row's inputs, and the files of their values, written for it."""
    feed, width = rows.feed([row]), rows.width([row])
    graph, names, key = _signature(program, rows.order, width if rows.buckets else None)
    layers, shapes, values, files = [], [], [], []
    for number, tensor in enumerate(graph.inputs):
        array = feed[names[id(tensor)]].astype(type_name(tensor.type))
        path = folder / f"row-{row}-{number}"
        path.write_bytes(array.tobytes())
        files.append(path)
        layers.append(tensor.name)
        shapes.append(",".join(map(str, array.shape)))
        # A colon ends the name here, and two are one of its own.
        values.append(f"{tensor.name.replace(':', '::')}:{path.name}")
    flags = [
        f"--input_layer={','.join(layers)}",
        f"--input_layer_shape={':'.join(shapes)}",
        f"--input_layer_value_files={','.join(values)}",
    ]
    return flags + ([f"--signature_to_run_for={key}"] if key else []), files


def _signature(
    program: Program, order: Sequence[str], width: int | None
) -> tuple[Graph, dict[int, str], str | None]:
    """The graph to run, what its inputs (by identity) are called, and its key if it needs one."""
    if not program.signatures:
        graph = program.graphs[0]
        return graph, {id(tensor): name for tensor, name in zip(graph.inputs, order)}, None
    fitting = [s for s in program.signatures if width in (None, s.inputs[order[0]].shape[1])]
    signature = fitting[0]
    names = {id(tensor): name for name, tensor in signature.inputs.items()}
    return signature.graph, names, signature.key if len(program.signatures) > 1 else None


def _parse(said: str) -> dict[str, Any] | None:
    """What ``benchmark_model`` printed, in seconds and bytes; None when it did not finish.

    The last ``count=`` line sums up the runs (older versions tell no percentiles, and where all
    runs took the same time there is ``curr`` alone); a line of its own has the rest.
    """
    counts = re.findall(r"count=(\d+)((?: \w+=\S+)+)", said)
    timings = re.search(r"Inference timings in us: Init: (\S+), First inference: (\S+),", said)
    if not counts or timings is None:
        return None
    fields = {key: float(value) / 1e6 for key, value in re.findall(r"(\w+)=(\S+)", counts[-1][1])}
    same = None if "avg" in fields else fields["curr"]
    peak = re.search(r"Overall peak memory footprint \(MB\) via periodic monitoring: (\S+)", said)
    return {
        "round": {
            "count": int(counts[-1][0]),
            "mean": fields.get("avg", same),
            "std": fields.get("std", 0.0),
            "min": fields.get("min", same),
            "max": fields.get("max", same),
            "p5": fields.get("p5", same),
            "p50": fields.get("median", same),
            "p95": fields.get("p95", same),
        },
        "load": float(timings[1]) / 1e6,
        "first": float(timings[2]) / 1e6,
        "peak": int(float(peak[1]) * 2**20) if peak else None,
    }


def _fingerprint(found: Mapping[str, list[str]], tool: Path, threads: int) -> dict[str, Any]:
    """As the agent's; the tool tells no version of its own, so its digest stands for it."""
    known = {kind: words[0].strip() for kind, words in found.items()}
    features = known.get("features", "").split()
    return {
        "machine": known.get("machine", ""),
        "system": f"Android {known.get('android', '')}".strip(),
        "cpu": " ".join(filter(None, (known.get("model"), known.get("chip")))),
        "cores": len(found.get("core", ())) or None,
        "features": [name for name in _FEATURES if name in features],
        "runtime": f"benchmark_model {hashlib.sha256(tool.read_bytes()).hexdigest()[:12]}",
        "threads": threads,
    }
