"""The guard: a file that does not hold what its scheme says is refused."""

from pathlib import Path

import pytest

from edgekit.artifact import Artifact, Format
from edgekit.contents import read_contents
from edgekit.errors import ProofError
from edgekit.export import export_artifact
from edgekit.measure.size import check_scheme
from edgekit.model import identify, load_model
from tests.tiny import tiny_checkpoint


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_float_file_that_is_called_int8_is_refused(tmp_path: Path, format: Format) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "checkpoint"))))
    artifact = export_artifact(model, tmp_path, format, "fp32")
    contents = read_contents(artifact.path)
    check_scheme(artifact, contents)
    for scheme in ("int8-dynamic", "fp16"):
        called = Artifact(artifact.path, format, scheme, artifact.inputs, artifact.outputs)
        with pytest.raises(ProofError, match=f"is called {scheme} but holds"):
            check_scheme(called, contents)
