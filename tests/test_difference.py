"""``diff``: what grew, which operators came and went, and where the numbers part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import edgekit
from edgekit.cli import run
from edgekit.contents.diff import diff_files
from edgekit.errors import DataError, ModelError, UsageError
from edgekit.export.onnx import quantize_onnx_file
from tests.contents.model_files import onnx_stack, tflite_product, torchscript_product

pytestmark = pytest.mark.filterwarnings("ignore:.*torch:DeprecationWarning", "ignore:.*torch.q")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return onnx_stack(tmp_path / "a.onnx", width=64, rows=100)


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    np.savez(tmp_path / "ids.npz", input_ids=np.arange(15, dtype=np.int64).reshape(3, 5))
    return tmp_path / "ids.npz"


def edited(path: Path, name: str, change: Any) -> Path:
    """A copy with one constant changed."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = change(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path.with_name("b.onnx"))
    return path.with_name("b.onnx")


def test_a_larger_table_is_what_grew(stack: Path, tmp_path: Path) -> None:
    other = onnx_stack(tmp_path / "b.onnx", width=64, rows=150)
    found = diff_files(stack, other)
    assert found.layers[0].place == ("embeddings", "words")
    assert found.layers[0].grown == 50 * 64 * 4
    grown = other.stat().st_size - stack.stat().st_size
    assert sum(each.grown for each in found.layers) == grown
    assert sum(after - before for before, after in found.kinds.values()) == grown
    assert not found.ops_added and not found.ops_removed


@pytest.mark.slow
def test_dtypes_and_operators_of_a_quantized_file(stack: Path, tmp_path: Path, ids: Path) -> None:
    other = quantize_onnx_file(stack, tmp_path / "q", scheme="int8-dynamic").path
    (found,) = edgekit.diff(stack, other, inputs=ids)
    layer = next(e for e in found.files.layers if e.place == ("encoder", "layer 0", "attention"))
    assert (layer.dtypes_before, layer.dtypes_after) == (("float32",), ("int8",))
    assert found.files.ops_removed == {"MatMul": 5}
    assert found.files.ops_added["MatMulInteger"] == 5
    assert found.numerics is not None and found.numerics.difference is not None
    assert 0 < found.numerics.difference.error < 0.2


@pytest.mark.slow
def test_the_first_value_that_departs_is_where_a_weight_was_changed(stack: Path, ids: Path) -> None:
    name = "bert.encoder.layer.1.attention.self.query.weight"
    other = edited(stack, name, lambda weight: weight * 1.5)
    (found,) = edgekit.diff(stack, other, inputs=ids)
    assert found.numerics is not None and found.numerics.departure is not None
    first = found.numerics.departure.first
    assert first is not None and (first.name, first.made_by) == ("attention_1", "MatMul")
    assert first.error == pytest.approx(0.5, abs=0.02)
    before = [
        v for v in found.numerics.departure.values if v.name in ("embedded", "intermediate_0")
    ]
    assert len(before) == 2 and all(value.error == 0 for value in before)


@pytest.mark.slow
def test_the_same_file_does_not_depart(stack: Path, ids: Path) -> None:
    (found,) = edgekit.diff(stack, stack, inputs=ids)
    assert found.numerics is not None and found.numerics.departure is not None
    assert found.numerics.departure.first is None and found.numerics.departure.values
    assert found.numerics.difference is not None and found.numerics.difference.max == 0


@pytest.mark.slow
def test_files_without_a_name_in_common_say_so(stack: Path, ids: Path) -> None:
    model = onnx.load(stack)
    for node in model.graph.node:
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                made = name != "input_ids" and not name.endswith((".weight", ".bias"))
                side[place] = f"other_{name}" if made else name
    model.graph.output[0].name = "other_logits"
    onnx.save(model, stack.with_name("b.onnx"))
    (found,) = edgekit.diff(stack, stack.with_name("b.onnx"), inputs=ids)
    assert found.numerics is not None and found.numerics.departure is not None
    assert "no value" in str(found.numerics.departure.reason)
    assert found.numerics.difference is not None and found.numerics.difference.max == 0


@pytest.mark.slow
def test_tflite_values_depart_too(tmp_path: Path) -> None:
    one = tflite_product(tmp_path / "a.tflite")
    other = tflite_product(tmp_path / "b.tflite", seed=1)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 16), np.float32))
    (found,) = edgekit.diff(one, other, inputs=tmp_path / "x.npz")
    assert found.numerics is not None and found.numerics.departure is not None
    first = found.numerics.departure.first
    assert first is not None and (first.name, first.made_by) == ("state", "FULLY_CONNECTED")


@pytest.mark.slow
def test_other_formats_are_compared_by_bytes_alone(stack: Path, tmp_path: Path) -> None:
    (found,) = edgekit.diff(stack, torchscript_product(tmp_path / "a.pt"))
    assert found.files.note is not None and found.numerics is None
    assert sum(each.after for each in found.files.layers) == (tmp_path / "a.pt").stat().st_size


def test_bad_input_is_one_sentence(
    stack: Path, tmp_path: Path, ids: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx"):
        edgekit.diff(stack, tmp_path / "nowhere.onnx")
    np.savez(tmp_path / "wrong.npz", tokens=np.zeros((2, 3), np.int64))
    with pytest.raises(DataError, match="no array 'input_ids'"):
        edgekit.diff(stack, stack, inputs=tmp_path / "wrong.npz")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "one" / name).write_bytes(stack.read_bytes())
    tflite_product(tmp_path / "two" / "a.tflite")
    with pytest.raises(UsageError, match="nothing to pair"):
        edgekit.diff(tmp_path / "one", tmp_path / "two")
    (tmp_path / "cut.onnx").write_bytes(stack.read_bytes()[:900])
    capsys.readouterr()
    assert run(["diff", str(stack), str(tmp_path / "cut.onnx")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = edited(stack, "classifier.weight", lambda weight: weight.astype(np.float16))
    model = onnx.load(other)
    nodes = [helper.make_node("Cast", ["classifier.weight"], ["wide"], to=1), *model.graph.node]
    nodes[-2].input[1] = "wide"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, other)
    assert run(["diff", str(stack), str(other)]) == 0
    printed = capsys.readouterr().out
    assert "float32 → float16" in printed and "operators added: 1 Cast" in printed
    assert run(["diff", str(stack), str(other), "--json"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["bytes"] == [stack.stat().st_size, other.stat().st_size]
    assert sum(each["bytes"][1] for each in document["layers"]) == document["bytes"][1]
    assert document["numerics"] is None
