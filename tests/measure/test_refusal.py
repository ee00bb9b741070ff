"""What is said of a file that is too new: real words of real runtimes, and a real file."""

from pathlib import Path

import pytest

from edgekit.artifact import Artifact, Tensor
from edgekit.measure.refusal import refusal


def gelu(path: Path) -> Artifact:
    """A linear layer and a Gelu, an operator that ONNX has from version 20 on."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["h"]),
        helper.make_node("Gelu", ["h"], ["logits"], name="activation"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in ("x", "logits")
    ]
    stored = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "layer.weight")]
    graph = helper.make_graph(nodes, "gelu", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 22)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    inputs, outputs = ((Tensor(name, "float32", ("b", 4)),) for name in ("x", "logits"))
    return Artifact(path, "onnx", "fp32", inputs, outputs)


@pytest.mark.parametrize(
    ("said", "needs"),
    [
        (
            "Could not find an implementation for Gelu(22) node with name 'activation'",
            "Gelu version 22 (first at logits)",
        ),
        (
            "No Op registered for Gelu with domain_version of 17",
            "Gelu version 17 (first at logits)",
        ),
        ("ONNX Runtime only guarantees support for models. Opset 22 is under", "Opset version 22"),
        ("Unsupported model IR version: 10, max supported IR version: 9", "IR version 10"),
    ],
)
def test_the_operator_and_its_layer_are_named(said: str, needs: str, tmp_path: Path) -> None:
    sentence = refusal(gelu(tmp_path / "model.onnx"), said)
    assert sentence is not None
    assert sentence.startswith(f"model.onnx needs {needs}, which this runtime does not know; ")


def test_other_failures_are_not_taken_for_a_file_too_new(tmp_path: Path) -> None:
    assert refusal(gelu(tmp_path / "model.onnx"), "std::bad_alloc") is None


@pytest.mark.slow
def test_an_old_runtime_itself_says_what_is_too_new(tmp_path: Path) -> None:
    import numpy as np

    from edgekit.devices.device import ready
    from edgekit.devices.run import Pass, run_agent
    from edgekit.errors import DeviceError
    from edgekit.preprocess import Encoded

    artifact = gelu(tmp_path / "model.onnx")
    rows = Encoded({"x": np.ones((2, 4), np.float32)}, None)
    with pytest.raises(DeviceError, match=r"IR version: 10") as caught:
        run_agent(
            artifact,
            rows,
            [Pass("all", "outputs")],
            threads=1,
            device=ready("runtime:onnxruntime==1.17.0"),
        )
    assert ".cc:" not in str(caught.value)
    assert "IR version 10" in (refusal(artifact, str(caught.value)) or "")
