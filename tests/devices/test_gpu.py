"""The NVIDIA GPU of a machine that has one, and what is said on one that has none."""

from pathlib import Path

import pytest

from edgekit.devices import gpu
from edgekit.devices.check import check_device
from edgekit.devices.device import open_device
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from tests.devices.test_agent import _rows, _sum_model


def test_a_machine_without_a_gpu_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"^gpu: there is no NVIDIA driver here"):
        run_agent(
            _sum_model(tmp_path / "model.onnx"),
            _rows(),
            [Pass("all", "outputs")],
            threads=1,
            device=open_device("gpu"),
        )


def test_a_runtime_that_cannot_use_the_gpu_does_not_fall_back_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The onnxruntime that edgekit installs has no CUDA in it."""
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(gpu, "_DRIVER", driver)
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(DeviceError, match="CUDAExecutionProvider could not be started"):
        run_agent(
            _sum_model(tmp_path / "model.onnx"),
            _rows(),
            [Pass("all", "outputs")],
            threads=1,
            device=open_device("gpu"),
        )


def test_it_has_no_more_to_its_name() -> None:
    with pytest.raises(UsageError, match="write gpu"):
        open_device("gpu:1")


@pytest.mark.skipif(gpu.Gpu().missing() is not None, reason="no NVIDIA GPU here")
def test_a_gpu_answers() -> None:
    check_device(open_device("gpu"))
