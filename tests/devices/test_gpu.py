"""The NVIDIA GPU: refused with a reason where there is none, and never replaced by the CPU."""

from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.devices import gpu
from edgekit.devices.device import open_device
from edgekit.devices.gpu import Gpu
from edgekit.devices.host import Host
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.export import export_artifact
from edgekit.model import identify, load_model
from edgekit.preprocess import Encoded
from tests.tiny import tiny_checkpoint

HERE = Gpu().missing() is None


def test_it_is_called_by_its_name_alone() -> None:
    device = open_device("gpu")
    assert (device.name, device.timed, device.formats) == ("gpu", True, ("onnx", "torchscript"))
    with pytest.raises(UsageError, match="write gpu"):
        open_device("gpu:0")


def test_no_driver_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no NVIDIA driver here" in str(Gpu().missing())


@pytest.mark.skipif(
    gpu._onnxruntime_has_cuda() or gpu._torch_has_cuda(), reason="a runtime here has CUDA"
)
def test_runtimes_without_cuda_are_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA\n")
    monkeypatch.setattr(gpu, "_DRIVER", driver)
    assert "install onnxruntime-gpu" in str(Gpu().missing())


@pytest.fixture(scope="module")
def picture_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("model")
    model = load_model(identify(str(tiny_checkpoint(folder, "resnet", "image-classification"))))
    return {
        format: export_artifact(model, folder / format, format, "fp32") for format in Gpu().formats
    }


def _pictures() -> Encoded:
    pixels = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    return Encoded({"pixel_values": pixels}, None)


class _Forced(Gpu):
    """Runs the agent for CUDA whether there is any or not."""

    def missing(self) -> str | None:
        return None


@pytest.mark.slow
@pytest.mark.skipif(HERE, reason="there is a GPU")
@pytest.mark.parametrize(
    ("format", "sentence"),
    [("onnx", "ran on the CPU instead of CUDA"), ("torchscript", "sees no CUDA")],
)
def test_the_agent_does_not_take_the_cpu_instead(
    format: str, sentence: str, picture_model: dict[str, Artifact]
) -> None:
    with pytest.raises(DeviceError, match=sentence):
        run_agent(
            picture_model[format],
            _pictures(),
            [Pass("all", "outputs")],
            threads=1,
            device=_Forced(),
        )


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason=f"gpu: {Gpu().missing()}")
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_cuda_answers_as_the_host_does(format: str, picture_model: dict[str, Artifact]) -> None:
    found = [
        run_agent(picture_model[format], _pictures(), [Pass("all", "outputs")], threads=1, device=d)
        for d in (Gpu(), Host())
    ]
    outputs = [result["passes"]["all"]["outputs"] for result in found]
    np.testing.assert_allclose(*outputs, atol=1e-2)
    if format == "torchscript":
        assert found[0]["memory"]["gpu_peak"] > 0
