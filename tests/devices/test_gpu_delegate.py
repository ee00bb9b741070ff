"""LiteRT's GPU accelerator on SwiftShader: what it takes, and that it answers as the CPU does."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.data import Rows
from edgekit.devices import gpu_delegate
from edgekit.devices.agent import unsupported
from edgekit.devices.device import open_device
from edgekit.devices.gpu_delegate import GpuDelegate
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.export.tflite import export_tflite
from edgekit.model import Model, identify, load_model
from edgekit.preprocess import Encoded, ImagePreprocessor
from tests.tiny import IMAGE_FAMILIES, tiny_checkpoint, tiny_texts

BUCKETS = (8, 16)


def test_it_is_called_by_its_name_alone_and_has_no_times() -> None:
    device = open_device("gpu-delegate")
    assert (device.name, device.timed, device.formats) == ("gpu-delegate", False, ("tflite",))
    with pytest.raises(UsageError, match="write gpu-delegate"):
        open_device("gpu-delegate:adreno")


def test_it_says_how_to_set_it_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_delegate, "_INSTALLED", tmp_path)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    reason = GpuDelegate().missing()
    assert reason is not None
    assert "edgekit devices setup gpu-delegate" in reason or "x86-64" in reason


@pytest.mark.skipif(gpu_delegate._unfit() is not None, reason="not Linux on x86-64")
@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        (None, "no apt-get here"),
        ("echo 'E: Unable to locate package' >&2; exit 100", "Unable to locate package"),
    ],
)
def test_a_set_up_that_fails_is_one_sentence_and_leaves_nothing(
    tool: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    if tool is not None:
        for name in ("apt-get", "dpkg-deb"):
            (programs / name).write_text(f"#!/bin/sh\n{tool}\n")
            (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/nowhere")
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gpu_delegate, "_INSTALLED", tmp_path / "none")
    with pytest.raises(DeviceError, match=sentence):
        GpuDelegate().set_up()
    left = [path.name for path in (tmp_path / "cache" / "devices").iterdir()]
    assert [name for name in left if not name.endswith(".lock")] == []


def test_the_operators_left_are_read_from_what_the_delegate_says() -> None:
    lines = [
        "INFO: [environment.cc:36] Creating LiteRT environment with options",
        "ERROR: Following operations are not supported by GPU delegate:",
        "DEQUANTIZE: ",
        "EMBEDDING_LOOKUP: EMBEDDING_LOOKUP: Empty quantization params.",
        "94 operations will run on the GPU, and the remaining 46 operations will run on the CPU.",
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    ]
    assert unsupported(lines * 2) == ["DEQUANTIZE", "EMBEDDING_LOOKUP (Empty quantization params)"]
    assert unsupported(lines[:1]) == []


@pytest.fixture(scope="module")
def device() -> GpuDelegate:
    """The device, set up; skips where the driver cannot be had."""
    found = GpuDelegate()
    try:
        found.set_up()
    except DeviceError as error:
        pytest.skip(str(error))
    return found


def make(folder: Path, family: str, task: str = "text-classification") -> Model:
    return load_model(identify(str(tiny_checkpoint(folder, family, task, layers=1))))


def rows(model: Model) -> Encoded:
    picture = model.preprocessor
    if isinstance(picture, ImagePreprocessor):
        shape = (4, picture.channels, picture.height, picture.width)
        pixels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return Encoded({"pixel_values": pixels}, None)
    assert picture is not None
    return picture.encode(Rows(texts=tuple(tiny_texts(6, longest=3))))


def both(artifact: Artifact, encoded: Encoded, device: GpuDelegate) -> tuple[Any, Any, Any]:
    """Coverage, the GPU's answers and the host's."""
    everything = [Pass("all", "outputs")]
    gpu = run_agent(artifact, encoded, everything, threads=1, device=device)
    cpu = run_agent(artifact, encoded, everything, threads=1)
    return gpu["coverage"], gpu["passes"]["all"]["outputs"], cpu["passes"]["all"]["outputs"]


@pytest.mark.slow
# The plain case, and those whose graphs need something done for the GPU to take or answer them.
@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "text-classification"),
        ("xlnet", "token-classification"),
        ("resnet", "image-classification"),
    ],
)
def test_every_operator_is_delegated_and_right(
    family: str, task: str, device: GpuDelegate, tmp_path: Path
) -> None:
    picture = family in IMAGE_FAMILIES
    model = make(tmp_path / "model", family, task)
    artifact = export_tflite(model, tmp_path, scheme="fp16", lengths=() if picture else BUCKETS)
    coverage, gpu, cpu = both(artifact, rows(model), device)
    assert coverage == {"fully_accelerated": True, "on_cpu": []}
    np.testing.assert_allclose(gpu, cpu, atol=1e-4)


@pytest.mark.slow
def test_an_operator_that_stays_on_the_cpu_is_named(device: GpuDelegate, tmp_path: Path) -> None:
    """Dynamic int8 slices its positions."""
    model = make(tmp_path / "model", "bert")
    artifact = export_tflite(model, tmp_path, scheme="int8-dynamic", lengths=BUCKETS)
    coverage, _, _ = both(artifact, rows(model), device)
    assert not coverage["fully_accelerated"]
    assert any(name.startswith("SLICE") for name in coverage["on_cpu"])


@pytest.mark.slow
def test_a_file_for_any_length_is_refused(device: GpuDelegate, tmp_path: Path) -> None:
    model = make(tmp_path / "model", "bert")
    artifact = export_tflite(model, tmp_path, scheme="fp32", any_length=True)
    with pytest.raises(DeviceError, match="export buckets of fixed lengths"):
        both(artifact, rows(model), device)
