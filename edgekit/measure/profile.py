"""Where an inference spends its time: seconds per operator, with the model's names for layers.

Rules:

1. The runtime's own profiler measures, in a session of its own; the agent says how. Seconds are
   of one inference, the mean over all profiled ones.
2. An operator that reads a weight belongs to the layer that the weight is named after. ONNX
   Runtime tells operators by the names of the file's nodes, LiteRT by their places in the graph;
   inside LiteRT's delegate the products with weights are told by their order, when they are as
   many as in the file.
3. Every other operator belongs to the layer of the last one before it that has one, those before
   the first to the first. Where no operator has a layer, none is made up.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.artifact import Artifact
from edgekit.contents.graph import Graph, Value, origins
from edgekit.contents.operators import read_graph
from edgekit.contents.places import layer_of
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.devices.run import Pass, run_agent
from edgekit.preprocess import Encoded

BETWEEN = "between operators"
# The fewest numbers in a constant that names a layer; fewer are epsilons and scales of one.
_NAMING = 2
# Products with weights, as XNNPACK calls them and as the file does. A convolution of one pixel is
# a product of matrices to XNNPACK.
_DELEGATE_PRODUCTS = ("Fully Connected", "Convolution", "Deconvolution")
_FILE_PRODUCTS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")


def profile(
    artifact: Artifact,
    encoded: Encoded,
    rows: Sequence[int],
    *,
    threads: int,
    device: Device = HOST,
    seconds: float = 2.0,
) -> dict[str, Any]:
    """The file's operators in the order in which they run, JSON-able.

    ``ops``: ``name``, ``kind``, ``layer`` (or none), ``seconds`` of one inference and the
    ``calls`` that they are the mean of. ``total_seconds``: of one inference, with what lies
    between operators. ``reason``: why the runtime gives no profile, ``ops`` being empty then.
    seconds: how long to sample. Raises DeviceError as ``run_agent``.
    """
    step = Pass("profile", "profile", rows, seconds=seconds)
    result = run_agent(artifact, encoded, [step], threads=threads, device=device)
    longest = None if encoded.lengths is None else int(encoded.lengths[list(rows)].max())
    return name_layers(result["passes"]["profile"], artifact, longest)


def name_layers(found: Mapping[str, Any], artifact: Artifact, length: int | None) -> dict[str, Any]:
    """What the agent's pass ``profile`` found, with each operator's layer (rules 2 and 3).

    length: of the longest row; chooses the graph in a file with length buckets.
    """
    graph = read_graph(artifact.path, length if artifact.lengths else None)
    known = [None] * len(found["ops"]) if graph is None else _layers(found["ops"], graph)
    last = next((layer for layer in known if layer), None)
    ops = []
    for op, layer in zip(found["ops"], known):
        last = layer or last
        ops.append(
            {
                "name": op["name"],
                "kind": op["kind"],
                "layer": last,
                "seconds": op["seconds"],
                "calls": op["calls"],
            }
        )
    return {key: found[key] for key in ("total_seconds", "inferences", "reason")} | {"ops": ops}


def top(profile: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The operators that take the most time, slowest first."""
    return sorted(profile["ops"], key=lambda op: -op["seconds"])[:count]


def by_layer(profile: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``layer``, ``seconds`` of one inference and ``share`` of it, in the order of first use.

    The last is what no operator accounts for, called ``BETWEEN``. Empty where there is no
    profile.
    """
    total = profile["total_seconds"]
    if not profile["ops"] or not total:
        return []
    sums: dict[str, float] = {}
    for op in profile["ops"]:
        layer = op["layer"] or op["kind"]
        sums[layer] = sums.get(layer, 0.0) + op["seconds"]
    sums[BETWEEN] = max(0.0, total - sum(sums.values()))
    return [
        {"layer": layer, "seconds": seconds, "share": seconds / total}
        for layer, seconds in sums.items()
    ]


def _layers(ops: Sequence[Mapping[str, Any]], graph: Graph) -> list[str | None]:
    """The layer of each operator that is known to read a weight."""
    weights = _weights(graph)
    places = _products(ops, graph)
    by_name = {op.name: place for place, op in enumerate(graph.operators)}
    layers: list[str | None] = []
    for number, op in enumerate(ops):
        place = op["index"] if op["index"] is not None else places.get(number)
        place = by_name.get(op["name"]) if place is None else place
        inside = place is not None and 0 <= place < len(weights)
        weight = weights[place] if inside and place is not None else None
        layers.append(None if weight is None else layer_of(weight))
    return layers


def _weights(graph: Graph) -> list[str | None]:
    """The name of the first weight that each operator reads."""
    origin = origins(graph)
    read = ([origin[id(v)] for v in op.inputs if id(v) in origin] for op in graph.operators)
    return [next((w.name for w in weights if _names(w)), None) for weights in read]


def _names(weight: Value) -> bool:
    """Whether a weight's name says where it is, and no converter made it up (``add_3.input_1``)."""
    made_up = re.fullmatch(r"\w+\.input_\d+(\.\w+)*|val_\d+|\w*Constant\w*", weight.name)
    return (weight.count or 0) >= _NAMING and not made_up


def _products(ops: Sequence[Mapping[str, Any]], graph: Graph) -> dict[int, int]:
    """Places in the graph of what LiteRT's delegate runs, by place in the profile."""
    kinds = (*_DELEGATE_PRODUCTS, *_FILE_PRODUCTS)
    theirs = [number for number, op in enumerate(ops) if op["kind"] in kinds]
    ours = [place for place, op in enumerate(graph.operators) if op.kind in _FILE_PRODUCTS]
    return dict(zip(theirs, ours)) if len(theirs) == len(ours) else {}
