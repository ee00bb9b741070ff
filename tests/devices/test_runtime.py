"""Other versions of a runtime, in environments of their own, and devices by their names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.devices.check import check_device
from edgekit.devices.device import kinds, open_device, ready
from edgekit.devices.runtime import Runtime, matrix
from edgekit.errors import DeviceError, EdgekitError, UsageError


@pytest.mark.parametrize(
    "name", ["runtime:", "runtime:onnxruntime", "runtime:pandas==1.0", "runtime:onnxruntime==x; ls"]
)
def test_a_name_that_is_no_runtime_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"write runtime:<package>==<version>"):
        open_device(name)


def test_a_name_that_is_nearly_a_device_gets_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'host'"):
        open_device("hots")


@given(st.sampled_from(kinds()), st.text(max_size=20))
def test_any_name_is_a_device_or_refused_in_a_sentence(kind: str, rest: str) -> None:
    said = ""
    try:
        said = open_device(f"{kind}:{rest}" if rest else kind).name
    except EdgekitError as error:
        said = str(error)
    assert kind in said
    assert len(said.splitlines()) == 1


def test_the_matrix_starts_at_the_promised_version() -> None:
    names = [device.name for device in matrix("onnx", "onnxruntime", "1.19.2")]
    assert names[0] == "runtime:onnxruntime==1.19.2"
    assert "runtime:onnxruntime==1.17.0" not in names
    assert len(set(names)) == len(names) > 1
    (first, *others) = matrix("tflite", "tflite-runtime", "2.14.0")
    assert first == Runtime("tflite-runtime", "2.14.0")
    assert first not in others


@pytest.mark.slow
@pytest.mark.parametrize("name", ["runtime:onnxruntime==1.17.0", "runtime:tflite-runtime==2.14.0"])
def test_the_oldest_runtimes_are_set_up_once_and_answer(name: str) -> None:
    device = ready(name)
    assert isinstance(device, Runtime)
    made = (device.folder / "complete").stat().st_mtime_ns
    check_device(device)
    device.set_up()
    assert (device.folder / "complete").stat().st_mtime_ns == made


@pytest.mark.slow
def test_a_version_that_does_not_exist_leaves_nothing(cache: Path) -> None:
    with pytest.raises(DeviceError, match=r"^cannot set up runtime:onnxruntime==0\.0\.7") as caught:
        ready("runtime:onnxruntime==0.0.7")
    assert len(str(caught.value).splitlines()) == 1
    assert not list((cache / "devices").glob("onnxruntime-0.0.7*.*[!lock]"))
