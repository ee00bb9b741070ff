"""Latency beside a base: files that are run for real, and how quick the gate is without."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.cli import run
from edgekit.errors import UsageError
from tests.gating.bundles import write_bundle

_WIDTH = 64


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("edgekit.toml").write_text('[gate.latency]\ngrowth = "20%"\n')
    return tmp_path


def test_the_same_file_is_as_fast_and_is_not_run() -> None:
    write_bundle(Path("base"))
    write_bundle(Path("now"), peak_memory=1)
    (finding,) = edgekit.gate("now", against="base").findings
    assert (finding.outcome, finding.value) == ("pass", 1.0)


def test_a_base_of_something_else_is_refused() -> None:
    write_bundle(Path("now"), size=1001)
    write_bundle(Path("base"), model="other", size=1000)
    with pytest.raises(UsageError, match="base is of other, now of checkpoints/mine"):
        edgekit.gate("now", against="base")
    write_bundle(Path("formats"), file="model.tflite", size=1000)
    with pytest.raises(UsageError, match=r"formats holds no model\.onnx"):
        edgekit.gate("now", against="formats")
    write_bundle(Path("elsewhere"), target="web-wasm", size=1000)
    (finding,) = edgekit.gate("now", against="elsewhere").findings
    assert finding.outcome == "inconclusive"


@pytest.mark.slow
def test_files_are_run_beside_each_other() -> None:
    rows = {"rows": [{"inputs": {"x": [1.0] * _WIDTH}}] * 8, "tolerance": {}}
    for name, layers in (("quick", 40), ("slow", 120)):
        write_bundle(Path(name), content=_chain(layers), golden=rows)
    (slower,) = edgekit.gate("slow", against="quick", seconds=0.7).findings
    assert slower.outcome == "fail"
    assert slower.value is not None and slower.value > 1.5
    assert slower.before == "" and "side by side on this machine" in slower.reason
    (faster,) = edgekit.gate("quick", against="slow", seconds=0.7).findings
    assert faster.outcome == "pass"


def test_built_bundles_are_judged_without_what_builds_them() -> None:
    Path("edgekit.toml").write_text(
        '[gate.accuracy]\ndrop = "1 point"\n[gate.ops]\nratchet = true\n'
        '[gate.latency]\nmax = "1s"\n'
    )
    write_bundle(Path("dist/one"))
    assert run(["gate", "--update"]) == 0
    code = (
        "import sys\nfrom edgekit.cli import run\ncode = run(['gate'])\n"
        "heavy = ('torch', 'onnxruntime', 'transformers', 'ai_edge_litert', 'numpy', 'onnx')\n"
        "print(code, *(name for name in heavy if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"


def _chain(layers: int) -> bytes:
    """An ONNX file of so many equal layers, one after the other."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(0, 0.1, (_WIDTH, _WIDTH)).astype(np.float32)
    names = ["x", *(f"h{number}" for number in range(1, layers)), "logits"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    ends: list[Any] = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", _WIDTH])
        for name in ("x", "logits")
    ]
    stored = [numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    content: bytes = onnx.ModelProto.SerializeToString(
        helper.make_model(graph, opset_imports=opset, ir_version=8)
    )
    return content
