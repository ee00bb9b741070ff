"""A phone by adb: the command layer, against a stand-in for adb and its phone."""

import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact, Tensor
from edgekit.devices.adb import TOOL, Phone
from edgekit.devices.device import open_device
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.measure.measurement import measure
from tests.devices.test_agent import _rows, _sum_model

_HERE = Path(__file__).parent
_PROGRAMS = "sh find mkdir rm cat grep uname taskset chmod sleep"
_LONG = Pass("latency", "latency", [0, 1, 2], seconds=60, precision=-1)
_CORE = min(os.sched_getaffinity(0))


class Stand:
    """The stand-in's folder, and what a test does to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "client", "root/data/local/tmp", "root/sys"):
            (folder / name).mkdir(parents=True)
        for name in _PROGRAMS.split():
            found = shutil.which(name)
            assert found is not None
            (folder / "bin" / name).symlink_to(found)
        self.script(folder / "client/adb", f'exec {sys.executable} {_HERE}/adb_stand_in.py "$@"')
        self.connect("PHONE1\tdevice")
        self.battery(level=87, temperature=312)
        self.script(folder / "bin/getprop", 'case "$1" in *model) echo Phone;; *) echo 15;; esac')

    def script(self, path: Path, text: str) -> None:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def connect(self, *lines: str) -> None:
        partial = self.folder / "devices.partial"
        partial.write_text("".join(f"{line}\n" for line in lines))
        partial.rename(self.folder / "devices")

    def battery(self, **fields: int) -> None:
        said = "".join(f"  {key}: {value}\\n" for key, value in fields.items())
        self.script(
            self.folder / "bin/dumpsys", f"printf 'Current Battery Service state:\\n{said}'"
        )

    def python(self, executable: str = sys.executable) -> None:
        self.script(self.folder / "bin/python3", f'exec {executable} "$@"')

    def cores(self, speeds: dict[int, int]) -> None:
        for core, speed in speeds.items():
            folder = self.folder / f"root/sys/devices/system/cpu/cpu{core}/cpufreq"
            folder.mkdir(parents=True)
            (folder / "cpuinfo_max_freq").write_text(f"{speed}\n")

    def left(self) -> list[Path]:
        return list((self.folder / "root/data/local/tmp").iterdir())

    def running(self) -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                where = (process / "cwd").readlink()
            except OSError:
                continue
            if where.is_relative_to(self.folder / "root/data/local/tmp"):
                found.append(int(process.name))
        return found

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand(tmp_path / "stand-in")
    monkeypatch.setenv("ADB_STAND_IN", str(stand.folder))
    monkeypatch.setenv("PATH", str(stand.folder / "client"), prepend=os.pathsep)
    monkeypatch.delenv(TOOL, raising=False)
    return stand


def _run(
    tmp_path: Path, *passes: Pass, device: Phone | None = None, timeout: float = 60
) -> dict[str, Any]:
    model = _sum_model(tmp_path / "model.onnx")
    wanted = passes or (Pass("all", "outputs"),)
    device = device or Phone()
    return run_agent(model, _rows(), wanted, threads=1, device=device, timeout=timeout)


def _tflite(path: Path, widths: tuple[int, ...]) -> Artifact:
    """A file with a signature for each width: the product of its two inputs."""
    from edgekit.export import tflite_graph as graphs
    from edgekit.export.tflite_file import write_program

    number = graphs.schema().TensorType.INT32
    signatures = []
    for width in widths:
        names = ("input_ids", "attention_mask")
        inputs = [graphs.Tensor(f"serving_{name}:0", number, (1, width)) for name in names]
        output = graphs.Tensor("product", number, (1, width))
        options = graphs.schema().MulOptionsT()
        graph = graphs.Graph(
            inputs[::-1], [output], [graphs.operator("MUL", inputs, [output], options=options)]
        )
        signatures.append(
            graphs.Signature(f"length_{width}", graph, dict(zip(names, inputs)), {"y": output})
        )
    write_program(graphs.Program([each.graph for each in signatures], signatures), path)
    described = tuple(Tensor(name, "int32", (1, "length")) for name in names)
    outputs = (Tensor("y", "int32", (1, "length")),)
    return Artifact(path, "tflite", "fp32", described, outputs, widths)


def _tool(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = stand.folder / "tools; touch x" / "benchmark_model"
    tool.parent.mkdir()
    stand.script(tool, f'exec {sys.executable} {_HERE}/benchmark_model_stand_in.py "$@"')
    tool.chmod(0o644)
    monkeypatch.setenv(TOOL, str(tool))


def _when_running(stand: Stand, act: Callable[[int], None]) -> threading.Thread:
    def wait_and_act() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            running = stand.running()
            if running:
                time.sleep(0.7)
                act(running[0])
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize("old", [False, True])
def test_where_there_is_python_the_phone_answers_as_the_host(
    stand: Stand, tmp_path: Path, old: bool
) -> None:
    stand.python()
    if old:
        (stand.folder / "old").touch()
    stand.cores({_CORE: 2800000, _CORE + 1: 1800000})
    passes = [Pass("all", "outputs"), Pass("latency", "latency", [0], seconds=0.05)]
    there = _run(tmp_path, *passes)
    here = run_agent(_sum_model(tmp_path / "model.onnx"), _rows(), passes, threads=1)
    assert (there["passes"]["all"]["outputs"] == here["passes"]["all"]["outputs"]).all()
    assert min(there["passes"]["latency"]["samples"]) > 0
    assert there["conditions"]["cores"] == f"{1 << _CORE:x}"
    readings = there["conditions"]["readings"]
    assert [reading["celsius"] for reading in readings] == [31.2, 31.2]
    assert [reading["battery"] for reading in readings] == [87, 87]
    assert stand.left() == []
    for call in stand.calls():
        assert call == ["devices"] or call[:2] == ["-s", "PHONE1"]


@pytest.mark.slow
def test_an_agent_that_is_killed_names_the_signal(stand: Stand, tmp_path: Path) -> None:
    stand.python()
    killer = _when_running(stand, lambda agent: os.kill(agent, signal.SIGSEGV))
    with pytest.raises(DeviceError, match=r"model\.onnx on adb was killed by SIGSEGV") as caught:
        _run(tmp_path, _LONG)
    killer.join()
    assert caught.value.exit_code == 3
    assert stand.left() == [] and stand.running() == []


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_ended_there_too(stand: Stand, tmp_path: Path) -> None:
    stand.python()
    seen: list[int] = []
    watcher = _when_running(stand, seen.append)
    with pytest.raises(DeviceError, match="did not finish within 4 s on adb"):
        _run(tmp_path, _LONG, timeout=4)
    watcher.join()
    assert seen
    time.sleep(0.2)
    assert stand.left() == [] and stand.running() == []


@pytest.mark.slow
def test_a_phone_that_is_unplugged_mid_run(stand: Stand, tmp_path: Path) -> None:
    stand.python()
    puller = _when_running(stand, lambda _: stand.connect())
    with pytest.raises(DeviceError, match=r"the phone went away while model\.onnx ran"):
        _run(tmp_path, _LONG)
    puller.join()
    # The phone went on without us; once it is back and a day has passed, what it kept is removed.
    for process in stand.running():
        os.kill(process, signal.SIGKILL)
    (kept,) = stand.left()
    other = kept.with_name("somebody-elses")
    other.mkdir()
    for path in (kept, other):
        os.utime(path, times=(0, time.time() - 2 * 86400))
    stand.connect("PHONE1\tdevice")
    _run(tmp_path)
    assert stand.left() == [other]


@pytest.mark.slow
def test_a_missing_runtime_is_named(stand: Stand, tmp_path: Path) -> None:
    without = tmp_path / "onnxruntime.py"
    without.write_text("raise ImportError(\"No module named 'onnxruntime'\")\n")
    stand.script(
        stand.folder / "bin/python3", f'PYTHONPATH="{tmp_path}" exec {sys.executable} "$@"'
    )
    with pytest.raises(DeviceError, match=r"No module named 'onnxruntime'; install onnxruntime$"):
        _run(tmp_path)
    assert stand.left() == []


def test_a_full_phone(stand: Stand, tmp_path: Path) -> None:
    stand.python()
    (stand.folder / "full").touch()
    with pytest.raises(DeviceError, match="does not fit into /data/local/tmp; free some space"):
        _run(tmp_path)
    assert stand.left() == []


@pytest.mark.parametrize(
    ("devices", "name", "reason"),
    [
        ([], "adb", "no phone is connected"),
        (["A1\tdevice", "10.0.0.7:5555\tdevice"], "adb", "name one of adb:A1, adb:10.0.0.7:5555"),
        (["A1\tdevice"], "adb:B2", "no phone B2 is connected; there is adb:A1"),
        (["A1\tunauthorized"], "adb", "accept the dialog"),
        (["A1\toffline"], "adb:A1", "the phone is offline"),
        (["A1\tno permissions (missing udev rules?); see [page]"], "adb", "udev rules"),
        (["A1\trecovery"], "adb", "in the state recovery"),
    ],
)
def test_a_phone_that_cannot_be_used_says_why(
    stand: Stand, tmp_path: Path, devices: list[str], name: str, reason: str
) -> None:
    stand.connect(*devices)
    device = open_device(name)
    assert reason in (device.missing() or "")
    with pytest.raises(DeviceError, match=f"^{name}: .*{re.escape(reason)}"):
        device.run(tmp_path, {"file": "model.onnx"}, 5)
    assert all(call == ["devices"] for call in stand.calls())


def test_one_of_several_phones(stand: Stand) -> None:
    stand.connect("A1\tdevice", "B2\tunauthorized")
    assert open_device("adb:A1").missing() is None


def test_without_a_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "(Debian: adb)" in (open_device("adb").missing() or "")


@pytest.mark.parametrize(
    "serial", ["-e", "A 1", "A;touch x", "$(touch x)", "`touch x`", "A'", 'A"', "A\n", "A\x00", "|"]
)
def test_no_serial_reaches_a_shell(serial: str) -> None:
    with pytest.raises(UsageError, match="is no phone's serial"):
        open_device(f"adb:{serial}")


@pytest.mark.parametrize("serial", ["R58M12ABCDE", "192.168.1.7:5555", "adb-R5-xY._adb-tls._tcp"])
def test_serials(serial: str) -> None:
    device = open_device(f"adb:{serial}")
    assert device.name == f"adb:{serial}" and device.timed


@pytest.mark.slow
def test_without_python_benchmark_model_tells_the_latency(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tool(stand, monkeypatch)
    stand.cores({_CORE: 2800000, _CORE + 1: 1800000})
    artifact = _tflite(tmp_path / "model.tflite", (2, 4))
    latency = Pass("latency", "latency", [0, 1, 2], seconds=3)
    result = run_agent(artifact, _rows(), [latency], threads=1, device=Phone())
    rounds = result["passes"]["latency"]["rounds"]
    assert [(each["row"], each["width"]) for each in rounds] == [(1, 2), (2, 2), (0, 4)]
    assert [each["p50"] for each in rounds] == pytest.approx([4e-6, 4e-6, 8e-6])
    assert rounds[0]["count"] == 520
    assert rounds[0]["mean"] == pytest.approx(1.08574e-3)
    assert rounds[0]["min"] == pytest.approx(1.171e-3)
    assert rounds[0]["p95"] == pytest.approx(2.9e-3)
    assert result["load_seconds"] == pytest.approx(0.066002)
    assert result["first_run_seconds"] == pytest.approx(0.637079)
    assert result["memory"] == {"peak": int(25.5 * 2**20)}
    assert len(result["conditions"]["readings"]) == 4
    assert result["fingerprint"]["runtime"].startswith("benchmark_model ")
    assert result["fingerprint"]["system"] == "Android 15"

    runs = (stand.folder / "benchmark-log").read_text().splitlines()
    cores, *flags = runs[2].split()
    assert cores == str(_CORE)
    assert {"--num_threads=1", "--warmup_runs=10", "--min_secs=1.000"} <= set(flags)
    assert "--signature_to_run_for=length_4" in flags
    # In the order of the graph, which is not that of the signature.
    assert "--input_layer=serving_attention_mask:0,serving_input_ids:0" in flags
    assert "--input_layer_shape=1,4:1,4" in flags
    assert stand.left() == []


@pytest.mark.slow
def test_benchmark_models_rounds_become_a_measurement_without_an_interval(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tool(stand, monkeypatch)
    artifact = _tflite(tmp_path / "model.tflite", (2, 4))
    found = measure(artifact, _rows(), Phone(), threads=1, seconds=3)
    assert found.latency is not None and found.latency.low is None
    assert found.latency.lengths == pytest.approx({2: 4e-6, 4: 8e-6})
    assert found.memory.peak == int(25.5 * 2**20) and found.memory.above_empty is None
    assert found.conditions is not None
    with pytest.raises(DeviceError, match="benchmark_model tells latencies but no answers"):
        run_agent(artifact, _rows(), [Pass("all", "outputs")], threads=1, device=Phone())


def test_the_real_values_are_written_for_benchmark_model(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tool(stand, monkeypatch)
    keep = tmp_path / "kept"
    keep.mkdir()
    tool = Path(os.environ[TOOL])
    copy = "import glob, shutil, sys; [shutil.copy(p, sys.argv[1]) for p in glob.glob('row-*')]"
    stand.script(tool, f"{sys.executable} -c {shlex.quote(copy)} {shlex.quote(str(keep))}; exit 9")
    with pytest.raises(DeviceError, match="ended with status 9"):
        run_agent(
            _tflite(tmp_path / "model.tflite", (4,)),
            _rows(),
            [Pass("latency", "latency", [0])],
            threads=1,
            device=Phone(),
        )
    assert np.frombuffer((keep / "row-0-0").read_bytes(), "<i4").tolist() == [1, 1, 1, 0]
    assert np.frombuffer((keep / "row-0-1").read_bytes(), "<i4").tolist() == [5, 6, 7, 0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("kill -ILL $$", "killed by SIGILL"),
        ("echo ERROR: Failed to allocate tensors!; exit 1", "status 1 .*Failed to allocate"),
        ("echo fine; exit 0", "status 0"),
    ],
)
def test_a_benchmark_model_that_fails(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    _tool(stand, monkeypatch)
    stand.script(Path(os.environ[TOOL]), text)
    with pytest.raises(DeviceError, match=reason):
        run_agent(
            _tflite(tmp_path / "model.tflite", (4,)),
            _rows(),
            [Pass("latency", "latency", [0])],
            threads=1,
            device=Phone(),
        )
    assert stand.left() == []


@pytest.mark.parametrize(
    ("kind", "passes", "tool", "reason"),
    [
        ("onnx", "latency", "set", r"runs \.tflite files only"),
        ("tflite", "outputs", "set", "latencies but no answers"),
        ("tflite", "latency", "unset", f"{TOOL} is not set"),
        ("tflite", "latency", "gone", f"{TOOL}=.* is no file"),
    ],
)
def test_neither_python_nor_benchmark_model(
    stand: Stand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    passes: str,
    tool: str,
    reason: str,
) -> None:
    if tool != "unset":
        _tool(stand, monkeypatch)
    if tool == "gone":
        Path(os.environ[TOOL]).unlink()
    make = _sum_model if kind == "onnx" else lambda path: _tflite(path, (4,))
    with pytest.raises(DeviceError, match=reason):
        run_agent(
            make(tmp_path / f"model.{kind}"),
            _rows(),
            [Pass("all", passes, [0])],
            threads=1,
            device=Phone(),
        )
    assert stand.left() == []


def test_a_hot_phone_is_waited_for_until_patience_ends(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tool(stand, monkeypatch)
    stand.battery(level=50, temperature=452)
    started = time.monotonic()
    result = run_agent(
        _tflite(tmp_path / "model.tflite", (4,)),
        _rows(),
        [Pass("latency", "latency", [0])],
        threads=1,
        device=replace(Phone(), patience=0.5),
    )
    assert time.monotonic() - started >= 0.5
    first, last = result["conditions"]["readings"]
    assert first["celsius"] == last["celsius"] == 45.2
    assert first["waited"] >= 0.5


def test_without_a_battery_the_hottest_core_counts(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _tool(stand, monkeypatch)
    (stand.folder / "bin/dumpsys").unlink()
    for number, (kind, value) in enumerate([("cpu-0-0", 34100), ("cpu-1-0", 36200), ("gpu", 9e4)]):
        zone = stand.folder / f"root/sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{int(value)}\n")
    result = run_agent(
        _tflite(tmp_path / "model.tflite", (4,)),
        _rows(),
        [Pass("latency", "latency", [0])],
        threads=1,
        device=Phone(),
    )
    assert result["conditions"]["cores"] is None
    assert result["conditions"]["readings"][0] == {"celsius": 36.2, "battery": None, "waited": 0.0}
