"""Operators of a torch program broken up into those that a converter knows, one by one.

torch breaks a program up by running all of it anew, three times, layer for layer. Here each
operator is run by itself, without data, and once for all that do the same with the same shapes, as
layers do; what it comes to takes its place. Programs for which that is not enough (shapes that
vary, what changes a tensor in place, operators that hold programs) are left to torch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph, Node

Table = Mapping[Any, Callable[..., Any]]


class _NotPlainError(Exception):
    """An operator that does more than to compute its outputs."""


def decompose(
    program: ExportedProgram, table: Table, otherwise: Callable[..., ExportedProgram]
) -> ExportedProgram:
    """``program`` itself, with its operators broken up by ``table``, or what ``otherwise`` makes.

    otherwise: torch's own way, ``ExportedProgram.run_decompositions``.
    """
    import copy

    import torch
    from torch._guards import detect_fake_mode
    from torch.export import exported_program as exporting
    from torch.export._trace import _ignore_backend_decomps

    mode = detect_fake_mode([node.meta.get("val") for node in program.graph.nodes])
    if mode is None or any(map(_is_special, program.graph.nodes)):
        return otherwise(program, table)
    overrides, rules = exporting._split_decomp_table_to_cia_and_python_decomp(dict(table))
    graph = copy.deepcopy(program.graph)
    with (
        torch._C._AutoDispatchBelowADInplaceOrView(),  # a view may be what it is of
        mode,
        exporting._override_composite_implicit_decomp(overrides),
        _ignore_backend_decomps(),
    ):
        try:
            _break_up(graph, rules)
        except _NotPlainError:
            return otherwise(program, table)
    program.graph_module.graph = graph
    outputs = graph.output_node().args[0]
    for spec, output in zip(program.graph_signature.output_specs, outputs, strict=True):
        spec.arg.name = output.name
    program.graph_module.recompile()
    return program


def _is_special(node: Node) -> bool:
    import torch

    value = node.meta.get("val")
    if node.op == "output":
        return not all(isinstance(each, torch.fx.Node) for each in node.args[0])  # type: ignore[union-attr]
    sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
    varies = any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes)
    if node.op != "call_function":
        return varies or node.op != "placeholder"
    holds = isinstance(node.target, torch._ops.HigherOrderOperator)
    schema = getattr(node.target, "_schema", None)
    return varies or holds or (schema is not None and schema.is_mutable)


def _break_up(graph: Graph, rules: Table) -> None:
    """Replace each operator by what it comes to. Raises _NotPlainError."""
    known: dict[Any, Graph] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        key = _key(node)
        traced = known.get(key) or _trace(node, rules)
        # What a converter adds of its own may carry a mark that no other may have.
        if all(inner.op != "call_function" or _is_torchs(inner.target) for inner in traced.nodes):
            known[key] = traced
        _inline(traced, node)
    graph.eliminate_dead_code()


def _is_torchs(target: Any) -> bool:
    return target is operator.getitem or getattr(target, "namespace", "") == "aten"


def _key(node: Node) -> Any:
    """What is the same for operators that do the same."""
    import torch
    from torch.fx.node import map_arg

    def of_input(source: Node) -> Any:
        value = source.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise _NotPlainError
        return ("tensor", tuple(value.shape), value.stride(), value.dtype)

    target: Any = node.target
    if getattr(target, "__closure__", 0) is None:
        target = target.__code__
    inputs = map_arg((node.args, node.kwargs), of_input)
    # Two inputs are one, or they are two.
    same = tuple(node.all_input_nodes.index(each) for each in _sources(node))
    return target, repr(inputs), same


def _sources(node: Node) -> list[Node]:
    """Its inputs in order, each as often as it is read."""
    from torch.fx.node import map_arg

    found: list[Node] = []
    map_arg((node.args, node.kwargs), lambda source: found.append(source))
    return found


def _trace(node: Node, rules: Table) -> Graph:
    """The operator by itself: a placeholder for each input, once however often it is read."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.node import map_arg

    target: Any = node.target
    sources = node.all_input_nodes

    def run(*values: Any) -> Any:
        by_node = dict(zip(sources, values, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), by_node.__getitem__)
        return target(*args, **kwargs)

    # Not the tensors of its inputs: what comes of operators that are alike may be one.
    values = [_like(source.meta["val"]) for source in sources]
    traced: Graph = make_fx(run, decomposition_table=dict(rules))(*values).graph
    if any(inner.op != "output" and _is_special(inner) for inner in traced.nodes):
        raise _NotPlainError
    return traced


def _like(value: Any) -> Any:
    import torch

    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _whence(node: Node) -> dict[str, Any]:
    """What a node's meta says of where it comes from, and not of its value."""
    return {
        name: node.meta[name] for name in ("nn_module_stack", "stack_trace") if name in node.meta
    }


def _inline(traced: Graph, node: Node) -> None:
    graph = node.graph
    new: dict[Node, Any] = {}
    sources = iter(node.all_input_nodes)
    with graph.inserting_before(node):
        for inner in traced.nodes:
            if inner.op == "placeholder":
                new[inner] = next(sources)
            elif inner.op == "output":
                (result,) = inner.args
            else:
                new[inner] = graph.node_copy(inner, new.__getitem__)
                new[inner].meta = {**_whence(node), **inner.meta}
    if isinstance(result, list | tuple):
        for user in list(node.users):
            if user.target is not operator.getitem:
                raise _NotPlainError
            place: Any = user.args[1]
            user.replace_all_uses_with(new[result[place]])
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(new[result])
    graph.erase_node(node)
