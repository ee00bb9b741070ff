"""ONNX files, read by the onnx package and run by ONNX Runtime, against the torch model."""

import contextlib
import functools
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekit.artifact import Artifact
from edgekit.contents import read_contents
from edgekit.data import Rows
from edgekit.devices.agent import saturating
from edgekit.errors import ExportError, ModelError
from edgekit.export import onnx_convert
from edgekit.export.onnx import export_onnx, quantize_onnx_file
from edgekit.model import Model
from edgekit.steps.quantize.grid import quantize_int8
from tests.export.cases import DISTINCT, INT8_COSINE, Array, case, each_case
from tests.old_runtimes import python_with

each_family = each_case(
    ("bert", "text-classification"),
    ("resnet", "image-classification"),
    cases=(*DISTINCT, ("mpnet", "text-classification")),
)


class InPlace(nn.Module):
    """Sums into what is read again, by another name, and into what is not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        turned = y.transpose(0, 1).contiguous().view(-1)
        turned += 1
        z = self.linear(y)
        z.view(-1).add_(2)
        own = torch.relu(z)
        own += y
        return own + z + turned.view(6, -1).transpose(0, 1)


@pytest.mark.slow
def test_sums_in_place_are_sums_of_what_is_read_later(tmp_path: Path) -> None:
    module = InPlace().eval()
    x = torch.randn(4, 6)
    made = export_onnx(
        Model(module, "module", None, None, None, (), example={"x": x}), tmp_path, scheme="fp32"
    )
    with torch.no_grad():
        np.testing.assert_allclose(run(made.path, {"x": x.numpy()}), module(x), atol=1e-5)


@functools.cache
def exported(family: str, task: str, scheme: str) -> Artifact:
    """Exporting takes seconds, so once; the other schemes are made of the fp32 file."""
    folder = Path(tempfile.mkdtemp())
    if scheme == "fp32":
        return export_onnx(case(family, task).model, folder, scheme="fp32")
    return quantize_onnx_file(exported(family, task, "fp32").path, folder, scheme=scheme)


def session(path: Path, *, exact: bool = True, **options: Any) -> Any:
    """Int8 sums do not overflow in it, as on Arm and on x86 with VNNI, whatever this CPU is; but
    for layers that share their weights, where onnxruntime 1.31 cannot have that. Where a zero point
    is read twice it cannot either, and static products are left in float. ``exact``: as said;
    as the kernels come otherwise.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    for name, value in options.items():
        setattr(settings, name, value)
    exact = exact and saturating()
    for precise in ("1", "0") if exact else ("0",):
        settings.add_session_config_entry("session.x64quantprecision", precise)
        if exact and precise == "0":
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            settings.graph_optimization_level = level
        with contextlib.suppress(Fail):
            return onnxruntime.InferenceSession(
                str(path), settings, providers=["CPUExecutionProvider"]
            )
    raise AssertionError(f"onnxruntime refuses {path}")


def run(path: Path, feeds: dict[str, Array]) -> Array:
    (answer,) = session(path).run(None, feeds)
    return answer


def bytes_per_dtype(path: Path) -> Counter[str]:
    count: Counter[str] = Counter()
    for tensor in onnx.load(path).graph.initializer:
        count[str(numpy_helper.to_array(tensor).dtype)] += len(tensor.raw_data)
    return count


@each_family
def test_fp32_gives_the_originals_answers(family: str, task: str) -> None:
    made, tiny = exported(family, task, "fp32"), case(family, task)
    assert tiny.difference(run(made.path, tiny.feeds())) < 1e-4 * max(
        1, np.abs(tiny.expected).max()
    )


class Pictures(nn.Module):
    """What image models have that torch breaks up."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        state = self.norm(self.filter(pixels))
        state += pixels
        return self.head(self.dropout(self.pool(state).flatten(1)))


class Ends(nn.Module):
    """It ends with what is called otherwise elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.norm(x))


def test_what_a_model_ends_with_keeps_its_name(tmp_path: Path) -> None:
    module, x = Ends().eval(), torch.randn(4, 6)
    for number, end in enumerate((module, module.norm)):
        model = Model(end, "module", None, None, None, (), example={"input": x})
        made = export_onnx(model, tmp_path / str(number), scheme="fp32")
        feeds = {made.inputs[0].name: x.numpy()}
        np.testing.assert_allclose(run(made.path, feeds), end(x).detach(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_what_torch_need_not_break_up_gives_the_same_operators(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, feeds = case("bert").model, case("bert").feeds()
    if kind == "pictures":
        pixels = torch.randn(2, 3, 8, 8)
        example, feeds = {"pixels": pixels}, {"pixels": pixels.numpy()}
        model = Model(Pictures().eval(), "module", None, None, None, (), example=example)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_convert, "_is_translated", lambda *_: False)
    monkeypatch.setattr(onnx_convert, "_spell_as_translated", lambda _: None)
    broken_up = export_onnx(model, tmp_path / "broken-up", scheme="fp32").path
    monkeypatch.undo()
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "another"))
    monkeypatch.delattr("torch.export.ExportedProgram.run_decompositions")
    as_is = export_onnx(model, tmp_path / "as-is", scheme="fp32").path
    assert operators(as_is) == operators(broken_up)
    np.testing.assert_array_equal(run(as_is, feeds), run(broken_up, feeds))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@each_family
def test_a_row_alone_gives_what_it_gives_in_a_padded_batch(family: str, task: str) -> None:
    made, tiny = exported(family, task, "fp32"), case(family, task)
    running = session(made.path)
    (together,) = running.run(None, tiny.feeds())
    for index in range(3):
        (alone,) = running.run(None, tiny.unpadded(index))
        row = together[index, : alone.shape[1]] if alone.ndim == 3 else together[index]
        np.testing.assert_allclose(alone[0], row, atol=1e-4, rtol=1e-4)


@each_family
def test_int8_stays_near_the_original_and_is_int8(family: str, task: str) -> None:
    made, tiny = exported(family, task, "int8-dynamic"), case(family, task)
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    # Where layers share their weights onnxruntime 1.31 has no exact sums on a CPU that saturates.
    shared = family == "albert"
    answer = run(made.path, tiny.feeds())
    assert (shared and saturating()) or tiny.cosine(answer) > INT8_COSINE
    count, before = bytes_per_dtype(made.path), bytes_per_dtype(exported(family, task, "fp32").path)
    assert count["int8"] > 0.7 * before["float32"] / 4
    assert count["float32"] < 0.35 * before["float32"]


@each_family
def test_fp16_halves_the_weights_and_still_answers_in_float32(family: str, task: str) -> None:
    made, tiny = exported(family, task, "fp16"), case(family, task)
    onnx.checker.check_model(onnx.load(made.path), full_check=True)
    answer = run(made.path, tiny.feeds())
    assert answer.dtype == np.float32
    assert tiny.cosine(answer) > 0.999
    count = bytes_per_dtype(made.path)
    assert count["float32"] < 0.01 * count["float16"]


@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic", "fp16"])
def test_the_artifact_says_what_the_file_has(scheme: str) -> None:
    made = exported("bert", "text-classification", scheme)
    model = onnx.load(made.path)
    assert model.ir_version <= 9
    assert [entry.version for entry in model.opset_import] == [20]
    assert [tensor.name for tensor in made.inputs] == ["input_ids", "attention_mask"]
    assert {tensor.dtype for tensor in made.inputs} == {"int64"}
    assert {tensor.shape for tensor in made.inputs} == {("batch", "length")}
    (logits,) = made.outputs
    assert (logits.name, logits.dtype, logits.shape) == ("logits", "float32", ("batch", 3))
    assert [value.name for value in model.graph.output] == ["logits"]
    assert not model.graph.value_info
    contents = read_contents(made.path)
    assert contents.inputs == made.inputs and contents.outputs == made.outputs
    assert contents.bytes_per_dtype() == dict(bytes_per_dtype(made.path).most_common())


def test_integers_are_those_of_the_grid() -> None:
    tiny = case("bert", "text-classification")
    graph = onnx.load(exported("bert", "text-classification", "int8-dynamic").path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    checked = 0
    for name, module in tiny.model.module.named_modules():
        if not isinstance(module, torch.nn.Linear) and "word_embeddings" not in name:
            continue
        integers, scales = quantize_int8(module.weight.detach().numpy(), axis=0)
        found = stored[f"module.{name}.weight.int8"]
        # A product reads its weight transposed, except the Gemm that a 2-D input becomes.
        same = found if found.shape == integers.shape and (found == integers).all() else found.T
        np.testing.assert_array_equal(same, integers)
        np.testing.assert_array_equal(stored[f"module.{name}.weight.scale"].ravel(), scales)
        checked += 1
    assert checked == 2 * 6 + 3


def test_every_integer_product_runs_in_a_fused_kernel(tmp_path: Path) -> None:
    made = exported("bert", "text-classification", "int8-dynamic")
    products = read_contents(made.path).ops["MatMulInteger"]
    optimized = tmp_path / "optimized.onnx"
    session(made.path, exact=False, optimized_model_filepath=str(optimized))
    kernels = Counter(node.op_type for node in onnx.load(optimized).graph.node)
    assert kernels["DynamicQuantizeMatMul"] + kernels["MatMulIntegerToFloat"] == products
    assert products > 10
    # One kernel for a norm and the addition before it is slower than the two.
    assert kernels["SkipLayerNormalization"] == 0


@pytest.mark.slow
def test_a_plain_module_keeps_a_shared_weight_shared(tmp_path: Path) -> None:
    class Repeated(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 16)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            states = first + second
            for _ in range(3):
                states = torch.relu(self.layer(states.unsqueeze(1))).squeeze(1)
            return states

    torch.manual_seed(0)
    module = Repeated().eval()
    # Names that torch gives to nodes of its own graph as well.
    example = {"add": torch.randn(1, 16), "relu": torch.randn(1, 16)}
    model = Model(module, "module", None, None, None, (), example=example)
    for scheme in ("fp32", "int8-dynamic"):
        made = export_onnx(model, tmp_path / scheme, scheme=scheme)
        assert [tensor.shape for tensor in made.inputs] == [("batch", 16)] * 2
        matrices = [t for t in read_contents(made.path).tensors if t.shape == (16, 16)]
        assert [tensor.name.removesuffix(".int8") for tensor in matrices] == ["layer.weight"]
        feeds = {name: np.random.default_rng(0).random((5, 16), np.float32) for name in example}
        with torch.no_grad():
            expected = module(*map(torch.from_numpy, feeds.values())).numpy()
        if scheme == "fp32" or not saturating():
            np.testing.assert_allclose(run(made.path, feeds), expected, atol=0.02)


def test_a_module_that_cannot_be_exported_is_refused_in_a_sentence(tmp_path: Path) -> None:
    class Choosing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    model = Model(
        Choosing().eval(), "module", None, None, None, (), example={"x": torch.ones(1, 4)}
    )
    with pytest.raises(ExportError, match="torch cannot write this model as ONNX") as caught:
        export_onnx(model, tmp_path / "out", scheme="fp32")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# Files by other exporters.


def foreign(nodes: list[Any], constants: dict[str, Array], **options: Any) -> onnx.ModelProto:
    """x [rows, 8] to y, as some exporter may write it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, options.pop("shape", ["n", 8]))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, initializers)
    opset = helper.make_opsetid("", options.pop("opset", 17))
    return helper.make_model(graph, opset_imports=[opset], ir_version=8, **options)


def weights(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_a_file_of_another_exporter_is_quantized(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Constant", [], ["w1"], value=numpy_helper.from_array(weights(8, 32))),
        node("MatMul", ["x", "w1"], ["a"]),
        node("Transpose", ["w2"], ["w2t"], perm=[1, 0]),
        node("Identity", ["w2t"], ["w2u"]),
        node("Gemm", ["a", "w2u", "b"], ["c"]),
        node("Gemm", ["c", "w3"], ["d"], alpha=0.5, transB=1),
        node("Gemm", ["d", "w3", "b"], ["y"], transB=1),
    ]
    constants = {"w2": weights(16, 32), "w3": weights(16, 16), "b": weights(16)}
    source = foreign(nodes, constants, doc_string="made in /home/somebody")
    # Older exporters list the constants among the inputs, too.
    source.graph.input.append(helper.make_tensor_value_info("w3", TensorProto.FLOAT, [16, 16]))
    onnx.save(source, tmp_path / "source.onnx")
    made = quantize_onnx_file(tmp_path / "source.onnx", tmp_path / "out", scheme="int8-dynamic")
    ops = read_contents(made.path).ops
    # A Gemm that scales its product stays as it is, and so does its weight.
    assert (ops["MatMulInteger"], ops["Gemm"], ops.get("Transpose", 0)) == (3, 1, 0)
    assert [tensor.name for tensor in made.inputs] == ["x"]
    assert b"somebody" not in made.path.read_bytes()
    feeds = {"x": weights(4, 8)}
    ours, theirs = run(made.path, feeds), run(tmp_path / "source.onnx", feeds)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def test_tables_and_filters_are_stored_as_integers(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        node("Gather", ["table", "ids"], ["rows"]),  # [1, 8, 16]
        node("Slice", ["positions", "zero", "eight", "one"], ["first"]),  # [1, 8, 16]
        node("Add", ["rows", "first"], ["states"]),
        node("Conv", ["states", "filter"], ["y"], kernel_shape=[3]),
    ]
    constants = {
        "table": weights(100, 16),
        "positions": weights(1, 70, 16),
        "filter": weights(4, 8, 3),
        "zero": np.array([0]),
        "one": np.array([1]),
        "eight": np.array([8]),
    }
    onnx.save(foreign(nodes, constants, shape=[1, 8]), tmp_path / "source.onnx")
    made = quantize_onnx_file(tmp_path / "source.onnx", tmp_path / "out", scheme="int8-dynamic")
    integers = {t.name: t.shape for t in read_contents(made.path).tensors if t.dtype == "int8"}
    assert integers == {
        "table.int8": (100, 16),
        "positions.int8": (1, 70, 16),
        "filter.int8": (4, 8, 3),
    }
    feeds = {"x": np.arange(8, dtype=np.float32)[None] * 7}
    ours, theirs = run(made.path, feeds), run(tmp_path / "source.onnx", feeds)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("scheme", ["int8-dynamic", "fp16"])
@pytest.mark.parametrize("before", ["int8-dynamic", "fp16"])
def test_a_quantized_file_is_refused(before: str, scheme: str, tmp_path: Path) -> None:
    source = exported("bert", "text-classification", before).path
    with pytest.raises(ModelError, match="give the float32 file"):
        quantize_onnx_file(source, tmp_path / "out", scheme=scheme)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("nodes", "opset", "message"),
    [
        ([helper.make_node("Relu", ["x"], ["y"])], 17, "holds no weights that int8-dynamic makes"),
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], 9, "needs opset 11 and this file has 9"),
    ],
)
def test_a_file_without_a_gain_is_refused(
    nodes: list[Any], opset: int, message: str, tmp_path: Path
) -> None:
    constants = {"w": weights(8, 8)} if "w" in nodes[0].input else {}
    onnx.save(foreign(nodes, constants, opset=opset), tmp_path / "source.onnx")
    with pytest.raises(ModelError, match=message):
        quantize_onnx_file(tmp_path / "source.onnx", tmp_path / "out", scheme="int8-dynamic")
    assert not (tmp_path / "out").exists()


# The real model on the oldest runtime that the targets promise.

OLDEST = "onnxruntime==1.17.0"
_AGENT = (
    "import sys, numpy, onnxruntime; assert onnxruntime.__version__.startswith('1.17.');"
    "feeds = dict(numpy.load(sys.argv[2]));"
    "session = onnxruntime.InferenceSession(sys.argv[1]);"
    "numpy.save(sys.argv[3], session.run(None, feeds)[0])"
)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
def test_minilm_runs_on_the_oldest_runtime(scheme: str, shared: Path, tmp_path: Path) -> None:
    from edgekit.model import identify, load_model

    model = load_model(identify(str(shared / "checkpoints" / "minilm-banking77")))
    made = export_onnx(model, tmp_path, scheme=scheme)
    assert model.preprocessor is not None
    texts = ("I lost my card", "Why has my transfer not arrived yet?", "top up with cash?")
    rows = model.preprocessor.encode(Rows(texts=texts))
    feeds = {name: array.astype(np.int64) for name, array in rows.arrays.items()}
    np.savez(tmp_path / "feeds.npz", **feeds)
    files = [str(made.path), str(tmp_path / "feeds.npz"), str(tmp_path / "answer.npy")]
    subprocess.run([str(python_with(OLDEST)), "-c", _AGENT, *files], check=True)
    # Sums that overflow do so in both: the old one cannot be asked for others.
    ours, (theirs,) = np.load(files[2]), session(made.path, exact=False).run(None, feeds)
    # A different sum in the last bit can round an int8 activation the other way.
    np.testing.assert_allclose(ours, theirs, atol=0.5 if scheme == "int8-dynamic" else 0.02)
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
    if scheme == "int8-dynamic":
        assert made.bytes < 23.2e6
