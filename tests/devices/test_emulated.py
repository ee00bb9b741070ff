"""Emulated 64-bit Arm: real wheels under a real qemu, set up from real package sources."""

import json
import os
import shutil
import signal
import string
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.artifact import Artifact, Scheme
from edgekit.devices.device import open_device
from edgekit.devices.emulated import Emulated, unpack_wheel
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.export.onnx import export_onnx
from edgekit.export.tflite import export_tflite
from edgekit.measure.elsewhere import prove_on
from edgekit.preprocess import Encoded
from tests.devices.test_agent import _rows, _sum_model
from tests.export.cases import Case, case

CORES = ("cortex-a53", "cortex-a76", "cortex-a710")
HOME = Path("devices", "emulated-arm64")


@pytest.fixture(scope="session")
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the device set up; pytest keeps it for the next run."""
    kept = getattr(request.config, "cache", None)
    folder = Path(kept.mkdir("edgekit")) if kept else tmp_path_factory.mktemp("emulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(folder))
        try:
            Emulated().set_up()
        except DeviceError as error:
            pytest.skip(str(error))
    return folder


@pytest.fixture
def ready(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``prepared`` in use."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(prepared))
    return prepared


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without the device."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(prepared: Path, empty: Path) -> Path:
    """A set-up of its own, to be damaged: the files are links, so replace them, never write."""
    shutil.copytree(prepared / HOME, empty / HOME, symlinks=True, copy_function=_link)
    return empty / HOME


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def test_names() -> None:
    assert open_device("emulated:arm64").name == "emulated:arm64-cortex-a53"
    for core in CORES:
        device = open_device(f"emulated:arm64-{core}")
        assert device.name == f"emulated:arm64-{core}"
        assert not device.timed
        assert device.formats == ("onnx", "tflite")


@given(
    st.one_of(
        st.text(string.ascii_letters + string.digits + "-:;$ '\"/."),
        st.sampled_from([f"arm64-{core}" for core in CORES]).map(str.upper),
        st.sampled_from(
            ["", "arm64-", "arm64-max", "arm", "arm64-cortex-a53 ", "arm64:cortex-a53"]
        ),
    )
)
def test_every_other_name_is_refused(rest: str) -> None:
    if rest in {"arm64", *(f"arm64-{core}" for core in CORES)}:
        return
    with pytest.raises(UsageError, match="there are emulated:arm64 ") as caught:
        open_device(f"emulated:{rest}")
    assert repr(f"emulated:{rest}") in str(caught.value)


def test_not_set_up_is_said_with_the_mend(empty: Path, tmp_path: Path) -> None:
    device = open_device("emulated:arm64")
    with pytest.raises(
        DeviceError, match="not set up; run edgekit devices setup emulated:arm64"
    ) as caught:
        run_agent(
            _sum_model(tmp_path / "model.onnx"),
            _rows(),
            [Pass("all", "outputs")],
            threads=1,
            device=device,
        )
    assert caught.value.exit_code == 3
    assert not empty.exists()


def test_a_machine_without_apt_is_told_so(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"no apt-get; .* Debian or Ubuntu"):
        Emulated().set_up()
    assert not (empty / "devices").exists()


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get")
def test_sources_without_arm_packages_leave_nothing_behind(
    empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt with no source at all, as on a machine whose mirror has no arm64."""
    settings = tmp_path / "apt.conf"
    settings.write_text('Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "/dev/null";\n')
    monkeypatch.setenv("APT_CONFIG", str(settings))
    with pytest.raises(DeviceError, match="offer no arm64 packages"):
        Emulated().set_up()
    assert not list((empty / "devices").iterdir())


@pytest.mark.parametrize("name", ["../outside.py", "/outside.py", "a/../../outside.py"])
def test_a_wheel_that_reaches_outside_is_refused(tmp_path: Path, name: str) -> None:
    wheel = tmp_path / "bad-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bad/__init__.py", "")
        archive.writestr(name, "")
    with pytest.raises(DeviceError, match="a path outside of it"):
        unpack_wheel(wheel, tmp_path / "site")
    assert list(tmp_path.iterdir()) == [wheel]


def test_a_damaged_wheel_is_one_sentence(tmp_path: Path) -> None:
    wheel = tmp_path / "bad-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("bad/__init__.py", "x" * 1000)
    content = bytearray(wheel.read_bytes())
    content[200:300] = bytes(100)
    wheel.write_bytes(content)
    with pytest.raises(DeviceError, match=r"bad-1\.0.* is damaged"):
        unpack_wheel(wheel, tmp_path / "site")


@pytest.fixture(scope="module")
def bert() -> Case:
    return case("bert")


@pytest.fixture(scope="module")
def files(bert: Case, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    schemes: tuple[Scheme, ...] = ("fp32", "int8-dynamic")
    found = {}
    for scheme in schemes:
        folder = tmp_path_factory.mktemp(scheme)
        found[f"onnx-{scheme}"] = export_onnx(bert.model, folder, scheme=scheme)
        found[f"tflite-{scheme}"] = export_tflite(
            bert.model, folder, scheme=scheme, any_length=True
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "core"),
    [
        ("onnx-int8-dynamic", "cortex-a76"),
        ("tflite-fp32", "cortex-a53"),
        ("tflite-int8-dynamic", "cortex-a710"),
    ],
)
def test_a_tiny_model_answers_as_on_this_host(
    ready: Path, bert: Case, files: dict[str, Artifact], name: str, core: str
) -> None:
    device = Emulated(core)
    _skip_unknown(device)
    found = prove_on(
        device, files[name], bert.rows, task=bert.model.task, problem=bert.model.problem, rows=4
    )
    assert found["device"] == f"emulated:arm64-{core}"
    assert found["rows"] == 4
    assert found["agreement"] == 1.0
    assert 0 <= found["mean_difference"] <= found["max_difference"]
    assert found["max_difference"] < (1e-4 if "fp32" in name else 0.05)


@pytest.mark.slow
def test_the_file_runs_on_the_core_that_was_asked_for(ready: Path, tmp_path: Path) -> None:
    """Also when two cores run at once: each sees its own processor."""
    ends = (CORES[0], CORES[-1])
    devices = [device for device in map(Emulated, ends) if device.missing() is None]
    code = (
        "import json, sys; from pathlib import Path\n"
        "from edgekit.devices.device import open_device\n"
        "from edgekit.devices.run import Pass, run_agent\n"
        "from tests.devices.test_agent import _rows, _sum_model\n"
        "result = run_agent(_sum_model(Path(sys.argv[2]) / 'model.onnx'), _rows(),\n"
        "    [Pass('all', 'outputs')], threads=1, device=open_device(sys.argv[1]))\n"
        "assert result['passes']['all']['outputs'].tolist() == [[18.0], [4.0], [3.0]]\n"
        "print(json.dumps(result['fingerprint']))\n"
    )
    running = []
    for device in devices:
        folder = tmp_path / device.core
        folder.mkdir()
        command = [sys.executable, "-c", code, device.name, str(folder)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=_ROOT))
    features = {}
    for device, process in zip(devices, running, strict=True):
        output, _ = process.communicate()
        assert process.returncode == 0
        fingerprint = json.loads(output)
        assert fingerprint["machine"] == "aarch64"
        features[device.core] = {"asimddp", "i8mm", "sve"} & set(fingerprint["features"])
    expected = {"cortex-a53": set(), "cortex-a710": {"asimddp", "i8mm", "sve"}}
    assert features == {device.core: expected[device.core] for device in devices}


_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_running_out_of_time_is_one_sentence(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DeviceError, match=r"^model\.onnx did not finish within 1 s on emulated:arm64-cortex-a76$"
    ):
        run_agent(
            _sum_model(tmp_path / "model.onnx"),
            _rows(),
            [Pass("all", "outputs")],
            threads=1,
            device=Emulated("cortex-a76"),
            timeout=1,
        )


@pytest.mark.slow
def test_a_file_that_the_runtime_refuses_is_one_sentence(ready: Path, tmp_path: Path) -> None:
    artifact = _sum_model(tmp_path / "model.onnx")
    artifact.path.write_bytes(artifact.path.read_bytes()[:40])
    with pytest.raises(DeviceError, match=r"does not run on onnxruntime \(emulated:arm64-cortex"):
        run_agent(artifact, _rows(), [Pass("all", "outputs")], threads=1, device=Emulated())


@pytest.mark.slow
def test_what_it_does_not_run_is_refused(ready: Path, tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "model.pt", "torchscript", "fp32", (), ())
    with pytest.raises(DeviceError, match=r"runs onnx, tflite, and model\.pt is none of it"):
        run_agent(
            artifact, Encoded({"x": np.zeros((1, 1))}, None), [], threads=1, device=Emulated()
        )


@pytest.mark.slow
def test_a_core_that_qemu_does_not_know(copy: Path) -> None:
    """As with Debian 12's qemu 7.2."""
    record = json.loads((copy / "ready.json").read_text())
    (copy / "ready.json").unlink()
    record |= {"qemu_version": "7.2", "cores": ["cortex-a53", "cortex-a76"]}
    (copy / "ready.json").write_text(json.dumps(record))
    assert Emulated("cortex-a76").missing() is None
    reason = Emulated("cortex-a710").missing()
    assert reason is not None
    assert reason.startswith("qemu 7.2 does not know cortex-a710; install qemu-user 10 or later")


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    ["site/numpy/__init__.py", "rootfs/usr/lib/python3*/json/__init__.py", "qemu/*", "ready.json"],
)
def test_damage_is_seen(copy: Path, damage: str) -> None:
    broken = next(copy.glob(damage), None)
    if broken is None:
        pytest.skip("qemu is on the PATH here")
    broken.unlink()
    broken.write_bytes(b"#")
    assert "run edgekit devices setup emulated:arm64" in (Emulated().missing() or "")


@pytest.mark.slow
def test_two_set_ups_at_once_mend_a_damaged_one(prepared: Path, copy: Path, tmp_path: Path) -> None:
    """With what a killed set-up left; both end well, and no trace of either is left.

    What they fill a folder with is there already: ``prepared`` has just shown how it is fetched.
    """
    broken = next(copy.glob("site/onnxruntime/capi/*.so"))
    broken.unlink()
    leftover = copy.with_name(copy.name + ".1234")
    (leftover / "partial" / "rootfs").mkdir(parents=True)
    code = (
        "import shutil, sys, time; from edgekit.devices import emulated\n"
        "def fill(partial):\n"
        "    time.sleep(1)\n"
        "    shutil.copytree(sys.argv[1], partial, symlinks=True, dirs_exist_ok=True)\n"
        "emulated._fill = fill\n"
        "emulated.Emulated().set_up()\n"
    )
    command = [sys.executable, "-c", code, str(prepared / HOME)]
    running = [subprocess.Popen(command, cwd=_ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    for process in running:
        _, stderr = process.communicate()
        assert process.returncode == 0, stderr.decode()
    assert Emulated().missing() is None
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]
    result = run_agent(
        _sum_model(tmp_path / "model.onnx"),
        _rows(),
        [Pass("all", "outputs")],
        threads=1,
        device=Emulated(),
    )
    assert result["passes"]["all"]["outputs"].tolist() == [[18.0], [4.0], [3.0]]


@pytest.mark.slow
def test_a_set_up_that_is_killed_is_begun_again_by_the_next(copy: Path) -> None:
    """Killed while it replaces a damaged one: what is there is either of the two, or nothing."""
    (copy / "ready.json").unlink()
    code = "from edgekit.devices.device import open_device as o; o('emulated:arm64').set_up()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=_ROOT, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any(copy.parent.glob("*/partial/apt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert any(copy.parent.glob("*/partial/apt"))
    assert "not set up" in (Emulated().missing() or "")


def _skip_unknown(device: Emulated) -> None:
    reason = device.missing()
    if reason is not None:
        pytest.skip(reason)
