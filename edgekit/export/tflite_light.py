"""TFLite graphs of the light students, operator by operator.

The converter would unroll an LSTM (428 operators and 47 seconds for 13 words), and none of these
graphs needs more than a page. Rules:

1. Inputs are int32 [1, length]; a graph for length 0 serves any length, which then is -1.
2. Weights have the names that the module gives them.
3. UNIDIRECTIONAL_SEQUENCE_LSTM keeps its state from one run to the next, and apps forget to reset
   it. So a step that is no word resets it: words have one number more, 0, which is ``_RESET`` in
   the padding and in a row of zeros put before the first word and behind the last; its weight is
   the most negative there is for the input, forget and output gates, which it shuts, and 0 for the
   cell. State and answer are then 0, whatever they were. As the padding resets too, the LSTM from
   the right may run over it. A step's input is quantized by itself, so no word loses precision.
4. Products of matrices are worked out in pairs, for the next power of two of a fixed length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.export.tflite_artifact import export_graphs
from edgekit.export.tflite_graph import Graph, Operator, Tensor, constant, operator, schema

if TYPE_CHECKING:
    from edgekit.artifact import Scheme
    from edgekit.model import Model

Array = np.ndarray[Any, Any]

# Times a weight of 0.02 it shuts a gate: the logistic of -20 is 2e-9.
_RESET = 1000.0
# ai_edge_litert's ActivationFunctionType and Padding.
_RELU, _TANH, _SAME = 1, 4, 0


def is_light(model: Model) -> bool:
    """Whether the graph is written here and not by the converter."""
    module: Any = model.module
    return model.architecture is not None and module.config.model_type in _WRITERS


def light_graph(model: Model, length: int) -> Graph:
    """The graph of a light student for texts of so many tokens, or for any (0)."""
    module: Any = model.module
    writing = _Writing(module, length)
    inputs = [writing.value(name, np.int32, (1, writing.length)) for name in model.inputs]
    answer = _WRITERS[module.config.model_type](writing, *inputs)
    return Graph(inputs, [answer], writing.operators)


def written_bytes(model: Model, scheme: Scheme, lengths: Sequence[int]) -> int:
    """Bytes of the file, by writing it with made-up weights where the model's are meta."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        graphs = {length: light_graph(model, length) for length in lengths or (0,)}
        return export_graphs(model, graphs, Path(folder), scheme).bytes


class _Writing:
    """A graph that grows. length: -1 where any will do."""

    def __init__(self, module: Any, length: int) -> None:
        self.module = module
        self.config = module.config
        self.length = length or -1
        self.weights = {
            name: _made_up(number, tensor) if tensor.is_meta else tensor.detach().numpy()
            for number, (name, tensor) in enumerate(module.named_parameters())
        }
        self.operators: list[Operator] = []
        self.made: dict[str, Tensor] = {}

    def value(self, name: str, dtype: Any, shape: Sequence[int]) -> Tensor:
        number = getattr(schema().TensorType, np.dtype(dtype).name.upper())
        fields = None
        if -1 in shape:
            fields = schema().TensorT()
            fields.shapeSignature = list(shape)
        return Tensor(name, number, tuple(1 if size < 0 else size for size in shape), fields=fields)

    def add(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        shape: Sequence[int],
        *,
        dtype: Any = np.float32,
        version: int = 1,
        **options: Any,
    ) -> Tensor:
        """The value of one operator more, called by its kind and number."""
        made = self.value(f"{kind.lower()}_{len(self.operators)}", dtype, shape)
        chosen = None
        if kind in _OPTIONS:
            chosen = getattr(schema(), f"{_OPTIONS[kind]}OptionsT")()
            for name, value in options.items():
                setattr(chosen, name, value)
        self.operators.append(operator(kind, inputs, [made], version=version, options=chosen))
        return made

    def constant(self, name: str, values: Array) -> Tensor:
        """A constant, once for each name."""
        if name not in self.made:
            self.made[name] = constant(name, np.ascontiguousarray(values))
        return self.made[name]

    def whole(self, *numbers: int) -> Tensor:
        return self.constant(f"numbers.{'.'.join(map(str, numbers))}", np.array(numbers, np.int32))

    def weight(self, name: str) -> Tensor:
        return self.constant(name, self.weights[name])

    # Operators

    def reshape(self, tensor: Tensor, *shape: int, dtype: Any = np.float32) -> Tensor:
        asked = list(shape)
        inputs = [tensor, self.whole(*asked)]
        return self.add("RESHAPE", inputs, shape, dtype=dtype, newShape=asked)

    def rows(self, ids: Tensor, name: str) -> Tensor:
        """[length, width] of a table."""
        table = self.weight(name)
        flat = self.reshape(ids, self.length, dtype=np.int32)
        return self.add("EMBEDDING_LOOKUP", [flat, table], (self.length, table.shape[1]))

    def column(self, mask: Tensor) -> Tensor:
        """The mask as float32 [length, 1]."""
        wide = self.add("CAST", [mask], (1, self.length))
        return self.reshape(wide, self.length, 1)

    def linear(self, state: Tensor, name: str, activation: int = 0) -> Tensor:
        """[rows, outputs]."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        varies = state.fields is not None and state.fields.shapeSignature is not None
        shape = (-1 if varies else state.shape[0], weight.shape[0])
        made = self.add("FULLY_CONNECTED", [state, weight, bias], shape)
        return self.add("TANH", [made], shape) if activation == _TANH else made

    def head(self, state: Tensor) -> Tensor:
        """``LightHead``."""
        return self.linear(self.linear(state, "head.hidden", _TANH), "head.classifier")


def _made_up(number: int, tensor: Any) -> Array:
    """Numbers that no other weight has: what is equal is stored once."""
    return np.random.default_rng(number).random(tuple(tensor.shape), np.float32)


_OPTIONS = {
    "ADD": "Add",
    "BATCH_MATMUL": "BatchMatMul",
    "CAST": "Cast",
    "CONCATENATION": "Concatenation",
    "CONV_2D": "Conv2D",
    "DIV": "Div",
    "FULLY_CONNECTED": "FullyConnected",
    "MUL": "Mul",
    "REDUCE_MAX": "Reducer",
    "RESHAPE": "Reshape",
    "SLICE": "Slice",
    "STRIDED_SLICE": "StridedSlice",
    "SUB": "Sub",
    "SUM": "Reducer",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}


def _masks(writing: _Writing, mask: Tensor, types: Tensor | None) -> list[Tensor]:
    """``light.masks``, as columns [length, 1]."""
    whole = writing.column(mask)
    if types is None:
        return [whole]
    shape = (writing.length, 1)
    second = writing.add("MUL", [whole, writing.column(types)], shape)
    return [writing.add("SUB", [whole, second], shape), second]


def _compared(writing: _Writing, states: list[Tensor]) -> Tensor:
    """``light.compared`` of states [1, width]."""
    if len(states) == 1:
        return states[0]
    first, second = states
    gap = writing.add("ABS", [writing.add("SUB", states, first.shape)], first.shape)
    return writing.add("CONCATENATION", [first, second, gap], (1, 3 * first.shape[1]), axis=1)


def _ngram(writing: _Writing, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
    rows = writing.rows(ids, "words.weight")
    width = rows.shape[1]
    one = writing.constant("one", np.ones((1, 1), np.float32))
    means = []
    for part in _masks(writing, mask, types):
        kept = writing.add("MUL", [rows, part], (writing.length, width))
        total = writing.add("SUM", [kept, writing.whole(0)], (1, width), keepDims=True)
        count = writing.add("SUM", [part, writing.whole(0)], (1, 1), keepDims=True)
        least = writing.add("MAXIMUM", [count, one], (1, 1))
        means.append(writing.add("DIV", [total, least], (1, width)))
    return writing.head(_compared(writing, means))


def _cnn(writing: _Writing, ids: Tensor, mask: Tensor) -> Tensor:
    length, config = writing.length, writing.config
    column = writing.column(mask)
    rows = writing.rows(ids, "words.weight")
    kept = writing.add("MUL", [rows, column], (length, rows.shape[1]))
    picture = writing.reshape(kept, 1, 1, length, rows.shape[1])
    found = []
    for number in range(len(config.widths)):
        # torch has [filters, width of a word, words], a picture [filters, 1, words, width].
        name = f"convolutions.{number}"
        filters = writing.weights[f"{name}.weight"].transpose(0, 2, 1)[:, None]
        shape = (1, 1, length, config.filters)
        taken = [
            picture,
            writing.constant(f"{name}.weight", filters),
            writing.weight(f"{name}.bias"),
        ]
        options = {"padding": _SAME, "strideW": 1, "strideH": 1, "fusedActivationFunction": _RELU}
        options |= {"dilationWFactor": 1, "dilationHFactor": 1}
        found.append(writing.add("CONV_2D", taken, shape, **options))
    width = config.filters * len(found)
    joined = found[0]
    if len(found) > 1:
        joined = writing.add("CONCATENATION", found, (1, 1, length, width), axis=3)
    answers = writing.add("MUL", [writing.reshape(joined, length, width), column], (length, width))
    return _finished(writing, answers)


def _bilstm(writing: _Writing, ids: Tensor, mask: Tensor) -> Tensor:
    length, config = writing.length, writing.config
    more = -1 if length < 0 else length + 2
    width, cells = config.embedding_size, config.cells
    column = writing.column(mask)
    one = writing.constant("one", np.ones((1, 1), np.float32))
    empty = writing.add("SUB", [one, column], (length, 1))
    flag = writing.add(
        "MUL", [empty, writing.constant("reset", np.full((1, 1), _RESET, np.float32))], (length, 1)
    )
    rows = writing.add("MUL", [writing.rows(ids, "words.weight"), column], (length, width))
    flagged = writing.add("CONCATENATION", [rows, flag], (length, width + 1), axis=1)
    reset = np.zeros((1, width + 1), np.float32)
    reset[0, -1] = _RESET
    end = writing.constant("reset.row", reset)
    framed = writing.add("CONCATENATION", [end, flagged, end], (more, width + 1), axis=0)
    text = writing.reshape(framed, 1, more, width + 1)
    ahead = _lstm(writing, text, "ahead", more)
    along = writing.whole(1)
    turned = writing.add("REVERSE_V2", [text, along], (1, more, width + 1))
    back = _lstm(writing, turned, "back", more)
    back = writing.add("REVERSE_V2", [back, along], (1, more, cells))
    both = writing.add("CONCATENATION", [ahead, back], (1, more, 2 * cells), axis=2)
    if type(writing.module).__name__.endswith("ForTokenClassification"):
        inner = _without_ends(writing, both, length, 2 * cells)
        return _finished(writing, writing.reshape(inner, length, 2 * cells))
    # What a reset answers is 0, and must not be the largest.
    inner = _without_ends(writing, both, length, 2 * cells)
    flat = writing.reshape(inner, length, 2 * cells)
    low = writing.constant("padding", np.full((1, 1), -2.0, np.float32))
    below = writing.add("MUL", [empty, low], (length, 1))
    return _finished(writing, writing.add("ADD", [flat, below], (length, 2 * cells)))


def _without_ends(writing: _Writing, states: Tensor, length: int, width: int) -> Tensor:
    """[1, length, width] of [1, length + 2, width]."""
    begin, end, step = (writing.whole(*numbers) for numbers in ((0, 1, 0), (0, -1, 0), (1, 1, 1)))
    options = {"beginMask": 0b101, "endMask": 0b101}
    return writing.add("STRIDED_SLICE", [states, begin, end, step], (1, length, width), **options)


def _lstm(writing: _Writing, text: Tensor, name: str, steps: int) -> Tensor:
    """[1, steps, cells] of an LSTM with the number of rule 3."""
    cells = writing.config.cells
    inputs = writing.weights[f"{name}.weight_ih_l0"].reshape(4, cells, -1)
    states = writing.weights[f"{name}.weight_hh_l0"].reshape(4, cells, cells)
    bias = writing.weights[f"{name}.bias_ih_l0"] + writing.weights[f"{name}.bias_hh_l0"]
    largest = max(0.02, float(np.abs(inputs).max()))
    shut = np.full((4, cells, 1), -largest, np.float32)
    shut[2] = 0.0  # the cell's own gate: torch has input, forget, cell, output, as TFLite
    inputs = np.concatenate([inputs, shut], 2)
    gates = ("input", "forget", "cell", "output")

    def four(what: str, values: Array) -> list[Tensor | None]:
        return [writing.constant(f"{name}.{what}.{g}", v) for g, v in zip(gates, values)]

    memory = [_variable(f"{name}.{which}", cells) for which in ("answer", "state")]
    taken: list[Tensor | None] = [text, *four("inputs", inputs), *four("states", states)]
    taken += [None] * 3 + four("bias", bias.reshape(4, cells)) + [None] * 2
    taken += memory
    return writing.add(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        taken,
        (1, steps, cells),
        fusedActivationFunction=_TANH,
        cellClip=0.0,
        projClip=0.0,
        timeMajor=False,
    )


def _variable(name: str, cells: int) -> Tensor:
    fields = schema().TensorT()
    fields.isVariable = True
    return Tensor(name, schema().TensorType.FLOAT32, (1, cells), fields=fields)


def _cmow(writing: _Writing, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
    length, size = writing.length, writing.config.matrix
    rows = writing.rows(ids, "words.weight")
    width = rows.shape[1]
    pooled = []
    for part in _masks(writing, mask, types):
        kept = writing.add("MUL", [rows, part], (length, width))
        parts = []
        for number in range(2):
            place = writing.whole(0, number * size * size), writing.whole(length, size * size)
            flat = writing.add("SLICE", [kept, *place], (length, size * size))
            parts.append(_product(writing, flat, size, from_right=number == 1))
        place = writing.whole(0, 2 * size * size), writing.whole(length, width - 2 * size * size)
        vectors = writing.add("SLICE", [kept, *place], (length, width - 2 * size * size))
        total = writing.add(
            "SUM", [vectors, writing.whole(0)], (1, width - 2 * size * size), keepDims=True
        )
        pooled.append(writing.add("CONCATENATION", [total, *parts], (1, width), axis=1))
    return writing.head(_compared(writing, pooled))


def _product(writing: _Writing, flat: Tensor, size: int, *, from_right: bool) -> Tensor:
    """[1, size²]: the product of I + A for the rows A [length, size²] (rule 4)."""
    length = writing.length
    full = 1 << (length - 1).bit_length()
    identity = np.eye(size, dtype=np.float32).reshape(1, -1)
    matrices = writing.add("ADD", [flat, writing.constant("identity", identity)], flat.shape)
    if full > length:
        filling = writing.constant("filling", np.repeat(identity, full - length, 0))
        matrices = writing.add("CONCATENATION", [matrices, filling], (full, size * size), axis=0)
    matrices = writing.reshape(matrices, full, size, size)
    while full > 1:
        pairs = writing.reshape(matrices, full // 2, 2, size * size)
        full //= 2
        halves = []
        for number in range(2):
            place = writing.whole(0, number, 0), writing.whole(full, 1, size * size)
            half = writing.add("SLICE", [pairs, *place], (full, 1, size * size))
            halves.append(writing.reshape(half, full, size, size))
        factors = halves[::-1] if from_right else halves
        matrices = writing.add("BATCH_MATMUL", factors, (full, size, size))
    return writing.reshape(matrices, 1, size * size)


def _finished(writing: _Writing, states: Tensor) -> Tensor:
    """The logits of states [length, width]: of each, in tagging, or of the largest."""
    length, width = writing.length, states.shape[1]
    if type(writing.module).__name__.endswith("ForTokenClassification"):
        logits = writing.head(states)
        return writing.reshape(logits, 1, length, logits.shape[1])
    largest = writing.add("REDUCE_MAX", [states, writing.whole(0)], (1, width), keepDims=True)
    return writing.head(largest)


_WRITERS = {
    "edgekit-bilstm": _bilstm,
    "edgekit-cmow": _cmow,
    "edgekit-cnn": _cnn,
    "edgekit-ngram": _ngram,
}
