"""The proof that a file holds the model's integers: it passes honest files and no others."""

from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.data import Rows
from edgekit.errors import ProofError
from edgekit.export import export_artifact
from edgekit.measure.integers import check_integers
from edgekit.model import Model, identify, load_model
from edgekit.steps.quantize.grid import quantize
from edgekit.steps.quantize.static import integer_weights, traced
from tests.static_cases import calibrated as calibrate
from tests.static_cases import static_case
from tests.tiny import tiny_checkpoint, tiny_texts


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(identify(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert"))))


@pytest.fixture(scope="module")
def calibrated() -> Model:
    return static_case("bert").model


def _corrupt(artifact: Artifact, integers: np.ndarray) -> None:
    """Change one integer of a weight where it lies in the file."""
    content = bytearray(artifact.path.read_bytes())
    place = max(content.find(integers.tobytes()), content.find(integers.T.tobytes()))
    assert place >= 0
    content[place] = (content[place] + 1) % 256
    artifact.path.write_bytes(bytes(content))


@pytest.mark.slow
@pytest.mark.parametrize(("format", "lengths"), [("onnx", ()), ("tflite", (16, 64))])
def test_a_static_file_is_held_to_every_weight(
    calibrated: Model, tmp_path: Path, format: Format, lengths: tuple[int, ...]
) -> None:
    artifact = export_artifact(
        calibrated, tmp_path, format, "int8-static", lengths, any_length=not lengths
    )
    expected = integer_weights(traced(calibrated))
    found = check_integers(artifact, calibrated)
    assert found is not None
    assert found["tensors"] + len(found["merged"]) == len(expected)
    assert not found["merged"]
    name = next(name for name in expected if name.endswith("intermediate.dense.weight"))
    _corrupt(artifact, expected[name][0])
    with pytest.raises(ProofError, match="integers of"):
        check_integers(artifact, calibrated)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_dynamic_file_is_held_to_what_it_names(
    plain: Model, tmp_path: Path, format: Format
) -> None:
    scheme: Scheme = "int8-dynamic"
    artifact = export_artifact(plain, tmp_path, format, scheme, any_length=True)
    found = check_integers(artifact, plain)
    assert found is not None and found["tensors"] > 10
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    weight = dict(plain.module.named_parameters())[name]
    _corrupt(artifact, quantize(weight.detach().numpy())[0])
    with pytest.raises(ProofError, match=f"1 integers of {name}"):
        check_integers(artifact, plain)


@pytest.mark.slow
def test_a_file_of_other_weights_is_refused(calibrated: Model, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "other", "bert", seed=1)
    other = load_model(identify(str(folder)))
    assert other.preprocessor is not None
    rows = other.preprocessor.encode(Rows(texts=tuple(tiny_texts(32))))
    artifact = export_artifact(calibrated, tmp_path / "out", "onnx", "int8-static")
    with pytest.raises(ProofError):
        check_integers(artifact, calibrate(other, rows)[0])
