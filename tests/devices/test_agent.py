"""The agent: a file run in a fresh process, through its JSON alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Artifact, Tensor
from edgekit.devices.host import Host
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DeviceError, UsageError
from edgekit.preprocess import Encoded


def _sum_model(path: Path) -> Artifact:
    """An ONNX file that adds up the masked ids of each row: [B, L] -> [B, 1]."""
    from onnx import TensorProto, helper, numpy_helper, save

    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["wide", "axes"], ["logits"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "l"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, path)
    inputs = tuple(Tensor(n, "int64", ("b", "l")) for n in ("input_ids", "attention_mask"))
    return Artifact(path, "onnx", "fp32", inputs, (Tensor("logits", "float32", ("b", 1)),))


def _rows() -> Encoded:
    lengths = np.array([3, 1, 2], np.int32)
    mask = (np.arange(3) < lengths[:, None]).astype(np.int32)
    ids = np.array([[5, 6, 7], [4, 9, 9], [1, 2, 9]], np.int32)
    return Encoded({"input_ids": ids, "attention_mask": mask}, lengths)


def test_outputs_latency_and_memory_come_back(tmp_path: Path) -> None:
    result = run_agent(
        _sum_model(tmp_path / "model.onnx"),
        _rows(),
        [
            Pass("latency", "latency", [0, 1, 2], seconds=0.05),
            Pass("all", "outputs"),
            Pass("padded", "outputs", [2, 0], width=8),
            Pass("batched", "outputs", batch=2),
        ],
        threads=1,
    )
    passes = result["passes"]
    assert passes["all"]["outputs"].tolist() == [[18.0], [4.0], [3.0]]
    assert passes["padded"]["outputs"].tolist() == [[3.0], [18.0]]
    assert passes["batched"]["outputs"].tolist() == [[18.0], [4.0], [3.0]]
    assert len(passes["latency"]["samples"]) >= 3
    assert min(passes["latency"]["samples"]) > 0
    assert set(passes["latency"]["rows"]) == {0, 1, 2}
    memory = result["memory"]
    assert 0 < memory["start"] <= memory["imported"] <= memory["peak"]
    assert result["fingerprint"]["threads"] == 1
    assert result["fingerprint"]["runtime"].startswith("onnxruntime ")


def test_a_damaged_file_is_one_sentence_with_exit_code_three(tmp_path: Path) -> None:
    artifact = _sum_model(tmp_path / "model.onnx")
    artifact.path.write_bytes(artifact.path.read_bytes()[:40])
    with pytest.raises(DeviceError, match=r"^model\.onnx does not run on onnxruntime") as caught:
        run_agent(artifact, _rows(), [Pass("all", "outputs")], threads=1)
    assert caught.value.exit_code == 3


def test_a_killed_process_names_the_signal(tmp_path: Path) -> None:
    """A stand-in for the interpreter that dies as a crashing runtime does."""
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nkill -SEGV $$\n")
    dying.chmod(0o755)
    with pytest.raises(DeviceError, match="SIGSEGV"):
        run_agent(
            _sum_model(tmp_path / "model.onnx"),
            _rows(),
            [Pass("all", "outputs")],
            threads=1,
            device=Host(python=str(dying)),
        )


def test_the_agent_stands_alone(tmp_path: Path) -> None:
    """Standard library, numpy and the runtime only: it runs copied elsewhere, as on a board."""
    from edgekit.devices import agent

    copied = tmp_path / "agent.py"
    copied.write_text(Path(agent.__file__).read_text())
    rows = _rows()
    np.savez(tmp_path / "inputs.npz", lengths=rows.lengths, **rows.arrays)
    job = {
        "file": str(_sum_model(tmp_path / "model.onnx").path),
        "format": "onnx",
        "threads": 1,
        "lengths": [],
        "inputs": str(tmp_path / "inputs.npz"),
        "signature_inputs": ["input_ids", "attention_mask"],
        "passes": [{"name": "all", "kind": "outputs", "rows": None, "batch": 1, "width": None}],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    blocked = (
        "import sys, runpy; sys.modules['edgekit'] = None; sys.argv[1:] = {!r}; "
        "sys.exit(runpy.run_path({!r})['main'](*sys.argv[1:]))"
    )
    arguments = [str(tmp_path / "job.json"), str(tmp_path / "result.json")]
    subprocess.run([sys.executable, "-c", blocked.format(arguments, str(copied))], check=True)
    assert json.loads((tmp_path / "result.json").read_text())["error"] is None


def test_a_core_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    file = _sum_model(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="there is no core 9999; they are 0 to"):
        run_agent(file, _rows(), [Pass("all", "outputs")], threads=1, cores=[9999])


def _int8_product(path: Path, *, twice: bool) -> Artifact:
    """x [B, 64] times 127 everywhere, by integers; ``twice``: two products read the weights."""
    from onnx import TensorProto, helper, numpy_helper, save

    weight = np.full((64, 4), 127, np.int8)
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])]
    for name in ("a", "b") if twice else ("a",):
        nodes += [
            helper.make_node("MatMulInteger", ["q", "weight", "zero"], [f"{name}.int"]),
            helper.make_node("Cast", [f"{name}.int"], [name], to=TensorProto.FLOAT),
        ]
    nodes += [helper.make_node("Add", ["a", "b" if twice else "nothing"], ["logits"])]
    stored = [numpy_helper.from_array(weight, "weight")]
    stored += [] if twice else [numpy_helper.from_array(np.float32([0]), "nothing")]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", size])]
        for name, size in (("x", 64), ("logits", 4))
    ]
    graph = helper.make_graph(nodes, "product", *ends, stored)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    inputs = (Tensor("x", "float32", ("b", 64)),)
    return Artifact(path, "onnx", "int8-dynamic", inputs, (Tensor("logits", "float32", ("b", 4)),))


def test_int8_sums_are_those_of_a_cpu_that_does_not_overflow(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 64)).astype(np.float32)
    x[:, 0], x[:, 1] = 0, 255  # so that a step of the grid is 1
    exact = 127 * x.sum(1, keepdims=True).repeat(4, 1)
    one = _int8_product(tmp_path / "one.onnx", twice=False)
    result = run_agent(one, Encoded({"x": x}, None), [Pass("all", "outputs")], threads=1)
    np.testing.assert_array_equal(result["passes"]["all"]["outputs"], exact)
    assert "saturates" not in result


def test_where_int8_sums_may_overflow_the_result_says_so(tmp_path: Path) -> None:
    """onnxruntime 1.31 has no exact sums for weights that are read twice."""
    x = np.full((2, 64), 255, np.float32)
    x[:, 0] = 0
    shared = _int8_product(tmp_path / "shared.onnx", twice=True)
    result = run_agent(shared, Encoded({"x": x}, None), [Pass("all", "outputs")], threads=1)
    right = np.array_equal(result["passes"]["all"]["outputs"], np.full((2, 4), 2 * 127 * 63 * 255))
    assert right or result.get("saturates")
