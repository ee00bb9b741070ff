"""Static figures against arithmetic by hand, and against what others published."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.contents import read_contents
from edgekit.contents.static import Static, static_figures
from edgekit.errors import ModelError
from edgekit.export import export_artifact
from edgekit.export.tflite_file import write_program
from edgekit.export.tflite_graph import (
    Graph,
    Program,
    Signature,
    Tensor,
    constant,
    operator,
    schema,
)
from edgekit.model import identify, load_model
from tests.tiny import tiny_checkpoint

LABELS = 3


def bert_macs(length: int, width: int = 24, inner: int = 32, layers: int = 2) -> int:
    """Of a classifier whose last layer works for the first token alone."""
    linear = 4 * width * width + 2 * width * inner
    attention = 2 * length * width
    full = (layers - 1) * length * (linear + attention)
    keys_and_values = length * 2 * width * width
    first = linear - 2 * width * width + attention
    head = width * width + width * LABELS
    return full + keys_and_values + first + head


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(identify(str(tiny_checkpoint(tmp_path_factory.mktemp("bert")))))


@pytest.fixture(scope="module")
def onnx_file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_artifact(model, tmp_path_factory.mktemp("onnx"), "onnx", "fp32").path


@pytest.fixture(scope="module")
def tflite_file(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tflite")
    return export_artifact(model, folder, "tflite", "fp32", any_length=True).path


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 7, 64])
def test_macs_of_a_bert_are_those_of_its_config(
    onnx_file: Path, tflite_file: Path, length: int
) -> None:
    for path in (onnx_file, tflite_file):
        assert static_figures(path, length).macs == bert_macs(length)


def test_weights_are_read_once_and_tables_by_row(
    model: Any, onnx_file: Path, tflite_file: Path
) -> None:
    named = dict(model.module.named_parameters())
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    rest = sum(p.nbytes for n, p in named.items() if not any(table in n for table in tables))
    for length in (1, 10):
        looked_up = 2 * length * 24 * 4  # words, and positions with the token type in them
        for path in (onnx_file, tflite_file):
            found = static_figures(path, length).weight_bytes
            assert found is not None
            # Beside them there are a few scalars, such as the norms' epsilon.
            assert 0 <= found - rest - looked_up < 200


def test_parameters_are_the_checkpoints(model: Any, onnx_file: Path, tflite_file: Path) -> None:
    count = sum(parameter.numel() for parameter in model.module.parameters())
    for path in (onnx_file, tflite_file):
        found = static_figures(path, 8).parameters
        assert found is not None
        assert abs(found - count) <= 2 * 24 + 20  # the token types may be folded into positions


def test_both_formats_need_nearly_the_same_memory_and_more_for_more_tokens(
    onnx_file: Path, tflite_file: Path
) -> None:
    short, long = (static_figures(onnx_file, n).activation_bytes for n in (8, 64))
    other = static_figures(tflite_file, 64).activation_bytes
    assert short is not None and long is not None and other is not None
    assert 4 * short < long
    assert abs(long - other) < 0.02 * long


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_int8_does_the_same_products_and_reads_fewer_bytes(
    model: Any, onnx_file: Path, tmp_path: Path, format: Any
) -> None:
    path = export_artifact(model, tmp_path, format, "int8-dynamic", any_length=True).path
    wide, narrow = static_figures(onnx_file, 8), static_figures(path, 8)
    assert narrow.macs == wide.macs
    assert narrow.weight_bytes is not None and wide.weight_bytes is not None
    assert narrow.weight_bytes < 0.5 * wide.weight_bytes


@pytest.mark.slow
def test_half_precision_counts_the_stored_bytes(
    model: Any, tflite_file: Path, tmp_path: Path
) -> None:
    path = export_artifact(model, tmp_path, "tflite", "fp16", [16]).path
    wide, half = static_figures(tflite_file, 16), static_figures(path, 16)
    assert half.macs == wide.macs
    assert half.weight_bytes is not None and wide.weight_bytes is not None
    assert abs(half.weight_bytes - wide.weight_bytes / 2) < 200


@pytest.mark.slow
def test_of_buckets_the_one_that_holds_the_length_counts(model: Any, tmp_path: Path) -> None:
    path = export_artifact(model, tmp_path, "tflite", "fp32", [8, 16]).path
    for length, bucket in ((3, 8), (8, 8), (9, 16), (99, 16)):
        assert static_figures(path, length).macs == bert_macs(bucket)


def test_without_a_length_a_text_models_figures_are_not_guessed(
    onnx_file: Path, tflite_file: Path
) -> None:
    for path in (onnx_file, tflite_file):
        found = static_figures(path, None)
        assert (found.macs, found.activation_bytes) == (None, None)
        assert found.ops == read_contents(path).ops
        assert found.parameters is not None


def test_torchscript_has_its_calls_counted_and_no_more(model: Any, tmp_path: Path) -> None:
    path = export_artifact(model, tmp_path, "torchscript", "fp32").path
    found = static_figures(path, 8)
    assert found == Static(None, None, None, read_contents(path).ops, None, 8)
    assert found.to_json()["macs"] is None


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        # Banbury et al. 2021, MLPerf Tiny Benchmark, arXiv 2106.07597: 12.5, 2.7 and 7.5 million.
        ("pretrainedResnet", 12_501_632),
        ("kws_ref_model", 2_656_768),
        ("vww_96", 7_489_664),
    ],
)
def test_files_of_others_have_the_published_macs(shared: Path, name: str, macs: int) -> None:
    files = sorted((shared / "weights" / "mlperf_tiny").glob(f"{name}*.tflite"))
    assert len(files) == 2
    found = [static_figures(path, None) for path in files]
    assert [each.macs for each in found] == [macs, macs]
    assert all(each.activation_bytes and each.weight_bytes for each in found)
    assert len({each.parameters for each in found}) == 1


widths = st.lists(st.integers(1, 40), min_size=2, max_size=6)


def linear_onnx(path: Path, sizes: list[int]) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = [np.zeros((a, b), np.float32) for a, b in itertools.pairwise(sizes)]
    nodes = [
        helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i, _ in enumerate(weights)
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x0", sizes[0]), (f"x{len(weights)}", sizes[-1]))
    ]
    stored = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


def linear_tflite(path: Path, sizes: list[int]) -> None:
    values = [Tensor(f"x{i}", 0, (1, size)) for i, size in enumerate(sizes)]
    ops = []
    for number, (a, b) in enumerate(itertools.pairwise(values)):
        weight = constant(f"w{number}", np.full((b.shape[1], a.shape[1]), number, np.float32))
        options = schema().FullyConnectedOptionsT()
        ops.append(operator("FULLY_CONNECTED", [a, weight, None], [b], options=options))
    graph = Graph(values[:1], values[-1:], ops)
    signature = Signature("main", graph, {"x": values[0]}, {"y": values[-1]})
    write_program(Program([graph], [signature]), path)


@given(sizes=widths)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_stack_of_products_is_counted_in_both_formats(tmp_path: Path, sizes: list[int]) -> None:
    pairs = list(itertools.pairwise(sizes))
    products = sum(a * b for a, b in pairs)
    for name, write in (("model.onnx", linear_onnx), ("model.tflite", linear_tflite)):
        write(tmp_path / name, sizes)
        found = static_figures(tmp_path / name, None)
        assert found.macs == products
        assert found.weight_bytes == 4 * products
        assert found.activation_bytes == 4 * max(a + b for a, b in pairs)
        assert sum(found.ops.values()) == len(pairs)


def test_damage_is_one_sentence(onnx_file: Path, tflite_file: Path, tmp_path: Path) -> None:
    for path in (onnx_file, tflite_file):
        cut = tmp_path / path.name
        cut.write_bytes(path.read_bytes()[:-900])
        with pytest.raises(ModelError, match="damaged") as caught:
            static_figures(cut, 8)
        assert "\n" not in str(caught.value)


def test_a_shape_that_litert_refuses_is_not_known(tmp_path: Path) -> None:
    """A sum of shapes that do not fit; with a free dimension, so that LiteRT is asked."""
    fields = schema().TensorT()
    fields.shapeSignature = [1, -1]
    state = Tensor("x", 0, (1, 1), fields=fields)
    made = Tensor("y", 0, (1, 5))
    row = constant("w", np.zeros((1, 5), np.float32))
    op = operator("ADD", [state, row], [made], options=schema().AddOptionsT())
    graph = Graph([state], [made], [op])
    path = tmp_path / "model.tflite"
    write_program(Program([graph], [Signature("main", graph, {"x": state}, {"y": made})]), path)
    assert static_figures(path, 5).activation_bytes == 2 * 20
    found = static_figures(path, 3)
    assert found.activation_bytes is None
    assert found.parameters == 5
