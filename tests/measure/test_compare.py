"""Comparing two files: verdicts on ratios that are known, and on real files."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.artifact import Artifact, Tensor
from edgekit.errors import UsageError
from edgekit.measure.compare import compare, judge
from edgekit.preprocess import Encoded


def ratios(true: float, spread: float, seed: int, between: float = 0.005) -> list[np.ndarray]:
    """Six processes' pairs: the true ratio, a process's own bias, and noise in each pair."""
    draw = np.random.default_rng(seed)
    return [np.log(true) + draw.normal(0, between) + draw.normal(0, spread, 200) for _ in range(6)]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_a_ratio_of_one_is_never_faster_or_slower(seed: int) -> None:
    found = judge(ratios(1.0, 0.05, seed), [1.0, 1.01, 0.99], {})
    assert found.outcome in ("same", "inconclusive")
    assert found.low <= found.ratio <= found.high


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100)
def test_a_tenth_slower_or_faster_is_found(seed: int) -> None:
    assert judge(ratios(1.1, 0.05, seed), [1.0], {}).outcome == "slower"
    assert judge(ratios(1 / 1.1, 0.05, seed), [1.0], {}).outcome == "faster"


def test_a_host_whose_noise_is_larger_than_the_ratio_decides_nothing() -> None:
    found = judge(ratios(1.1, 0.05, 0), [1.0, 1.2], {})
    assert found.margin == pytest.approx(0.2)
    assert found.outcome == "inconclusive"


def test_processes_that_disagree_decide_nothing() -> None:
    found = judge(ratios(1.1, 0.05, 1, between=0.3), [1.0], {})
    assert found.outcome == "inconclusive"


def test_files_of_other_inputs_are_refused(tmp_path: Path) -> None:
    one = chain(tmp_path / "one.onnx", 1)
    other = dataclasses.replace(one, inputs=(Tensor("y", "float32", ("b", 64)),))
    with pytest.raises(UsageError, match="takes other inputs"):
        compare(
            one, other, Encoded({"x": np.zeros((1, 64), np.float32)}, None), threads=1, seconds=1
        )


def chain(path: Path, layers: int) -> Artifact:
    """An ONNX file of so many equal layers, one after the other."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(0, 0.1, (256, 256)).astype(np.float32)
    names = ["x", *(f"h{number}" for number in range(1, layers)), "logits"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 256])
        for name in ("x", "logits")
    ]
    graph = helper.make_graph(
        nodes, "chain", ends[:1], ends[1:], [numpy_helper.from_array(weights, "w")]
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    tensor = Tensor("x", "float32", ("b", 256))
    return Artifact(path, "onnx", "fp32", (tensor,), (Tensor("logits", "float32", ("b", 256)),))


@pytest.mark.slow
def test_a_file_with_twice_the_layers_is_slower(tmp_path: Path) -> None:
    rows = Encoded({"x": np.ones((64, 256), np.float32)}, None)
    short, long = chain(tmp_path / "short.onnx", 100), chain(tmp_path / "long.onnx", 200)
    found = compare(long, short, rows, threads=1, seconds=2)
    assert found.ratio == pytest.approx(2.0, rel=0.25)
    assert found.outcome in ("slower", "inconclusive")
    assert compare(short, long, rows, threads=1, seconds=2).outcome in ("faster", "inconclusive")
