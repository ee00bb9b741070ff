"""Figures of a file that need no clock: the same on every machine and in every run.

Rules:

1. Multiply-accumulates are those of products of matrices and of convolutions; what works
   element by element is not counted, as is the custom.
2. A weight counts as many bytes as it takes in the file, once for each operator that reads it. A
   table counts the rows that are looked up. What is worked out from constants alone (a float16
   weight that is widened) runtimes do once, at load; its weights count where the result is read.
3. Activations: each operator of the file, in its order, needs its inputs and outputs and holds
   what later ones read. A reshaped value is the same memory. No fusing and no writing in place:
   what a runtime takes is less.
4. What cannot be known without running the file is none, never a guess.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.contents import read_contents
from edgekit.contents.graph import Graph, Operator, Value
from edgekit.contents.operators import read_graph


@dataclass(frozen=True)
class Static:
    """Of one inference of one row.

    macs: multiply-accumulates. weight_bytes: bytes of weights that are read. activation_bytes:
    the most that inputs, outputs and values between take at once. ops: operators by kind.
    parameters: numbers stored as weights, scales of quantized ones included. length: the tokens
    it was asked for.
    """

    macs: int | None
    weight_bytes: int | None
    activation_bytes: int | None
    ops: Mapping[str, int]
    parameters: int | None
    length: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ops": dict(self.ops)}


def static_figures(path: Path, length: int | None) -> Static:
    """Figures of an ONNX, TFLite or TorchScript file for one row of ``length`` tokens.

    ``length`` is none for models that take no text. Of a file with length buckets, the bucket
    that holds the length. TorchScript has its calls counted, and no more. Raises ModelError when
    the file is damaged.
    """
    graph = read_graph(path, length)
    if graph is None:
        return Static(None, None, None, read_contents(path).ops, None, length)
    return Static(
        macs=_sum([op.macs for op in _running(graph)]),
        weight_bytes=_weight_bytes(graph),
        activation_bytes=_activation_bytes(graph),
        ops=dict(Counter(op.kind for op in graph.operators).most_common()),
        parameters=_sum(list(_weights(graph).values())),
        length=length,
    )


def _constants(graph: Graph) -> dict[int, int | None]:
    """Stored bytes of every constant, and of what is worked out from constants alone."""
    found: dict[int, int | None] = {}

    def take(value: Value) -> bool:
        if value.constant:
            found[id(value)] = value.bytes if value.weight else 0
        return id(value) in found

    for op in graph.operators:
        fixed = [take(value) for value in op.inputs]
        if fixed and all(fixed):
            stored = _sum([found[id(value)] for value in op.inputs])
            found |= dict.fromkeys(map(id, op.outputs), stored)
    return found


def _running(graph: Graph) -> list[Operator]:
    """The operators that run in every inference (rule 2)."""
    constants = _constants(graph)
    return [
        op
        for op in graph.operators
        if not op.inputs or any(id(value) not in constants for value in op.inputs)
    ]


def _weights(graph: Graph) -> dict[int, int | None]:
    """How many numbers each stored weight has."""
    read = (value for op in graph.operators for value in op.inputs)
    return {value.shared: value.count for value in read if value.constant and value.weight}


def _weight_bytes(graph: Graph) -> int | None:
    constants = _constants(graph)
    total: list[int | None] = []
    for op in _running(graph):
        for value in {id(value): value for value in op.inputs if id(value) in constants}.values():
            stored = constants[id(value)]
            if op.table is not None and value is op.inputs[op.table]:
                stored = _looked_up(stored, op.outputs[0].count, value.count)
            total.append(stored)
    return _sum(total)


def _looked_up(stored: int | None, rows: int | None, table: int | None) -> int | None:
    """Bytes of that share of a table; sizes in numbers."""
    return None if stored is None or rows is None or not table else stored * rows // table


def _activation_bytes(graph: Graph) -> int | None:
    """The peak over the operators (rule 3)."""
    constants = _constants(graph)
    running = _running(graph)
    memory: dict[int, Value] = {}  # whose memory a value is
    first: dict[int, int] = {}
    last: dict[int, int] = {}

    def use(value: Value, at: int) -> None:
        if id(value) not in constants:
            owner = id(memory.setdefault(id(value), value))
            first.setdefault(owner, at)
            last[owner] = at

    for value in graph.inputs:
        use(value, 0)
    for at, op in enumerate(running):
        if op.view and op.outputs and id(op.inputs[0]) not in constants:
            memory[id(op.outputs[0])] = memory.setdefault(id(op.inputs[0]), op.inputs[0])
        for value in (*op.inputs, *op.outputs):
            use(value, at)
    for value in graph.outputs:
        use(value, len(running))
    change = [0] * (len(running) + 2)
    for owner in {id(value): value for value in memory.values()}.values():
        size = owner.bytes
        if size is None:
            return None
        change[first[id(owner)]] += size
        change[last[id(owner)] + 1] -= size
    peak = live = 0
    for step in change:
        live += step
        peak = max(peak, live)
    return peak


def _sum(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
