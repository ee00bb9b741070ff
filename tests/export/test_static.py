"""Static int8 files: the trained integers, and answers within steps of the rounded model."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekit.artifact import Artifact, Format, Scheme
from edgekit.devices.device import ready
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import ExportError
from edgekit.export import export_artifact
from edgekit.preprocess import Encoded
from edgekit.steps.quantize.static import fake_outputs, integer_weights
from tests.export.cases import Array, case, each_case
from tests.export.test_onnx import run, session
from tests.export.test_tflite import KNOWN_TO_2_14, operator_versions, plain, raw_model, run_all
from tests.static_cases import Static, calibrated, holds, static_case, wide_matrices

torch.set_num_threads(1)

# A number that falls to the other side of a half in one runtime is a step of its grid; the layers
# behind it make more of it, in random models most of all. As measured, with room to spare.
STEPS = {"resnet": 2, "mobilenet_v2": 60, "mobilebert": 16, "xlnet": 16}
# A step of 16 bits is 256 times as fine; kernels scale in 16 bits, and look softmax up in a table.
STEPS_16 = {"resnet": 8, "vit": 128, "mobilenet_v2": 512}
SOME = (("bert", "text-classification"), ("resnet", "image-classification"))
# The graphs of other tasks are BERT's, less its end; those of one format are written as the others.
CASES = (
    *((family, task, format) for family, task in SOME for format in ("onnx", "tflite")),
    ("albert", "text-classification", "onnx"),
    ("vit", "image-classification", "tflite"),
    ("xlnet", "text-classification", "onnx"),
    ("xlnet", "text-classification", "tflite"),
    ("mobilebert", "text-classification", "onnx"),
)


def each_file(*formats: str) -> pytest.MarkDecorator:
    cases = [pytest.param(*each, marks=pytest.mark.slow) for each in CASES if each[2] in formats]
    return pytest.mark.parametrize(("family", "task", "format"), cases)


@functools.cache
def exported(
    family: str,
    task: str,
    format: Any,
    any_length: bool = True,
    scheme: Scheme = "int8-static",
    integer_ends: bool = False,
) -> Artifact:
    folder = Path(tempfile.mkdtemp())
    model = static_case(family, task, scheme).model
    return export_artifact(
        model, folder, format, scheme, (16, 64), any_length, integer_ends=integer_ends
    )


def answers(made: Static, path: Path, pad: int = 0) -> Array:
    """Of a TFLite file; where a row has no token, as the rounded model's."""
    rows = made.case.rows
    if rows.lengths is None:
        return run_one_by_one(path, "pixel_values", rows.arrays["pixel_values"])
    outputs = made.fake.copy()
    for number, found in enumerate(run_all(path, rows, made.model.inputs, pad)):
        if outputs.ndim == 3:
            length = rows.lengths[number]
            outputs[number, :length] = found[:length]
        else:
            outputs[number] = found
    return outputs


def run_one_by_one(path: Path, name: str, values: Array) -> Array:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=1).get_signature_runner()
    return np.concatenate([next(iter(runner(**{name: row[None]}).values())) for row in values])


@each_file("onnx", "tflite")
def test_files_hold_the_models_integers_and_no_float_matrix(
    family: str, task: str, format: Format
) -> None:
    made = static_case(family, task)
    by_distance = family in ("mpnet", "xlnet")
    path = exported(family, task, format).path
    for name, (integers, scales) in integer_weights(made.found).items():
        # What depends on lengths alone is worked out by the converter, and stays float.
        if by_distance and "distance" in name:
            continue
        assert holds(path, integers, scales) or integers.size < 64, name
    assert by_distance or wide_matrices(path) == []


@each_file("onnx")
def test_onnx_files_answer_as_the_rounded_model(family: str, task: str, format: Format) -> None:
    made = static_case(family, task)
    limit = STEPS.get(family, 12)
    path = exported(family, task, format).path
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert made.steps(run(path, made.case.feeds())) <= limit
    if made.case.rows.lengths is None:
        return
    alone = made.fake.copy()
    for row, length in enumerate(made.case.rows.lengths):
        found = run(path, made.case.unpadded(row))[0]
        if alone.ndim == 3:
            alone[row, :length] = found
        else:
            alone[row] = found
    assert made.steps(alone) <= limit


@each_file("tflite")
def test_tflite_files_answer_as_the_rounded_model(family: str, task: str, format: Format) -> None:
    made = static_case(family, task)
    limit = STEPS.get(family, 12)
    file = exported(family, task, format)
    assert made.steps(answers(made, file.path)) <= limit
    for operator, version in operator_versions(file.path).items():
        assert version <= (KNOWN_TO_2_14 | {"QUANTIZE": 2})[operator], operator
    if made.case.rows.lengths is not None and not file.lengths:
        assert made.steps(answers(made, file.path, pad=5)) <= limit


@each_case(cases=SOME)
def test_int16_files_answer_as_the_rounded_model(family: str, task: str) -> None:
    made = static_case(family, task, "int16x8")
    path = exported(family, task, "tflite", scheme="int16x8").path
    assert made.steps(answers(made, path)) <= STEPS_16.get(family, 128)
    # Nearer to the original than 8 bits are, but for what 8-bit weights cost.
    assert made.case.cosine(made.fake) > 0.98
    for operator, version in operator_versions(path).items():
        assert version <= (KNOWN_TO_2_14 | {"QUANTIZE": 2})[operator], operator
    by_distance = family in ("mpnet", "xlnet")
    for name, (integers, scales) in integer_weights(made.found).items():
        if not (by_distance and "distance" in name):
            assert holds(path, integers, scales) or integers.size < 64, name
    assert by_distance or wide_matrices(path) == []


@pytest.mark.slow
def test_int16_products_have_int8_weights_and_int64_biases() -> None:
    from ai_edge_litert import schema_py_generated as schema

    kinds = schema.TensorType
    raw = raw_model(exported("bert", "text-classification", "tflite", scheme="int16x8").path)
    codes = [code.builtinCode for code in raw.operatorCodes]
    tensors = raw.subgraphs[0].tensors
    products = 0
    for op in raw.subgraphs[0].operators:
        if codes[op.opcodeIndex] == schema.BuiltinOperator.CONV_2D:
            state, weight, bias, output = (tensors[i] for i in (*op.inputs, *op.outputs))
            found = [tensor.type for tensor in (state, weight, bias, output)]
            assert found == [kinds.INT16, kinds.INT8, kinds.INT64, kinds.INT16]
            assert len(weight.quantization.scale) == weight.shape[0]
            products += 1
        if codes[op.opcodeIndex] == schema.BuiltinOperator.SOFTMAX:
            grid = tensors[op.outputs[0]].quantization
            assert (grid.scale[0], grid.zeroPoint[0]) == (1 / 32768, 0)
    assert products == 14
    assert all(
        tensor.quantization.zeroPoint.tolist() == [0]
        for tensor in tensors
        if tensor.type == kinds.INT16
    )


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8-static", "int16x8"])
def test_integer_ends_give_the_answers_of_float_ends(scheme: Scheme) -> None:
    from ai_edge_litert.interpreter import Interpreter

    family, task = SOME[1]
    made = static_case(family, task, scheme)
    path = exported(family, task, "tflite", scheme=scheme, integer_ends=True).path
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    kind = np.int8 if scheme == "int8-static" else np.int16
    assert taken["dtype"] == given["dtype"] == kind
    pixels = made.case.rows.arrays["pixel_values"]
    outputs = []
    for row in pixels:
        scale, zero = taken["quantization"]
        integers = np.rint(row[None] / np.float32(scale)) + zero
        limits = np.iinfo(kind)
        interpreter.set_tensor(taken["index"], integers.clip(limits.min, limits.max).astype(kind))
        interpreter.invoke()
        scale, zero = given["quantization"]
        outputs.append((interpreter.get_tensor(given["index"])[0] - float(zero)) * scale)
    floats = exported(family, task, "tflite", scheme=scheme)
    np.testing.assert_allclose(np.stack(outputs), answers(made, floats.path), rtol=1e-5, atol=1e-6)
    assert {"QUANTIZE", "DEQUANTIZE"}.isdisjoint(operator_versions(path))
    # The agent turns numbers into the file's integers and back, as an app does.
    ends = exported(family, task, "tflite", scheme=scheme, integer_ends=True)
    found = run_agent(ends, made.case.rows, [Pass("all", "outputs")], threads=1)
    np.testing.assert_allclose(found["passes"]["all"]["outputs"], np.stack(outputs), rtol=1e-5)


@pytest.mark.slow
def test_a_float_operator_at_an_end_gives_no_integers(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.SiLU()).eval()
    x = torch.randn(40, 8)
    model, _ = calibrated(plain(net, x[:1]), Encoded({"x": x.numpy()}, None))
    with pytest.raises(ExportError, match="the last operator of this model works in float"):
        export_artifact(model, tmp_path, "tflite", "int8-static", integer_ends=True)
    assert not list(tmp_path.iterdir())


class Clamps(nn.Module):
    """What torch's ONNX optimizer joins with a clamp beside it; and means of pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(12)
        self.inner, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x.clamp(-2, 2))
        y = self.second((torch.relu(y) + y).clamp(-1, 1))
        y = torch.relu(self.norm(y))
        return self.last(nn.functional.hardtanh(self.inner(y.mean((2, 3))), 0, 0.5))


@pytest.mark.slow
def test_clamps_beside_a_point_are_kept(tmp_path: Path) -> None:
    net = Clamps().eval()
    x = torch.randn(40, 3, 12, 12)
    rows = Encoded({"x": x.numpy()}, None)
    model, found = calibrated(plain(net, x[:1]), rows)
    fake = fake_outputs(model, rows)
    step = list(found.points.values())[-1].grid.scale
    made = export_artifact(model, tmp_path, "onnx", "int8-static", beside=tmp_path / "float")
    assert np.abs(run(made.path, {"x": x.numpy()}) - fake).max() <= 2.01 * step
    with torch.no_grad():
        expected = net(x).numpy()
    floats = run(tmp_path / "float" / made.path.name, {"x": x.numpy()})
    np.testing.assert_allclose(floats, expected, atol=0.05)
    kinds = [node.op_type for node in onnx.load(made.path).graph.node]
    assert "GlobalAveragePool" in kinds and not {"ReduceMean", "LeakyRelu"} & set(kinds)
    tflite_file = export_artifact(model, tmp_path, "tflite", "int8-static").path
    assert np.abs(run_one_by_one(tflite_file, "x", x.numpy()) - fake).max() <= 2.01 * step


@pytest.mark.slow
def test_buckets_answer_as_the_rounded_model() -> None:
    made = static_case("bert")
    buckets = exported("bert", "text-classification", "tflite", any_length=False)
    assert buckets.lengths == (16, 64)
    assert made.steps(answers(made, buckets.path)) <= 12
    assert wide_matrices(buckets.path) == []


class Net(nn.Module):
    """Every convolution: whole, by channel, in groups; norms, both ReLUs, a sum and pools."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.deep_norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding="same", groups=4)
        self.inner, self.last = nn.Linear(16, 8), nn.Linear(8, 5)
        for norm in (self.first_norm, self.deep_norm):
            norm.running_mean.normal_(0, 0.2)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first_norm(self.first(x)))
        y = nn.functional.relu6(self.deep_norm(self.deep(x)))
        x = torch.max_pool2d(torch.relu(x + self.grouped(y)), 2)
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.last(nn.functional.silu(self.inner(x)))


@pytest.mark.slow
def test_a_plain_cnn_is_integer_but_for_what_has_no_kernel(tmp_path: Path) -> None:
    net = Net().eval()
    x = torch.randn(40, 3, 12, 12)
    rows = Encoded({"x": x.numpy()}, None)
    model, found = calibrated(plain(net, x[:1]), rows)
    assert found.islands == ("silu (silu)",)
    fake = fake_outputs(model, rows)
    step = list(found.points.values())[-1].grid.scale
    onnx_file = export_artifact(model, tmp_path, "onnx", "int8-static").path
    tflite_file = export_artifact(model, tmp_path, "tflite", "int8-static").path
    assert np.abs(run(onnx_file, {"x": x.numpy()}) - fake).max() <= 1.01 * step
    assert np.abs(run_one_by_one(tflite_file, "x", x.numpy()) - fake).max() <= 1.01 * step
    optimized = str(tmp_path / "optimized.onnx")
    session(onnx_file, exact=False, optimized_model_filepath=optimized)
    kernels = [node.op_type for node in onnx.load(optimized).graph.node]
    assert kernels.count("QLinearConv") == 3 and kernels.count("QGemm") == 2
    assert "QLinearAdd" in kernels and not {"Conv", "Gemm", "Relu", "Clip"} & set(kernels)
    from ai_edge_litert import schema_py_generated as schema

    raw = raw_model(tflite_file)
    codes = [code.builtinCode for code in raw.operatorCodes]
    for op in raw.subgraphs[0].operators:
        if codes[op.opcodeIndex] in (
            schema.BuiltinOperator.CONV_2D,
            schema.BuiltinOperator.DEPTHWISE_CONV_2D,
            schema.BuiltinOperator.TRANSPOSE,
            schema.BuiltinOperator.MAX_POOL_2D,
            schema.BuiltinOperator.ADD,
        ):
            assert raw.subgraphs[0].tensors[op.outputs[0]].type == schema.TensorType.INT8


def test_without_ranges_there_is_no_static_file(tmp_path: Path) -> None:
    for format in ("onnx", "tflite"):
        with pytest.raises(ExportError, match="add --step calibrate"):
            export_artifact(case("bert").model, tmp_path, format, "int8-static")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="add --step calibrate:scheme=int16x8"):
        export_artifact(static_case("bert").model, tmp_path, "tflite", "int16x8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format", "scheme"),
    [
        ("runtime:onnxruntime==1.17.0", "onnx", "int8-static"),
        ("runtime:tflite-runtime==2.14.0", "tflite", "int8-static"),
        ("runtime:tflite-runtime==2.14.0", "tflite", "int16x8"),
    ],
)
@pytest.mark.parametrize(("family", "task"), SOME)
def test_the_oldest_runtimes_answer_as_the_rounded_model(
    name: str, format: Any, scheme: Scheme, family: str, task: str
) -> None:
    made = static_case(family, task, scheme)
    device = ready(name)
    artifact = exported(family, task, format, scheme=scheme)
    found = run_agent(artifact, made.case.rows, [Pass("all", "outputs")], threads=1, device=device)
    limit = STEPS.get(family, 12) if scheme == "int8-static" else STEPS_16.get(family, 128)
    assert made.steps(found["passes"]["all"]["outputs"]) <= limit
