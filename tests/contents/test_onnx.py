"""Reading ONNX files: what is in them, and refusing what is damaged or hostile."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.artifact import Tensor
from edgekit.contents import StoredTensor, read_contents
from edgekit.errors import ModelError


def small(**options: Any) -> onnx.ModelProto:
    """A product, a branch with a constant of its own, and constants of all kinds."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    inner = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(2))),
            helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        ],
        "inner",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [2])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Constant", [], ["k"], value_ints=[1, 2, 3]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("If", ["condition"], ["z"], then_branch=inner, else_branch=inner),
        helper.make_node("Special", ["a"], ["s"], domain="com.somebody"),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            numpy_helper.from_array(weight, "w"),
            helper.make_tensor("four", TensorProto.INT4, [3], [1, -2, 3]),
            numpy_helper.from_array(np.array(True), "condition"),
        ],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.somebody", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **options)


def test_contents_list_what_the_file_stores(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(small(), path)
    contents = read_contents(path)
    assert contents.format == "onnx"
    assert contents.bytes == path.stat().st_size
    assert contents.inputs == (Tensor("x", "float32", ("batch", 3)),)
    assert contents.outputs == (Tensor("y", "float32", ("batch", 4)),)
    assert contents.ops == {"MatMul": 2, "Cast": 2, "If": 1, "com.somebody.Special": 1}
    assert contents.tensors == (
        StoredTensor("w", "float32", (3, 4), 48),
        StoredTensor("four", "int4", (3,), 2),
        StoredTensor("condition", "bool", (), 1),
        StoredTensor("k", "int64", (3,), 24),
        StoredTensor("c", "float64", (2,), 16),
        StoredTensor("c", "float64", (2,), 16),
    )
    assert contents.bytes_per_dtype() == {
        "float32": 48,
        "float64": 32,
        "int64": 24,
        "int4": 2,
        "bool": 1,
    }


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    content = small().SerializeToString()
    path = tmp_path / "cut.onnx"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.onnx"):
            read_contents(path)


def test_a_weight_that_does_not_fill_its_shape_is_refused(tmp_path: Path) -> None:
    model = small()
    model.graph.initializer[0].dims[0] = 300_000_000
    (tmp_path / "vast.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"vast\.onnx is damaged"):
        read_contents(tmp_path / "vast.onnx")


def test_weights_beside_the_file_count(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    onnx.save(small(), path, save_as_external_data=True, location="small.bin", size_threshold=0)
    contents = read_contents(path)
    assert contents.bytes == path.stat().st_size + (tmp_path / "small.bin").stat().st_size
    assert StoredTensor("w", "float32", (3, 4), 48) in contents.tensors
    (tmp_path / "small.bin").unlink()
    with pytest.raises(ModelError, match=r"small\.bin"):
        read_contents(path)


@pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname"])
def test_weights_outside_the_folder_are_refused(place: str, tmp_path: Path) -> None:
    model = small()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=place)
    (tmp_path / "outside.bin").write_bytes(bytes(48))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "sly.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"sly\.onnx"):
        read_contents(tmp_path / "in" / "sly.onnx")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", b"", "damaged or no onnx"),
        ("model.onnx", b"\x00" * 64, "damaged or no ONNX"),
        ("model.onnx", b"This is no model at all, but a text.", "damaged or no ONNX"),
        ("model.onnx", b"\x1c\x00\x00\x00TFL3" + bytes(64), "holds tflite, not onnx"),
        ("model.tflite", b"This is no model at all.", "damaged or no tflite"),
        ("model.pt", b"This is no model at all.", "damaged or no torchscript"),
        ("model.pt", b"PK\x03\x04" + bytes(64), "truncated or damaged"),
        ("model.bin", b"This is no model at all.", "no model file that edgekit knows"),
    ],
)
def test_other_content_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_contents(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        read_contents(tmp_path / "model.onnx")
