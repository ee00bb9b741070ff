"""Where a model's arithmetic is integer: the tensors that an int8 file holds as integers.

The clean forward is traced once, and a ``Point`` is put behind each value that the file will hold
on a grid. A point lets numbers pass, watches them, rounds them as the file will, or marks the
place for a writer. So calibration, training and both writers speak of the same tensors.

Rules:

1. An operator with an integer kernel in both runtimes (``_INTEGER``) reads integers and writes
   integers: a point stands behind it, and behind each input that is not on a grid already.
2. Operators that only move numbers (``MOVING``) keep their input's grid. An input of the model
   is on its grid before it is moved.
3. All else stays float, between a dequantize and a quantize: the float islands of the file.
   Norms are islands on purpose, with the sum before them: the variance of a state does not fit 8
   bits, and one channel of a sum may be 200 times as large as the others (MiniLM's is).
4. A product that is only scaled by a number, or only put through a ReLU, has its point behind
   that: the kernel does both at once.
5. Softmax, tanh and sigmoid write the grid that TFLite's kernels ask for: 1/256 from 0, 1/128
   around 0, 1/256 from 0; in 16 bits 1/32768 around 0, all three.
6. The input of a softmax holds each row's largest score less ten: what is lower weighs less than
   5e-5, and a mask's -100 would take most of the grid (see ``masked_score``).
7. Weights of products: symmetric, a scale for each output channel. Tables: one scale for all,
   because their rows leave the table as integers. A table is a constant of which rows are read,
   or that is an operand of two dimensions or more; sums with a vector stay float.
8. A batch norm behind a product is folded into it. Dropout and padding by nothing go.
9. A layer may stay float: it loses the points that no other layer reads or writes. Its products'
   weights stay on their grids.
10. In 16 bits GELU is an island: tflite-runtime 2.14 has no kernel for it. Weights and tables have
    8 bits all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.steps.quantize.fake import Mode, Point, Table, Weight
from edgekit.steps.quantize.graph import (
    MOVING,
    PRODUCTS,
    GraphModule,
    Node,
    is_scaling,
    kind_of,
    layers_of,
    names_of,
    only_use,
    traced_graph,
)

_aten = torch.ops.aten

_RELU6 = (_aten.hardtanh.default, _aten.hardtanh_.default)
_RELUS = (_aten.relu.default, _aten.relu_.default, *_RELU6)
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor)
_PAIRS = (_aten.matmul.default, _aten.bmm.default, *_SUMS)
_ISLANDS = (_aten.layer_norm.default, _aten.group_norm.default)
_FIXED = {
    _aten.softmax.int: (0.0, 255 / 256),
    _aten._softmax.default: (0.0, 255 / 256),
    _aten.sigmoid.default: (0.0, 255 / 256),
    _aten.tanh.default: (-1.0, 127 / 128),
}
_FIXED_16 = (0.0, 32767 / 32768)
_SOFTMAXES = (_aten.softmax.int, _aten._softmax.default)
_INTEGER = {
    *PRODUCTS,
    *_FIXED,
    *_RELUS,
    *_PAIRS,
    _aten.gelu.default,
    _aten.adaptive_avg_pool2d.default,
}


@dataclass(frozen=True)
class Traced:
    """A forward with points in it. ``module`` takes what the forward took.

    points: by name, in the order in which they run. weights: by the name of the parameter.
    islands: what stays float between two points, as ``name (operator)``. layers: those that could
    work in integers, as ``layer_of`` names them, in the order in which they run. users: of each
    point, the layers that write or read its integers.
    """

    module: GraphModule
    points: Mapping[str, Point]
    weights: Mapping[str, Weight | Table]
    islands: tuple[str, ...]
    layers: tuple[str, ...]
    users: Mapping[str, frozenset[str]]

    def set_mode(self, mode: Mode) -> None:
        for part in (*self.points.values(), *self.weights.values()):
            part.mode = mode

    def round_without(self, float_layers: Collection[str]) -> None:
        """Round as a file does in which these layers stay float (rule 9)."""
        self.set_mode("fake")
        for name, point in self.points.items():
            if self.users[name] <= set(float_layers):
                point.mode = "off"

    def set_ranges(self, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Give the points their ranges. Raises ModelError when one has none."""
        from edgekit.errors import ModelError

        for name, point in self.points.items():
            if name not in ranges and point.fixed is None:
                raise ModelError(
                    f"the model has no range for {name}; calibrate it, or train it again "
                    "with this version"
                )
            if point.fixed is None:
                point.set_range(*ranges[name])

    def ranges(self) -> dict[str, tuple[float, float]]:
        return {name: point.range for name, point in self.points.items()}


def trace(
    forward: nn.Module,
    example: Sequence[Tensor],
    varying: Sequence[str],
    owner: nn.Module,
    float_layers: Collection[str] = (),
    bits: int = 8,
) -> Traced:
    """Put points into ``forward`` (see ``export_forward``); its parameters stay shared with it.

    example, varying, owner: as ``traced_graph`` takes them. float_layers: which layers stay float
    (rule 9). bits: of an activation, 8 or 16. Raises ExportError when torch cannot trace it.
    """
    module = traced_graph(forward, example, varying, owner)
    return _Placing(module, names_of(module.graph), float_layers, bits).place()


class _Placing:
    """Puts points into one graph."""

    def __init__(
        self, module: Any, names: Mapping[Any, str], float_layers: Collection[str], bits: int
    ) -> None:
        self.module, self.names, self.float_layers, self.bits = module, names, float_layers, bits
        self.layers = layers_of(names)
        self.on_grid: set[Any] = set()
        self.points: dict[str, Point] = {}
        self.nodes: dict[Any, Point] = {}  # the point that a call_module node is
        self.weights: dict[str, Weight | Table] = {}
        self.constants: dict[Any, Any] = {}  # a constant's node and the node of its grid
        self.kernels: set[Any] = set()  # what integer kernels work out
        self.islands: dict[str, None] = {}

    def place(self) -> Traced:
        for node in list(self.module.graph.nodes):
            if node.op != "call_function":
                continue
            if node.target is _aten.embedding.default:
                self._look_up(node)
            elif _moves(node):
                if node.args[0] in self.on_grid:
                    self.on_grid.add(node)
            elif self._is_integer(node):
                self._integer(node)
            else:
                self._read_rows(node)
        layers = dict.fromkeys(self.layers[n] for n in self.module.graph.nodes if n in self.kernels)
        users = {name: self._users(name) for name in self.points}
        if self.float_layers:
            self._widen(users)
        self._find_islands()
        self.module.graph.lint()
        self.module.recompile()
        ordered = [self.nodes[n] for n in self.module.graph.nodes if n in self.nodes]
        names = {id(point): name for name, point in self.points.items()}
        points = {names[id(point)]: point for point in ordered}
        for number, point in enumerate(points.values()):
            point.number = number  # without gaps: writers list the grids by it
        islands = tuple(self.islands)
        return Traced(self.module, points, self.weights, islands, tuple(layers), users)

    def _is_integer(self, node: Node) -> bool:
        if node.target not in _INTEGER or not _is_float(node):
            return False
        if node.target is _aten.gelu.default and self.bits == 16:
            return False
        if node.target in PRODUCTS:
            return node.args[1].op == "get_attr" or node.args[1] in self.constants.values()
        if node.target in _PAIRS and not all(map(self._is_operand, node.args[:2])):
            return False
        if node.target in _SUMS:
            user = _only_user(node)
            for_norm = user is not None and user.target in _ISLANDS
            return not for_norm and node.kwargs.get("alpha", 1) == 1
        if node.target in _RELU6:
            return tuple(node.args[1:]) == (0.0, 6.0)
        if node.target is _aten.adaptive_avg_pool2d.default:
            return all(size == 1 for size in node.args[1])
        return True

    def _is_operand(self, operand: Any) -> bool:
        """Whether it is a value, or a table (rule 7)."""
        if not isinstance(operand, torch.fx.Node) or not _is_float(operand):
            return False
        constant = _constant_behind(operand)
        return operand in self.on_grid or constant is None or _is_matrix(constant)

    def _read_rows(self, node: Node) -> None:
        """Rule 7 where rows of a table go into a float operator."""
        for operand in node.all_input_nodes:
            constant = _constant_behind(operand)
            if constant is not None and operand is not constant and _is_matrix(constant):
                self._table(constant)

    def _integer(self, node: Node) -> None:
        """Rule 1."""
        for place, operand in enumerate(node.args[: 2 if node.target in _PAIRS else 1]):
            # A product's result that goes on to a ReLU is not written (rule 4).
            if node.target in _RELUS and only_use(operand) and operand.target in _INTEGER:
                continue
            node.update_arg(place, self._quantized(operand))
        if node.target in PRODUCTS:
            node.update_arg(1, self._weight(node.args[1]))
        if node.target in _SOFTMAXES:
            self._holds_scores(node.args[0])
        last = node
        user = _only_user(node)
        if user is not None and node.target in PRODUCTS and is_scaling(user, node):
            last, user = user, _only_user(user)
        self.kernels.update((node, last))
        if user is not None and user.target in _RELUS and self._is_integer(user):
            return
        fixed = _FIXED.get(node.target)
        made = self._point(
            last, self.names[node], _FIXED_16 if fixed and self.bits == 16 else fixed
        )
        if node.target in _RELU6:
            self.nodes[made].most = 6.0

    def _quantized(self, operand: Any) -> Any:
        """The operand on a grid: as it is, a table, or behind a new point."""
        if operand in self.on_grid:
            return operand
        constant = _constant_behind(operand)
        if constant is not None:
            self._table(constant)
            return operand
        source = _moved_input(operand)
        if source is None:
            return self._point(operand, self.names.get(operand, operand.name))
        made = self._point(source, f"{source.name}.input")
        self._move_on(made)
        return made if operand is source else operand

    def _point(self, node: Any, name: str, fixed: tuple[float, float] | None = None) -> Any:
        """A point behind ``node`` for all that read it."""
        unique, number = name, 1
        while unique in self.points:
            number += 1
            unique = f"{name}.{number}"
        point = Point(number=len(self.points), fixed=fixed, bits=self.bits)
        self.points[unique] = point
        return self._insert(node, f"point_{point.number}", point)

    def _insert(self, node: Any, attribute: str, part: nn.Module, *others: Any) -> Any:
        self.module.add_submodule(attribute, part)
        with self.module.graph.inserting_after(node):
            made = self.module.graph.call_module(attribute)
        node.replace_all_uses_with(made)
        made.args = (node, *others)
        made.meta = dict(node.meta)
        self.on_grid.add(made)
        if isinstance(part, Point):
            self.nodes[made] = part
        return made

    def _weight(self, constant: Any) -> Any:
        """Rule 7 for products; a weight that two products share has one grid."""
        if constant.op != "get_attr":
            return constant
        # A table whose rows are looked up as well keeps its one scale.
        part = self.weights.setdefault(constant.target, Weight())
        self.constants[constant] = self._insert(constant, f"weight_{len(self.weights)}", part)
        return self.constants[constant]

    def _table(self, constant: Any) -> None:
        """Rule 7 for a table of which a slice is read."""
        if constant in self.constants:
            return
        part = Table()
        self.weights[constant.target] = part
        made = self._insert(constant, f"weight_{len(self.weights)}", part)
        self.constants[constant] = made
        self._move_on(made)

    def _move_on(self, made: Any) -> None:
        """Rule 2, for what stands in the graph before its input came onto a grid."""
        waiting = [made]
        while waiting:
            for user in waiting.pop().users:
                if _moves(user):
                    self.on_grid.add(user)
                    waiting.append(user)

    def _look_up(self, node: Node) -> None:
        """Rule 7 for rows by number: they are rounded when looked up, not all of the table."""
        constant = node.args[0]
        if constant.op != "get_attr" or not _follows_inputs(node.args[1]):
            return
        part = self.weights.setdefault(constant.target, Table())
        if not isinstance(part, Table):
            return
        self._insert(node, f"rows_{len(self.on_grid)}", part, constant)

    def _holds_scores(self, node: Any) -> None:
        """Rule 6."""
        while node not in self.nodes:
            node = node.args[0]
        self.nodes[node].scores = True

    def _users(self, name: str) -> frozenset[str]:
        """The layers whose integer kernels write or read a point, wherever its numbers move."""
        (made,) = (node for node, point in self.nodes.items() if point is self.points[name])
        near, waiting = {made.args[0]}, [made]
        while waiting:
            users = set(waiting.pop().users) - near
            near |= users
            waiting += filter(_moves, users)
        return frozenset(self.layers[node] for node in near & self.kernels)

    def _widen(self, users: Mapping[str, frozenset[str]]) -> None:
        """Rule 9."""
        self.kernels = {n for n in self.kernels if self.layers[n] not in self.float_layers}
        names = {id(point): name for name, point in self.points.items()}
        for made, point in list(self.nodes.items()):
            name = names[id(point)]
            if users[name] <= set(self.float_layers):
                del self.points[name], self.nodes[made]
                made.replace_all_uses_with(made.args[0])
                self.module.graph.erase_node(made)
        waiting = [node for node in self.on_grid if node.op == "call_module" and node.users]
        self.on_grid = set(waiting)
        while waiting:
            moved = {user for user in waiting.pop().users if _moves(user)} - self.on_grid
            self.on_grid |= moved
            waiting += moved

    def _find_islands(self) -> None:
        """Rule 3, for the report: float operators that read what came from integers."""
        wide: set[Any] = set()
        for node in self.module.graph.nodes:
            if node.op != "call_function" or node in self.on_grid or node in self.kernels:
                continue
            if _is_float(node) and any(
                a in self.on_grid or a in wide for a in node.all_input_nodes
            ):
                wide.add(node)
                if not _moves(node):
                    self.islands[f"{self.names.get(node, node.name)} ({kind_of(node)})"] = None


def _is_float(node: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_matrix(constant: Any) -> bool:
    """Whether a constant is a table: of two dimensions or more (rule 7)."""
    value = constant.meta.get("val")
    return isinstance(value, Tensor) and sum(int(size) > 1 for size in value.shape) > 1


def _follows_inputs(node: Any) -> bool:
    """Whether a tensor depends on the numbers of an input, and not on its shape alone.

    What does not (scores by distance) is worked out once by a converter, and no table any more.
    """
    if not isinstance(node.meta.get("val"), Tensor):
        return False
    return node.op == "placeholder" or any(map(_follows_inputs, node.all_input_nodes))


def _moves(node: Any) -> bool:
    """Rule 2."""
    if node.target is _aten.constant_pad_nd.default:
        return not any(node.args[2:])
    if node.target is _aten.pad.default:
        return node.args[2:3] in ((), ("constant",)) and not any(node.args[3:])
    return node.target in MOVING


def _only_user(node: Any) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _moved_input(node: Any) -> Any:
    """The input of the model that ``node`` is, or that is only moved to become it."""
    while node.op == "call_function" and _moves(node):
        node = node.args[0]
    return node if node.op == "placeholder" else None


def _constant_behind(node: Any) -> Any:
    """The parameter or buffer that ``node`` is, or is a part of."""
    while node.op == "call_function" and _moves(node):
        node = node.args[0]
    return node if node.op == "get_attr" else None
