"""A small model with known answers, to see that a device works."""

import tempfile
from pathlib import Path

import numpy as np

from edgekit.artifact import Artifact, Tensor
from edgekit.devices.device import Device
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError
from edgekit.preprocess import Encoded

_ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
_WEIGHTS = np.cos(np.arange(8, dtype=np.float32)).reshape(2, 4)


def check_device(device: Device) -> None:
    """Run a linear layer in each of the device's formats that can be written here.

    Raises DeviceError when it does not run, or answers otherwise.
    """
    encoded = Encoded({"x": _ROWS}, None)
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as name:
        for format in device.formats:
            if format == "torchscript" and len(device.formats) > 1:
                continue
            artifact = {"onnx": _onnx, "tflite": _tflite, "torchscript": _torchscript}[format](
                Path(name)
            )
            found = run_agent(artifact, encoded, [Pass("all", "outputs")], threads=1, device=device)
            answers = found["passes"]["all"]["outputs"]
            if not np.allclose(answers, _ROWS @ _WEIGHTS.T, rtol=1e-2, atol=1e-2):
                raise DeviceError(f"{device.name} answers wrongly in {format}: do not trust it")


def _artifact(path: Path, batch: str | int) -> Artifact:
    ends = (Tensor("x", "float32", (batch, 4)),), (Tensor("logits", "float32", (batch, 2)),)
    suffixes = {".onnx": "onnx", ".tflite": "tflite", ".pt": "torchscript"}
    return Artifact(path, suffixes[path.suffix], "fp32", *ends)  # type: ignore[arg-type]


def _onnx(folder: Path) -> Artifact:
    from onnx import TensorProto, helper, numpy_helper, save

    node = helper.make_node("Gemm", ["x", "w"], ["logits"], transB=1)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 4), ("logits", 2))
    ]
    weights = [numpy_helper.from_array(_WEIGHTS, "w")]
    graph = helper.make_graph([node], "check", ends[:1], ends[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    path = folder / "check.onnx"
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return _artifact(path, "batch")


def _tflite(folder: Path) -> Artifact:
    from edgekit.export import tflite_graph as flat
    from edgekit.export.tflite_file import write_program

    float32 = flat.schema().TensorType.FLOAT32
    x, logits = flat.Tensor("x", float32, (1, 4)), flat.Tensor("logits", float32, (1, 2))
    weights = flat.constant("w", _WEIGHTS)
    options = flat.schema().FullyConnectedOptionsT()
    op = flat.operator("FULLY_CONNECTED", [x, weights, None], [logits], options=options)
    graph = flat.Graph([x], [logits], [op])
    signature = flat.Signature("serving_default", graph, {"x": x}, {"logits": logits})
    path = folder / "check.tflite"
    write_program(flat.Program([graph], [signature]), path)
    return _artifact(path, 1)


def _torchscript(folder: Path) -> Artifact:
    import torch

    layer = torch.nn.Linear(4, 2, bias=False)
    layer.weight.data.copy_(torch.from_numpy(_WEIGHTS))
    path = folder / "check.pt"
    torch.jit.trace(layer, torch.zeros(1, 4)).save(str(path))
    return _artifact(path, "batch")
