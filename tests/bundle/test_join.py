"""Bundles of tasks on one base share a file of weights, and answer as they did."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import edgekit
from edgekit.cli import run
from tests.tiny import tiny_checkpoint
from tests.tiny_data import LABELS, table_file, texts


@dataclass(frozen=True)
class Two:
    """Bundles of one encoder with two heads."""

    first: Path
    second: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Two:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("two")
    base = tiny_checkpoint(
        folder / "first", "bert", hidden_size=64, num_attention_heads=4, layers=1
    )
    other = tiny_checkpoint(
        folder / "second", "bert", hidden_size=64, num_attention_heads=4, layers=1
    )
    tensors = load_file(other / "model.safetensors")
    for name in tensors:
        if name.endswith(".bias") or name.startswith("classifier."):
            tensors[name] = tensors[name] + np.float32(0.1)
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    # Without labels, which a random model would only guess.
    table_file(folder / "data.csv", ["text"], [[text] for text in texts(12)])
    for each in (base, other):
        edgekit.build(
            each,
            data=folder / "data.csv",
            eval=folder / "data.csv",
            target="linux-x86_64",
            scheme="fp32",
            output=folder / "dist" / each.name,
        )
    return Two(*(folder / "dist" / each.name / "linux-x86_64" for each in (base, other)))


@pytest.mark.slow
def test_what_both_have_is_there_once_and_both_answer_as_before(
    two: Two, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "both"
    tasks = [f"one={two.first}", f"two={two.second}"]
    assert run(["join", *tasks, "--output", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == sum(path.stat().st_size for path in output.iterdir()) < told["apart"]
    document = json.loads((output / "tasks.json").read_text())
    assert document["tasks"]["two"]["labels"] == list(LABELS)
    for name, bundle in (("one", two.first), ("two", two.second)):
        # By ONNX's own reader the tensors are the bundle's.
        whole, part = (
            {
                t.name: onnx.numpy_helper.to_array(t).tobytes()
                for t in onnx.load(p).graph.initializer
            }
            for p in (bundle / "model.onnx", output / f"{name}.onnx")
        )
        assert whole == part
        golden = json.loads((bundle / "golden.json").read_text())
        session = onnxruntime.InferenceSession(output / f"{name}.onnx")
        for row in golden["rows"]:
            feed = {key: np.asarray([value], np.int64) for key, value in row["inputs"].items()}
            wanted = np.asarray(row["outputs"]["model.onnx"]).reshape(-1)
            assert np.allclose(session.run(None, feed)[0].reshape(-1), wanted, atol=1e-4)
    # Nothing large is in either of the small files.
    small = onnx.load(output / "two.onnx", load_external_data=False).graph.initializer
    assert max(len(tensor.raw_data) for tensor in small) < 1024
    assert run(["join", *tasks, "--output", str(output)]) == 2


def test_what_does_not_go_together_is_refused(tmp_path: Path, capsys: Any) -> None:
    assert run(["join", "one=a", "--output", str(tmp_path / "both")]) == 2
    assert "name two or more" in capsys.readouterr().err
    assert run(["join", "../a=b", "c=d", "--output", str(tmp_path / "both")]) == 2
    assert "names no task" in capsys.readouterr().err
    assert run(["join", "a=b", "c=d", "--output", str(tmp_path / "both")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
