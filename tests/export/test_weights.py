"""Files of the weight schemes: what they hold, read by code of its own, is what the grid says."""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.artifact import Artifact, Scheme
from edgekit.contents import read_contents
from edgekit.contents.static import static_figures
from edgekit.errors import ExportError, ModelError
from edgekit.export import export_artifact
from edgekit.export.onnx import quantize_onnx_file
from edgekit.export.tflite import export_tflite, quantize_tflite_file
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
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.steps.quantize.grid import dequantize, quantize
from edgekit.target import load_target, scheme_refusal
from tests.export.test_onnx import run
from tests.export.test_tflite import (
    KNOWN_TO_2_14,
    encoded,
    operator_versions,
    raw_model,
    run_all,
)
from tests.tiny import tiny_checkpoint

Array = np.ndarray[Any, Any]
SCHEMES: tuple[Scheme, ...] = ("int8-weights", "int4-weights")
FLOAT, INT8, INT4 = 0, 9, 17  # of TFLite's tensor types


def random(*shape: int, seed: int = 0) -> Array:
    """Weights whose channels differ in size, as those of models do."""
    source = np.random.default_rng(seed)
    rows = source.standard_normal(shape) * np.exp(
        source.standard_normal((shape[0], *[1] * (len(shape) - 1)))
    )
    return rows.astype(np.float32)


def nibbles(data: Array) -> Array:
    """Two numbers from 0 to 15 a byte, the lower half first."""
    data = data.view(np.uint8).reshape(-1)
    return np.stack([data % 16, data // 16], axis=1).reshape(-1).astype(int)


# ONNX


def linear_onnx(path: Path, sizes: list[int], *, gemm: bool) -> dict[str, Array]:
    """A chain of products with biases; the weights by name, [outputs, inputs]."""
    nodes, stored, weights, last = [], [], {}, "x"
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        weight, bias = random(outer, inner, seed=number), random(outer, seed=99 + number)
        weights[f"w{number}"] = weight
        stored += [numpy_helper.from_array(bias, f"b{number}")]
        if gemm:
            stored += [numpy_helper.from_array(weight, f"w{number}")]
            made = helper.make_node(
                "Gemm", [last, f"w{number}", f"b{number}"], [f"h{number}"], transB=1
            )
            nodes += [made]
        else:
            stored += [numpy_helper.from_array(np.ascontiguousarray(weight.T), f"w{number}")]
            nodes += [
                helper.make_node("MatMul", [last, f"w{number}"], [f"p{number}"]),
                helper.make_node("Add", [f"p{number}", f"b{number}"], [f"h{number}"]),
            ]
        last = f"h{number}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", sizes[0]), (last, sizes[-1]))
    ]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], stored)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return weights


def stored_onnx(path: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("gemm", [False, True])
@pytest.mark.parametrize("sizes", [[64, 96, 5], [33, 40, 7]])
def test_onnx_holds_the_grids_integers_in_4_bits(
    sizes: list[int], gemm: bool, tmp_path: Path
) -> None:
    weights = linear_onnx(tmp_path / "source.onnx", sizes, gemm=gemm)
    made = quantize_onnx_file(tmp_path / "source.onnx", tmp_path / "out", scheme="int4-weights")
    model = onnx.load(made.path)
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {
        ("", 17),
        ("com.microsoft", 1),
    }
    stored = stored_onnx(made.path)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == len(weights)
    for node, weight in zip(products, weights.values(), strict=True):
        options = {e.name: helper.get_attribute_value(e) for e in node.attribute}
        outer, inner = weight.shape
        assert options == {
            "K": inner, "N": outer, "bits": 4, "block_size": 32, "accuracy_level": 4,
        }  # fmt: skip
        integers, scales = quantize(weight, 4, block=32)
        found = nibbles(stored[node.input[1]]).reshape(outer, -1) - 8
        np.testing.assert_array_equal(found[:, :inner], integers)
        assert (found[:, inner:] == 0).all()
        np.testing.assert_array_equal(stored[node.input[2]], scales.reshape(-1))
    x = random(3, sizes[0], seed=7)
    expected, names = x, sorted(weights)
    for number, name in enumerate(names):
        wide = dequantize(*quantize(weights[name], 4, block=32), block=32)
        expected = expected @ wide.T + random(len(wide), seed=99 + number)
    assert np.corrcoef(run(made.path, {"x": x}).ravel(), expected.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("gemm", [False, True])
def test_onnx_holds_the_grids_integers_in_8_bits(gemm: bool, tmp_path: Path) -> None:
    weights = linear_onnx(tmp_path / "source.onnx", [64, 96, 5], gemm=gemm)
    made = quantize_onnx_file(tmp_path / "source.onnx", tmp_path / "out", scheme="int8-weights")
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    stored = stored_onnx(made.path)
    for name, weight in weights.items():
        integers, scales = quantize(weight)
        found = stored[f"{name}.int8"]
        np.testing.assert_array_equal(found if gemm else found.T, integers)
        assert stored[f"{name}.scale"].shape == ((len(weight), 1) if gemm else (1, len(weight)))
        np.testing.assert_array_equal(stored[f"{name}.scale"].reshape(-1), scales)
    ours, theirs = (
        run(path, {"x": random(3, 64)}) for path in (made.path, tmp_path / "source.onnx")
    )
    # Float products of weights that were rounded, and of nothing else.
    np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max())


def test_onnx_runtime_widens_8_bits_once_at_load(tmp_path: Path) -> None:
    import onnxruntime

    linear_onnx(tmp_path / "source.onnx", [64, 96, 5], gemm=False)
    made = quantize_onnx_file(tmp_path / "source.onnx", tmp_path / "out", scheme="int8-weights")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    kernels = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "Cast" not in kernels and "Mul" not in kernels


def test_a_gemm_that_scales_is_widened_but_not_rewritten(tmp_path: Path) -> None:
    """What MatMulNBits cannot express stays float32; a widened weight it does not disturb."""
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5, transB=1)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 64), ("y", 32))
    ]
    table = helper.make_node("MatMul", ["y", "v"], ["z"])
    ends.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 64]))
    stored = [
        numpy_helper.from_array(random(32, 64), "w"),
        numpy_helper.from_array(random(32, 64, seed=1), "v"),
    ]
    graph = helper.make_graph([node, table], "gemm", ends[:1], ends[2:], stored)
    opset = helper.make_opsetid("", 17)
    source = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), source)
    for scheme, dtypes in (
        ("int8-weights", {"int8", "float32"}),
        ("int4-weights", {"int4", "float32"}),
    ):
        made = quantize_onnx_file(source, tmp_path / scheme, scheme=scheme)  # type: ignore[arg-type]
        contents = read_contents(made.path)
        assert {t.dtype for t in contents.tensors} == dtypes
        wide = [t.name for t in contents.tensors if t.dtype == "float32" and t.shape == (32, 64)]
        assert wide == (["w"] if scheme == "int4-weights" else [])
        ours, theirs = (run(path, {"x": random(3, 64)}) for path in (made.path, source))
        assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.97


# TFLite


def linear_tflite(path: Path, sizes: list[int]) -> dict[str, Array]:
    """A chain of FULLY_CONNECTEDs with biases for any number of rows; the weights by name."""
    kind, weights, operators = schema().TensorType.FLOAT32, {}, []

    def state(name: str, width: int) -> Tensor:
        fields = schema().TensorT()
        fields.shapeSignature = [-1, width]
        return Tensor(name, kind, (1, width), fields=fields)

    given = made = state("x", sizes[0])
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{number}"] = weight = random(outer, inner, seed=number)
        bias = constant(f"b{number}", random(outer, seed=99 + number))
        options = schema().FullyConnectedOptionsT()
        made, inputs = state(f"h{number}", outer), [made, constant(f"w{number}", weight), bias]
        operators.append(operator("FULLY_CONNECTED", inputs, [made], options=options))
    graph = Graph([given], [made], operators)
    write_program(
        Program([graph], [Signature("serving_default", graph, {"x": given}, {"y": made})]), path
    )
    return weights


def constants(path: Path) -> Iterator[tuple[str, Any, Array]]:
    """Name, schema fields and bytes of each constant of the first graph."""
    model = raw_model(path)
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None:
            yield tensor.name.decode(), tensor, np.asarray(data, np.uint8)


def answer(path: Path, x: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    return next(iter(Interpreter(str(path)).get_signature_runner()(x=x).values()))


@pytest.mark.parametrize("sizes", [[64, 96, 5], [32, 41, 4]])
def test_tflite_holds_the_grids_integers_in_4_bits(sizes: list[int], tmp_path: Path) -> None:
    weights = linear_tflite(tmp_path / "source.tflite", sizes)
    made = quantize_tflite_file(tmp_path / "source.tflite", tmp_path / "out", scheme="int4-weights")
    stored = {name: (tensor, data) for name, tensor, data in constants(made.path)}
    four = [name for name, weight in weights.items() if weight.shape[1] % 2 == 0]
    assert {name for name, (tensor, _) in stored.items() if tensor.type == INT4} == set(four)
    for name in four:
        tensor, data = stored[name]
        integers, scales = quantize(weights[name], 4)
        found = nibbles(data)
        np.testing.assert_array_equal(np.where(found > 7, found - 16, found), integers.reshape(-1))
        np.testing.assert_array_equal(tensor.quantization.scale, scales)
        assert not np.any(tensor.quantization.zeroPoint)
        assert tensor.quantization.quantizedDimension == 0
        assert tuple(tensor.shape) == integers.shape
    x = random(3, sizes[0], seed=7)
    expected = x
    for number, (name, weight) in enumerate(weights.items()):
        bits = 4 if name in four else 8
        wide = dequantize(*quantize(weight, bits))
        expected = expected @ wide.T + random(len(wide), seed=99 + number)
    assert np.corrcoef(answer(made.path, x[:1]).ravel(), expected[:1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("shape", [(8, 31), (3, 64), (64, 33)])
def test_what_the_oldest_4_bit_kernel_cannot_take_has_8(
    shape: tuple[int, int], tmp_path: Path
) -> None:
    linear_tflite(tmp_path / "source.tflite", [64, 96, shape[1], shape[0]])
    made = quantize_tflite_file(tmp_path / "source.tflite", tmp_path / "out", scheme="int4-weights")
    kinds = {name: tensor.type for name, tensor, _ in constants(made.path)}
    assert (kinds["w0"], kinds["w2"]) == (INT4, INT8)


def test_tflite_holds_the_grids_integers_in_8_bits(tmp_path: Path) -> None:
    weights = linear_tflite(tmp_path / "source.tflite", [64, 96, 5])
    source = tmp_path / "source.tflite"
    made = quantize_tflite_file(source, tmp_path / "out", scheme="int8-weights")
    assert read_contents(made.path).ops == {"DEQUANTIZE": 2, "FULLY_CONNECTED": 2}
    stored = {name: (tensor, data) for name, tensor, data in constants(made.path)}
    for name, weight in weights.items():
        integers, scales = quantize(weight)
        tensor, data = stored[name]
        assert tensor.type == INT8
        np.testing.assert_array_equal(data.view(np.int8).reshape(weight.shape), integers)
        np.testing.assert_array_equal(tensor.quantization.scale, scales)
    x = random(1, 64)
    theirs = answer(source, x)
    np.testing.assert_allclose(answer(made.path, x), theirs, atol=0.02 * np.abs(theirs).max())


def test_a_weight_that_two_products_share_is_widened_once(tmp_path: Path) -> None:
    kind = schema().TensorType.FLOAT32
    weight = constant("w", random(64, 64))
    states = [Tensor(name, kind, (1, 64)) for name in "xyz"]
    operators = [
        operator(
            "FULLY_CONNECTED", [a, weight, None], [b], options=schema().FullyConnectedOptionsT()
        )
        for a, b in itertools.pairwise(states)
    ]
    graph = Graph(states[:1], states[2:], operators)
    ends = {"x": states[0]}, {"y": states[2]}
    source = tmp_path / "source.tflite"
    write_program(Program([graph], [Signature("serving_default", graph, *ends)]), source)
    made = quantize_tflite_file(source, tmp_path / "out", scheme="int8-weights")
    assert read_contents(made.path).ops == {"DEQUANTIZE": 1, "FULLY_CONNECTED": 2}


# Whole models


def on_the_grid(model: Model, bits: int, block: int | None) -> Model:
    """The model with the weights that its file stands for."""
    import copy

    import torch

    rounded = copy.deepcopy(model)
    for module in rounded.module.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            is_linear = isinstance(module, torch.nn.Linear)
            fewer = (bits, 0, block) if is_linear else (8, 0, None)
            weight = module.weight.detach().numpy()
            wide = dequantize(*quantize(weight, *fewer), *fewer[1:])
            module.weight.data = torch.from_numpy(np.ascontiguousarray(wide))
    return rounded


@pytest.fixture(scope="module")
def bert() -> Model:
    folder = Path(tempfile.mkdtemp())
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    return load_model(identify(str(tiny_checkpoint(folder, "bert", **sizes))))


@pytest.fixture(scope="module")
def onnx_fp32(bert: Model) -> Artifact:
    return export_artifact(bert, Path(tempfile.mkdtemp()), "onnx", "fp32")


@pytest.fixture(scope="module")
def tflite_int4(bert: Model) -> Artifact:
    return export_tflite(bert, Path(tempfile.mkdtemp()), scheme="int4-weights", any_length=True)


def error(found: Any, expected: Array) -> float:
    """Root-mean-square, as a share of the spread."""
    return float(np.sqrt(((np.asarray(found) - expected) ** 2).mean()) / expected.std())


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "bits", "block", "limit"), [
    ("int8-weights", 8, None, 0.05), ("int4-weights", 4, 32, 0.15),
])  # fmt: skip
def test_an_onnx_file_answers_like_the_model_on_the_grid(
    scheme: Scheme,
    bits: int,
    block: int | None,
    limit: float,
    bert: Model,
    onnx_fp32: Artifact,
    tmp_path: Path,
) -> None:
    made = quantize_onnx_file(onnx_fp32.path, tmp_path, scheme=scheme)
    rows = encoded(bert, 12)
    feeds = {name: array.astype(np.int64) for name, array in rows.arrays.items()}
    expected = reference_outputs(on_the_grid(bert, bits, block), rows)
    assert error(run(made.path, feeds), expected) < limit


def test_a_tflite_file_answers_like_the_model_on_the_grid(
    bert: Model, tflite_int4: Artifact
) -> None:
    rows = encoded(bert, 12)
    expected = reference_outputs(on_the_grid(bert, 4, None), rows)
    assert error(run_all(tflite_int4.path, rows, bert.inputs), expected) < 0.15


def test_4_bits_are_counted_as_such(
    bert: Model, onnx_fp32: Artifact, tflite_int4: Artifact, tmp_path: Path
) -> None:
    import torch

    matrices = [m.weight for m in bert.module.modules() if isinstance(m, torch.nn.Linear)]
    numbers = sum(weight.numel() for weight in matrices)
    made = quantize_onnx_file(onnx_fp32.path, tmp_path, scheme="int4-weights")
    assert read_contents(made.path).bytes_per_dtype()["int4"] == numbers // 2
    shapes = sorted(t.shape for t in read_contents(made.path).tensors if t.dtype == "int4")
    assert shapes == sorted(tuple(weight.shape) for weight in matrices)
    # The head has 3 rows, which 2.14's kernel does not take in 4 bits.
    in_tflite = sum(weight.numel() for weight in matrices if len(weight) > 3)
    assert read_contents(tflite_int4.path).bytes_per_dtype()["int4"] == in_tflite // 2
    wide = static_figures(onnx_fp32.path, 16)
    assert static_figures(made.path, 16).macs == wide.macs
    assert static_figures(made.path, 16).weight_bytes < wide.weight_bytes / 4
    assert static_figures(tflite_int4.path, 16).macs is not None


def test_4_bit_files_promise_what_an_old_runtime_can_keep(tflite_int4: Artifact) -> None:
    for name, version in operator_versions(tflite_int4.path).items():
        assert version <= KNOWN_TO_2_14[name], name


@pytest.mark.parametrize("scheme", SCHEMES)
def test_torchscript_is_refused_and_says_what_would_do(
    scheme: Scheme, bert: Model, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=f"torchscript cannot hold {scheme}: .*--format onnx"):
        export_artifact(bert, tmp_path / "out", "torchscript", scheme)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_files_of_these_schemes_are_not_quantized_again(
    scheme: Scheme, onnx_fp32: Artifact, tmp_path: Path
) -> None:
    made = quantize_onnx_file(onnx_fp32.path, tmp_path / "once", scheme=scheme)
    linear_tflite(tmp_path / "source.tflite", [64, 96, 5])
    lite = quantize_tflite_file(tmp_path / "source.tflite", tmp_path / "lite", scheme=scheme)
    with pytest.raises(ModelError, match="quantized already"):
        quantize_tflite_file(lite.path, tmp_path / "twice", scheme=scheme)
    with pytest.raises(ModelError):
        quantize_onnx_file(made.path, tmp_path / "twice", scheme=scheme)
    assert not (tmp_path / "twice").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("instructions", "largest"), [("x86-64-v3", 63), ("x86-64-v4+vnni", 127)])
def test_the_targets_instructions_decide_how_far_an_integer_goes(
    instructions: str, largest: int, tmp_path: Path
) -> None:
    """Two products of uint8 and 7 bits fit the 16 bits that AVX2 sums them in."""
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "tiny"))))
    target = replace(load_target("linux-x86_64"), instruction_set=instructions)
    artifact = export_artifact(
        model, tmp_path / "out", "onnx", "int8-dynamic", bits=target.weight_bits
    )
    graph = onnx.load(artifact.path).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    products = [n.input[1] for n in graph.node if n.op_type == "MatMulInteger"]
    assert products
    assert {int(np.abs(stored[name]).max()) for name in products} == {largest}
    assert 2 * 255 * 63 < 2**15 < 2 * 255 * 127
    refused = scheme_refusal(target, ("onnx",), "int8-static")
    assert (refused is not None) == (largest == 63)
