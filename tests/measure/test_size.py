"""The guard: a file that does not hold what its scheme says is refused."""

import math
from pathlib import Path

import pytest

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.contents import read_contents
from edgekit.errors import ProofError
from edgekit.export import export_artifact
from edgekit.export.onnx import quantize_onnx_file
from edgekit.export.tflite import quantize_tflite_file
from edgekit.measure.size import check_scheme
from edgekit.model import identify, load_model
from tests.contents.test_static import linear_onnx, linear_tflite
from tests.tiny import tiny_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_float_file_that_is_called_int8_is_refused(tmp_path: Path, format: Format) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "checkpoint"))))
    artifact = export_artifact(model, tmp_path, format, "fp32")
    contents = read_contents(artifact.path)
    check_scheme(artifact, contents)
    schemes: tuple[Scheme, ...] = ("int8-dynamic", "fp16", "int8-weights", "int4-weights")
    for scheme in schemes:
        called = Artifact(artifact.path, format, scheme, artifact.inputs, artifact.outputs)
        with pytest.raises(ProofError, match=f"is called {scheme} but holds"):
            check_scheme(called, contents)


@pytest.mark.parametrize("before", ["int8-dynamic", "int8-weights"])
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_matrices_of_8_bits_are_no_4_bit_file(
    tmp_path: Path, format: Format, before: Scheme
) -> None:
    write = linear_onnx if format == "onnx" else linear_tflite
    source = tmp_path / f"source.{format}"
    write(source, [256, 300, 512, 4])
    rewrite = quantize_onnx_file if format == "onnx" else quantize_tflite_file
    good = rewrite(source, tmp_path / "good", scheme="int4-weights")
    check_scheme(good, read_contents(good.path))
    other = rewrite(source, tmp_path / "other", scheme=before)
    called = Artifact(other.path, format, "int4-weights", other.inputs, other.outputs)
    with pytest.raises(ProofError, match="is called int4-weights but holds"):
        check_scheme(called, read_contents(other.path))


def test_a_large_matrix_of_8_bits_beside_a_small_one_of_4_is_refused(tmp_path: Path) -> None:
    linear_tflite(tmp_path / "source.tflite", [256, 301, 512, 4])  # 4 bits are for even columns
    made = quantize_tflite_file(tmp_path / "source.tflite", tmp_path, scheme="int4-weights")
    with pytest.raises(ProofError, match="holds 154112 bytes of int8 matrices beside 39552 bytes"):
        check_scheme(made, read_contents(made.path))


@pytest.mark.slow
def test_a_table_of_8_bits_is_part_of_a_4_bit_file(tmp_path: Path) -> None:
    config = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", max_length=512, **config)
    model = load_model(identify(str(checkpoint)))
    made = export_artifact(model, tmp_path, "onnx", "int4-weights")
    contents = read_contents(made.path)
    large = [t for t in contents.tensors if t.dtype == "int8" and math.prod(t.shape) > 2**16]
    assert large
    check_scheme(made, contents)
