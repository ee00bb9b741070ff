"""Dynamic int8 in TorchScript: int8 weights in the file, activations quantized as they come.

Rules, for a frozen graph:

1. ``aten::linear`` with a constant weight becomes ``quantized::linear_dynamic``: int8 weight with
   a scale for each output; the input is quantized when the model runs, with one scale and zero
   point, to seven bits: eight overflow silently in torch's kernels on x86 without VNNI (of 64
   ones times ones, 32.4 are left). torch stores 16 more bytes an output than others do. Its packed
   form holds the bias too; a weight that meets several biases is packed without, and they are
   added behind.
2. ``aten::embedding`` and ``aten::slice`` of rows of a constant table: int8 table with a scale
   for each row; rows and scales are picked and multiplied. Tables below 1,024 values stay.
3. Convolutions: int8 filter with a scale for each output channel, multiplied in front of the
   convolution. torch works that out once, when the model runs first.
4. LSTM: int8 weights with a scale for each row of a gate, multiplied in front of it.
5. All else (biases, norms, small tables) stays float32.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.steps.quantize.grid import quantize_int8

if TYPE_CHECKING:
    import torch
    from torch._C import Graph, Node, Value

_Key = tuple[Any, ...] | None
_REDUCE_RANGE = True
_SMALLEST_TABLE = 1024
_CONVOLUTIONS = ("aten::_convolution", "aten::conv1d", "aten::conv2d", "aten::conv3d")


def quantize_weights(graph: "Graph") -> None:
    """Rewrite a frozen ``graph`` in place by the rules above."""
    import torch

    rewriting = _Rewriting(graph, _biases(graph))
    for node in list(graph.nodes()):
        kind = node.kind()
        if kind == "aten::linear":
            rewriting.linear(node)
        elif kind in ("aten::embedding", "aten::slice"):
            rewriting.rows(node)
        elif kind == "aten::lstm":
            rewriting.recurrent(node)
        elif kind in _CONVOLUTIONS:
            rewriting.convolution(node)
    torch._C._jit_pass_dce(graph)


@dataclass
class _Rewriting:
    """A graph while it is being rewritten.

    biases: of each weight that linears read, their biases. made: the int8 form of each weight by
    use and address, so that layers that share a weight still share it. (An address is its
    weight's alone: the graph holds them all to the end.)
    """

    graph: "Graph"
    biases: "Mapping[_Key, set[_Key]]"
    made: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def linear(self, node: "Node") -> None:
        """Rule 1."""
        state, weight, bias = node.inputs()
        matrix = _float_constant(weight)
        if matrix is None:
            return
        addend: Any = bias.toIValue()
        behind = addend is not None and len(self.biases[_key(matrix)]) > 1
        inside = None if behind else addend
        packed = self._once(lambda: _pack(matrix, inside), matrix, inside)
        inputs = [state, self._constant(node, packed), self._constant(node, _REDUCE_RANGE)]
        product = self._insert(node, "quantized::linear_dynamic", inputs)
        if behind:
            product = self._insert(node, "aten::add", [product, bias, self._constant(node, 1)])
        _replace(node, product)

    def rows(self, node: "Node") -> None:
        """Rule 2."""
        source, *which = node.inputs()
        table = _float_constant(source)
        if table is None or table.ndim < 2 or table.numel() < _SMALLEST_TABLE:
            return
        dimension: Any = which[0].toIValue()
        if node.kind() == "aten::slice" and dimension in (-1, table.ndim - 1):
            return
        parts = self._once(lambda: _quantized_rows(table), table)
        picked = [
            self._insert(node, node.kind(), [self._constant(node, part), *which]) for part in parts
        ]
        _replace(node, self._insert(node, "aten::mul", picked))

    def convolution(self, node: "Node") -> None:
        """Rule 3."""
        state, weight, *rest = node.inputs()
        filters = _float_constant(weight)
        if filters is None:
            return
        parts = self._once(lambda: _quantized_filters(filters), filters)
        widened = self._insert(node, "aten::mul", [self._constant(node, part) for part in parts])
        _replace(node, self._insert(node, node.kind(), [state, widened, *rest]))

    def recurrent(self, node: "Node") -> None:
        """Rule 4."""
        weights = list(node.inputs())[2]
        known: Any = weights.toIValue()
        parts = (
            [self._constant(node, each) for each in known]
            if known is not None
            else list(weights.node().inputs())
        )
        for number, part in enumerate(parts):
            matrix = _float_constant(part)
            if matrix is not None and matrix.ndim == 2:
                stored = self._once(functools.partial(_quantized_filters, matrix), matrix)
                factors = [self._constant(node, each) for each in stored]
                parts[number] = self._insert(node, "aten::mul", factors)
        listed = self.graph.create("prim::ListConstruct", parts, 1).insertBefore(node).output()
        listed.setType(weights.type())
        node.replaceInputWith(weights, listed)

    def _once(self, make: Callable[[], Any], *of: "torch.Tensor | None") -> Any:
        key = tuple(map(_key, of))
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def _constant(self, before: "Node", value: Any) -> "Value":
        graph: Any = self.graph  # torch's stubs lack the method
        graph.setInsertPoint(before)
        constant: Value = graph.insertConstant(value)
        return constant

    def _insert(self, before: "Node", kind: str, inputs: "Sequence[Value]") -> "Value":
        node = self.graph.create(kind, list(inputs), 1)
        return node.insertBefore(before).output()


def _key(tensor: "torch.Tensor | None") -> _Key:
    """The same for the same constant."""
    return None if tensor is None else (tensor.data_ptr(), tensor.shape, tensor.stride())


def _biases(graph: "Graph") -> "dict[_Key, set[_Key]]":
    found: dict[_Key, set[_Key]] = {}
    for node in graph.nodes():
        if node.kind() == "aten::linear":
            _, weight, bias = node.inputs()
            addend: Any = bias.toIValue()
            found.setdefault(_key(_float_constant(weight)), set()).add(_key(addend))
    return found


def _pack(matrix: "torch.Tensor", bias: "torch.Tensor | None") -> Any:
    """Weight [out, in] and bias [out] as torch's integer kernels take them."""
    import torch

    integers, scales = quantize_int8(matrix.numpy(), axis=0)
    weight = torch._make_per_channel_quantized_tensor(
        torch.from_numpy(integers),
        torch.from_numpy(scales).double(),
        torch.zeros(len(scales), dtype=torch.int64),
        0,
    )
    return torch.ops.quantized.linear_prepack(weight, bias)


def _quantized_rows(table: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Integers [..., W] and scales [..., 1] of a table [..., W]."""
    import torch

    rows = np.ascontiguousarray(table.reshape(-1, table.shape[-1]))
    integers, scales = quantize_int8(rows, axis=0)
    leading = table.shape[:-1]
    return torch.from_numpy(integers).reshape(table.shape), torch.from_numpy(scales).reshape(
        *leading, 1
    )


def _quantized_filters(filters: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Integers [out, ...] and scales [out, 1, ...] of filters [out, ...]."""
    import torch

    integers, scales = quantize_int8(filters.numpy(), axis=0)
    return torch.from_numpy(integers), torch.from_numpy(scales).reshape(
        -1, *(1,) * (filters.ndim - 1)
    )


def _float_constant(value: "Value") -> "torch.Tensor | None":
    """The float32 tensor that ``value`` always is, if it is one."""
    import torch

    constant: Any = value.toIValue()
    if isinstance(constant, torch.Tensor) and constant.dtype == torch.float32:
        return constant
    return None


def _replace(node: "Node", value: "Value") -> None:
    node.output().replaceAllUsesWith(value)
    node.destroy()
