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

from edgekit.artifact import Artifact
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
QUICK = (("bert", "text-classification"), ("resnet", "image-classification"))
each_family = each_case(*QUICK)


@functools.cache
def exported(family: str, task: str, format: Any, any_length: bool = True) -> Artifact:
    folder = Path(tempfile.mkdtemp())
    model = static_case(family, task).model
    return export_artifact(model, folder, format, "int8-static", (16, 64), any_length)


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


@each_family
def test_files_hold_the_models_integers_and_no_float_matrix(family: str, task: str) -> None:
    made = static_case(family, task)
    by_distance = family in ("mpnet", "xlnet")
    for format in ("onnx", "tflite"):
        path = exported(family, task, format).path
        for name, (integers, scales) in integer_weights(made.found).items():
            # What depends on lengths alone is worked out by the converter, and stays float.
            if by_distance and "distance" in name:
                continue
            assert holds(path, integers, scales) or integers.size < 64, (format, name)
        assert by_distance or wide_matrices(path) == []


@each_family
def test_files_answer_as_the_rounded_model(family: str, task: str) -> None:
    made = static_case(family, task)
    limit = STEPS.get(family, 12)
    onnx_file = exported(family, task, "onnx").path
    onnx.checker.check_model(onnx.load(onnx_file), full_check=True)
    together = run(onnx_file, made.case.feeds())
    assert made.steps(together) <= limit
    tflite_file = exported(family, task, "tflite")
    assert made.steps(answers(made, tflite_file.path)) <= limit
    for operator, version in operator_versions(tflite_file.path).items():
        assert version <= (KNOWN_TO_2_14 | {"QUANTIZE": 2})[operator], operator
    if made.case.rows.lengths is None:
        return
    alone = made.fake.copy()
    for row, length in enumerate(made.case.rows.lengths):
        found = run(onnx_file, made.case.unpadded(row))[0]
        if alone.ndim == 3:
            alone[row, :length] = found
        else:
            alone[row] = found
    assert made.steps(alone) <= limit
    if not tflite_file.lengths:
        assert made.steps(answers(made, tflite_file.path, pad=5)) <= limit


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
    session(onnx_file, optimized_model_filepath=optimized)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "format"),
    [("runtime:onnxruntime==1.17.0", "onnx"), ("runtime:tflite-runtime==2.14.0", "tflite")],
)
@pytest.mark.parametrize(("family", "task"), QUICK)
def test_the_oldest_runtimes_answer_as_the_rounded_model(
    name: str, format: Any, family: str, task: str
) -> None:
    made = static_case(family, task)
    device = ready(name)
    artifact = exported(family, task, format)
    found = run_agent(artifact, made.case.rows, [Pass("all", "outputs")], threads=1, device=device)
    assert made.steps(found["passes"]["all"]["outputs"]) <= STEPS.get(family, 12)
