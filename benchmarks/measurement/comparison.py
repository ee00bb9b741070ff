"""How often a comparison is wrong: a file against itself, and against one 10 % slower.

    python benchmarks/measurement/comparison.py --comparisons 200

The files are chains of equal layers, so that one is slower by exactly a known share: 110 layers
against 100. Each comparison is the one that `edgekit bench A --against B` makes, with its own
processes. Writes `comparison.json` beside this file, and prints the counts.
"""

import argparse
import collections
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, Tensor
from edgekit.measure.compare import Comparison, compare
from edgekit.preprocess import Encoded

_WIDTH = 256
_ROWS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--record", default="comparison.json")
    options = parser.parse_args()
    rows = Encoded({"x": np.ones((_ROWS, _WIDTH), np.float32)}, None)
    with tempfile.TemporaryDirectory() as name:
        usual, slower = chain(Path(name, "usual.onnx"), 100), chain(Path(name, "slower.onnx"), 110)
        found: dict[str, list[Comparison]] = {"itself": [], "slower": []}
        started = time.perf_counter()
        # In turns, so that both kinds see the same moods of the machine.
        for number in range(options.comparisons):
            for kind, first in (("itself", usual), ("slower", slower)):
                made = compare(first, usual, rows, threads=1, seconds=options.seconds)
                found[kind].append(made)
            if number % 10 == 9:
                print(number + 1, {kind: dict(_counts(each)) for kind, each in found.items()})
                _write(options, found, time.perf_counter() - started)


def chain(path: Path, layers: int) -> Artifact:
    """An ONNX file of so many equal layers, one after the other."""
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(0, 0.06, (_WIDTH, _WIDTH)).astype(np.float32)
    names = ["x", *(f"h{number}" for number in range(1, layers)), "logits"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", _WIDTH])
        for name in ("x", "logits")
    ]
    stored = [numpy_helper.from_array(weights, "w")]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    inputs, outputs = ((Tensor(name, "float32", ("batch", _WIDTH)),) for name in ("x", "logits"))
    return Artifact(path, "onnx", "fp32", inputs, outputs)


def _counts(found: list[Comparison]) -> "collections.Counter[str]":
    return collections.Counter(each.outcome for each in found)


def _write(options: Any, found: dict[str, list[Comparison]], seconds: float) -> None:
    record = {
        "machine": found["itself"][0].fingerprint,
        "command": f"comparison.py --comparisons {options.comparisons} --seconds {options.seconds}",
        "seconds_a_comparison": seconds / sum(map(len, found.values())),
        "kinds": {
            kind: {
                "comparisons": len(each),
                "outcomes": dict(_counts(each)),
                "median_ratio": statistics.median(one.ratio for one in each),
                "median_margin": statistics.median(one.margin for one in each),
                "median_interval": statistics.median(one.high - one.low for one in each),
            }
            for kind, each in found.items()
        },
    }
    path = Path(__file__).with_name(options.record)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
