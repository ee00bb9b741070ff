"""The peak of a runtime, measured by a product of the model's own size."""

from pathlib import Path
from typing import Any

import pytest

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.contents import read_contents
from edgekit.measure.roofline import measure_peak, roofline, widest_layer
from tests.contents.test_static import linear_onnx, linear_tflite


@pytest.mark.slow
@pytest.mark.parametrize(("format", "write"), [("onnx", linear_onnx), ("tflite", linear_tflite)])
@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic", "int4-weights"])
def test_the_peak_is_of_the_widest_layer_in_the_files_scheme(
    tmp_path: Path, format: Format, write: Any, scheme: Scheme
) -> None:
    path = tmp_path / f"model.{format}"
    write(path, [8, 40, 300, 2])
    contents = read_contents(path)
    artifact = Artifact(path, format, scheme, contents.inputs, contents.outputs)
    assert widest_layer(path) == (40, 300)
    peak = measure_peak(artifact, threads=1, seconds=0.05)
    assert peak is not None
    assert peak["sizes"] == [128, 40, 300]
    assert set(peak["macs_per_second"]) == {"fp32", scheme}
    # Between a pocket calculator and a rack of accelerators.
    assert all(1e6 < each < 1e14 for each in peak["macs_per_second"].values())


def test_a_share_is_what_is_reached_of_the_peak() -> None:
    peak = {"sizes": [128, 4, 4], "macs_per_second": {"fp32": 4e9}}
    assert roofline(2_000_000, 1e-3, peak, "fp32") == {
        "macs_per_second": 2e9,
        "peak": 4e9,
        "share": 0.5,
    }
    assert roofline(None, 1e-3, peak, "fp32")["share"] is None
    assert roofline(1, 1.0, peak, "fp16")["share"] is None
    assert roofline(1, 1.0, None, "fp32")["peak"] is None


def test_files_of_others_have_their_filters_as_matrices(shared: Path) -> None:
    folder = shared / "weights" / "mlperf_tiny"
    assert widest_layer(folder / "pretrainedResnet_quant.tflite") == (576, 64)
    assert widest_layer(folder / "vww_96_float.tflite") == (256, 256)
