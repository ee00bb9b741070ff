"""Predicted bytes against the bytes of real files."""

from pathlib import Path

import pytest

from edgekit.artifact import SCHEMES, STATIC, Format, Scheme, cannot_hold
from edgekit.data import Rows
from edgekit.export import export_artifact
from edgekit.filemodel import read_file_model
from edgekit.model import identify, load_model
from edgekit.plan.predict import predicted_bytes, weight_bytes
from tests.contents.test_static import linear_onnx, linear_tflite
from tests.static_cases import calibrated
from tests.tiny import tiny_checkpoint, tiny_texts


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("format", "lengths"), [("onnx", ()), ("tflite", (16, 64)), ("tflite", ()), ("torchscript", ())]
)
def test_prediction_is_within_one_percent(
    tmp_path: Path, format: Format, lengths: tuple[int, ...], scheme: Scheme
) -> None:
    """A model of a few megabytes: the graph around the weights no longer decides."""
    if scheme == "fp16" and format == "tflite" and not lengths:
        pytest.skip("fp16 TFLite is for GPU delegates, which need fixed lengths")
    if cannot_hold(format, scheme):
        pytest.skip("not to be had")
    if lengths and scheme not in ("fp16", "int8-dynamic", "int8-static"):
        pytest.skip("buckets share what is said of one length")
    checkpoint = tiny_checkpoint(
        tmp_path / "checkpoint",
        "bert",
        hidden_size=384,
        intermediate_size=1536,
    )
    source = identify(str(checkpoint))
    predicted = predicted_bytes(load_model(source, meta=True), format, scheme, lengths)
    model = load_model(source)
    if scheme in STATIC:
        assert model.preprocessor is not None
        rows = model.preprocessor.encode(Rows(texts=tuple(tiny_texts(10))))
        model, _ = calibrated(model, rows, scheme)
    written = export_artifact(model, tmp_path, format, scheme, lengths, any_length=not lengths)
    assert predicted == pytest.approx(written.bytes, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite", "torchscript"])
def test_of_a_network_of_convolutions_too(tmp_path: Path, format: Format) -> None:
    """Filters of more than a megabyte, and batch norms, which are folded."""
    folder = tmp_path / "checkpoint"
    sizes = {"depth_multiplier": 1.0, "min_depth": 8}
    source = identify(str(tiny_checkpoint(folder, "mobilenet_v2", "image-classification", **sizes)))
    for scheme in ("fp32", "int8-dynamic"):
        named: Scheme = scheme  # type: ignore[assignment]
        predicted = predicted_bytes(load_model(source, meta=True), format, named, ())
        written = export_artifact(load_model(source), tmp_path / scheme, format, named)
        assert predicted == pytest.approx(written.bytes, rel=0.01)


def test_weight_bytes_count_each_parameter_once(tmp_path: Path) -> None:
    from safetensors import safe_open

    checkpoint = tiny_checkpoint(tmp_path, "distilbert")
    with safe_open(checkpoint / "model.safetensors", "np") as file:
        stored = sum(file.get_tensor(name).nbytes for name in list(file.keys()))
    assert weight_bytes(load_model(identify(str(checkpoint)), meta=True)) == stored


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in STATIC])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_rewritten_file_is_predicted_too(tmp_path: Path, format: Format, scheme: Scheme) -> None:
    source = tmp_path / f"source.{format}"
    write = linear_onnx if format == "onnx" else linear_tflite
    write(source, [256, 512, 1024, 6])
    model = read_file_model(source, None)
    written = export_artifact(model, tmp_path / "out", format, scheme)
    assert predicted_bytes(model, format, scheme, ()) == pytest.approx(written.bytes, rel=0.05)
