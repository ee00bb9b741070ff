"""The same model makes the same bytes, in whatever process and after whatever else."""

from pathlib import Path

import pytest

from edgekit.artifact import Format
from edgekit.export import export_artifact
from tests.export.cases import case, tells_of_this_machine
from tests.fresh import Fresh
from tests.tiny import tiny_checkpoint

_FILES: dict[Format, str] = {
    "onnx": "model.onnx",
    "tflite": "model.tflite",
    "torchscript": "model.pt",
}
_SCRIPT = """
import sys
from pathlib import Path
from edgekit.export import export_artifact
from edgekit.model import identify, load_model
model = load_model(identify(sys.argv[1]))
for format in sys.argv[3:]:
    export_artifact(model, Path(sys.argv[2], format), format, "int8-dynamic", any_length=True)
"""


@pytest.mark.slow
def test_another_process_writes_the_same_bytes_without_a_trace_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    # A store of its own, so that it converts again.
    with monkeypatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
        arguments = ["-c", _SCRIPT, str(checkpoint), str(tmp_path / "there"), *_FILES]
        with Fresh(arguments) as process:
            assert process.stdout.read() + process.stderr.read() == ""
            assert process.wait() == 0
    for format, name in _FILES.items():
        # This process has traced other models before: nothing of that may show.
        here = tmp_path / "here" / format
        made = export_artifact(case("bert").model, here, format, "int8-dynamic", any_length=True)
        content = (tmp_path / "there" / format / name).read_bytes()
        assert content == made.path.read_bytes(), format
        # TorchScript names lines of torch's own library.
        assert format == "torchscript" or tells_of_this_machine(content) == []
        assert [path.name for path in (tmp_path / "there" / format).iterdir()] == [name]
