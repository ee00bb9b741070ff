"""Constants that are packed: what is kept, how few bytes, and the same constants again."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.export.onnx_sparse import OVERHEAD, expand, expand_constants, pack, pack_constants


def model_of(weight: Any) -> onnx.ModelProto:
    """x [1, rows] times a matrix."""
    rows, columns = weight.shape
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["w"], ["wide"], to=1),
            helper.make_node("MatMul", ["x", "wide"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    assert kind in (TensorProto.FLOAT, TensorProto.INT8, TensorProto.FLOAT16)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def sparse_matrix(dtype: Any, share: float = 0.1, shape: tuple[int, int] = (120, 90)) -> Any:
    chance = np.random.default_rng(3)
    values = chance.integers(-100, 100, shape) * (chance.random(shape) < share)
    values[40:70] = 0  # a gap that one uint8 does not bridge
    return values.astype(dtype)


@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(-128, 127)), max_size=12))
def test_what_is_packed_comes_back(items: list[tuple[int, int]]) -> None:
    values = np.zeros(1201, np.int8)
    for place, number in items:
        values[place] = number
    kept, distances = pack(values)
    assert np.array_equal(expand(kept, distances, values.shape), values)
    assert kept.size <= np.count_nonzero(values) + 5


@pytest.mark.parametrize("dtype", [np.int8, np.float16, np.float32])
def test_the_file_expands_itself_and_holds_two_parts_for_what_is_kept(dtype: Any) -> None:
    weight = sparse_matrix(dtype)
    plain, packed = model_of(weight), model_of(weight)
    pack_constants(packed)
    onnx.checker.check_model(packed)
    assert packed.ByteSize() < np.count_nonzero(weight) * (weight.itemsize + 1) + OVERHEAD + 400
    x = np.random.default_rng(0).normal(size=(1, 120)).astype(np.float32)
    answers = [
        onnxruntime.InferenceSession(
            each.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, {"x": x})[0]
        for each in (plain, packed)
    ]
    assert np.array_equal(*answers)
    expand_constants(packed)
    assert [node.op_type for node in packed.graph.node] == ["Cast", "MatMul"]
    (found,) = packed.graph.initializer
    assert found.SerializeToString() == plain.graph.initializer[0].SerializeToString()


def test_a_dense_constant_and_a_small_one_stay_as_they_are() -> None:
    for weight in (sparse_matrix(np.int8, 0.9), sparse_matrix(np.int8, 0.1, (71, 4))):
        model = model_of(weight)
        before = model.SerializeToString(deterministic=True)
        pack_constants(model)
        assert model.SerializeToString(deterministic=True) == before
