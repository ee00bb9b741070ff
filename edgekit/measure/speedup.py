"""Whether a file is faster than the float file that it was made of, and if not, what held it up."""

from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.contents import read_contents
from edgekit.devices.agent import median_interval
from edgekit.devices.run import Pass, run_agent
from edgekit.preprocess import Encoded

# A ratio within this of 1 is neither faster nor slower here.
_MARGIN = 0.03
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "dotprod", "i8mm")


def against_float(
    artifact: Artifact, plain: Artifact, encoded: Encoded, *, threads: int, seconds: float
) -> dict[str, Any]:
    """The file's time as a share of the float file's, a JSON-able record.

    Both run in one process, row by row in turn, and again in a second process that loads them the
    other way round. seconds: how long in all. ``reasons``: where it is not faster, why.
    """
    rows = list(range(len(encoded)))
    step = Pass("pairs", "compare", rows, seconds=seconds / 2)
    logs, fingerprint = [], {}
    for swapped in (False, True):
        one, other = (plain, artifact) if swapped else (artifact, plain)
        found = run_agent(one, encoded, [step], threads=threads, against=other)
        pairs = np.asarray(found["passes"]["pairs"]["pairs"], dtype=np.float64)
        logs.append(
            np.log(pairs[:, 1] / pairs[:, 0]) if swapped else np.log(pairs[:, 0] / pairs[:, 1])
        )
        fingerprint = found["fingerprint"]
    low, high = zip(*(median_interval(each) for each in logs), strict=True)
    ratio = float(np.exp(np.mean([np.median(each) for each in logs])))
    slower = ratio > 1 - _MARGIN
    return {
        "ratio": ratio,
        "low": float(np.exp(min(low))),
        "high": float(np.exp(max(high))),
        "pairs": sum(map(len, logs)),
        "float_bytes": plain.bytes,
        "reasons": _reasons(artifact, fingerprint) if slower else [],
    }


def _reasons(artifact: Artifact, fingerprint: dict[str, Any]) -> list[str]:
    """What is known to hold a quantized file up: of the machine, and in the file."""
    reasons = []
    features = set(fingerprint.get("features") or ())
    if artifact.scheme.startswith("int") and features and features.isdisjoint(_DOT_PRODUCTS):
        reasons.append("this machine has no instructions for products of 8-bit integers")
    if artifact.scheme == "fp16":
        reasons.append("this machine widens half precision before each product")
    if artifact.scheme == "int8-weights":
        reasons.append("weights are widened to float32, and the arithmetic is float32's")
    if artifact.scheme == "int16x8":
        reasons.append("CPU runtimes have plain kernels alone for 16-bit activations; NPUs do not")
    ops = read_contents(artifact.path).ops
    total = sum(ops.values())
    crossings = sum(
        count for kind, count in ops.items() if kind.replace("Linear", "").upper() in _CROSSINGS
    )
    if total and crossings > 0.15 * total:
        reasons.append(f"{crossings} of {total} operators only turn floats into integers or back")
    return reasons or ["the runtime's kernels for this scheme are no faster for these shapes"]


_CROSSINGS = ("QUANTIZE", "DEQUANTIZE", "DYNAMICQUANTIZE")
