"""The traced forward before ``points`` are in it: what its operators are and are called.

It is rewritten as both writers find it: equal products joined, scores scaled early, batch norms
folded, what does nothing gone. The rules are those of ``points``.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.hard_attention import top_of

# torch.fx's types for a node's target and arguments are unions that no check narrows.
Node = Any
GraphModule = Any

_aten = torch.ops.aten

PRODUCTS = (
    _aten.linear.default,
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
)
MOVING = {
    _aten.reshape.default,
    _aten.view.default,
    _aten.transpose.int,
    _aten.permute.default,
    _aten.flatten.using_ints,
    _aten.slice.Tensor,
    _aten.select.int,
    _aten.squeeze.dim,
    _aten.unsqueeze.default,
    _aten.contiguous.default,
    _aten.clone.default,
    _aten.max_pool2d.default,
}
_PADS = (_aten.pad.default, _aten.constant_pad_nd.default)
# Spelled otherwise, a ReLU6 is a hardtanh from 0 to 6.
_SIXES = (_aten.relu6.default, _aten.relu6_.default, _aten.clamp.default, _aten.clamp_.default)
_DROPOUTS = (_aten.dropout.default, _aten.dropout_.default)
# Layers by other names than their numbers: what is before the first, and what is behind.
EMBEDDINGS, HEAD = "embeddings", "head"
_NORMS = (_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default)


# What torch traced of modules that still live, and what they looked like then: a trace takes
# seconds, and a build needs the same one for each proof and each file.
_programs: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any]] = weakref.WeakKeyDictionary()


def traced_graph(
    forward: nn.Module, example: Sequence[Tensor], varying: Sequence[str], owner: nn.Module
) -> GraphModule:
    """``forward`` as a graph, as exporters will have rewritten it; its parameters stay shared.

    example, varying: as ``example_inputs`` gives them. owner: the module that ``forward`` is made
    of. Raises ExportError when torch cannot trace it.
    """
    looks, program = _looks(forward, example, varying), None
    if owner in _programs:
        then, program = _programs[owner]
        program = program if then == looks else None
    if program is None:
        program = _program(forward, example, varying)
        _programs[owner] = looks, program
    module: Any = program.module(check_guards=False)
    _put_tensors(module, forward)
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in _DROPOUTS or (node.target in _PADS and not any(node.args[1])):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _SIXES and tuple(node.args[1:]) in ((), (0, 6), (0.0, 6.0)):
            node.target, node.args = _aten.hardtanh.default, (node.args[0], 0.0, 6.0)
    _join_equal(graph)
    _scale_early(graph)
    _fold_norms(module)
    return module


def _looks(forward: nn.Module, example: Sequence[Tensor], varying: Sequence[str]) -> Any:
    """All that a trace depends on: kinds of modules, shapes, and which tensors are one."""
    tensors = _tensors(forward)
    numbers = {id(tensor): number for number, tensor in enumerate(tensors.values())}
    return (
        tuple(varying),
        tuple((tensor.shape, tensor.dtype) for tensor in example),
        [
            (name, type(module), module.training, getattr(module, "finish", None), top_of(module))
            for name, module in forward.named_modules()
        ],
        [
            (name, tensor.shape, tensor.dtype, numbers[id(tensor)])
            for name, tensor in tensors.items()
        ],
    )


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """By every name that they have."""
    return dict(module.named_buffers(remove_duplicate=False)) | dict(
        module.named_parameters(remove_duplicate=False)
    )


def _program(forward: nn.Module, example: Sequence[Tensor], varying: Sequence[str]) -> Any:
    from edgekit.errors import ExportError
    from edgekit.export.tracing import quiet_tracing, root_cause

    dims = {axis: torch.export.Dim.DYNAMIC for axis, _ in enumerate(varying)}
    with quiet_tracing():
        try:
            return torch.export.export(
                forward, tuple(example), dynamic_shapes=tuple(dims for _ in example)
            )
        except Exception as error:  # the module's own code runs here, and may raise anything
            raise ExportError(
                f"torch cannot trace this model ({root_cause(error)}), and a static file "
                "needs that; choose --scheme int8-dynamic"
            ) from error


def _put_tensors(module: nn.Module, forward: nn.Module) -> None:
    """Where a trace has a tensor of an earlier forward, that of this one."""
    ours = _tensors(forward)
    for part_name, part in module.named_modules():
        for held in (part._parameters, part._buffers):
            for leaf in held:
                name = f"{part_name}.{leaf}" if part_name else leaf
                if name in ours:
                    held[leaf] = ours[name]


def only_use(node: Any) -> bool:
    return len(node.users) == 1


def is_scaling(user: Any, node: Any) -> bool:
    """Whether ``user`` multiplies ``node`` by one positive number."""
    if user.target is not _aten.mul.Tensor or user.args[0] is not node:
        return False
    factor = user.args[1]
    return isinstance(factor, int | float) and factor > 0 and math.isfinite(factor)


def kind_of(node: Any) -> str:
    """``layer_norm``, ``add`` …"""
    return getattr(node.target, "__name__", str(node.target)).split(".")[0]


def layer_of(name: str) -> str | None:
    """The layer that an operator is in: its name up to the first number, where it has one."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else None


def layers_of(names: Mapping[Any, str]) -> dict[Any, str]:
    """The layer of each operator: ``EMBEDDINGS`` before the first, ``HEAD`` behind the last."""
    found, other = {}, EMBEDDINGS
    for node, name in names.items():
        layer = layer_of(name)
        if layer is not None:
            other = HEAD
        found[node] = layer or other
    return found


def names_of(graph: Any) -> dict[Any, str]:
    """A name for each operator: its weight's, or the layer that ran before and what it does."""
    names: dict[Any, str] = {}
    layer = ""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        kind = kind_of(node)
        weights = [a for a in node.args if isinstance(a, torch.fx.Node) and a.op == "get_attr"]
        if weights:
            parts = str(weights[0].target).removeprefix("module.").split(".")
            names[node] = ".".join(parts[:-1]) or parts[-1]
            numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
            layer = ".".join(parts[: numbers[-1] + 1]) if numbers else ""
        else:
            names[node] = f"{layer}.{kind}" if layer else kind
    return names


def tensor_of(module: Any, name: str) -> Tensor:
    """The parameter or buffer that a traced module calls so."""
    path, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(path), last)
    return found


def _join_equal(graph: Any) -> None:
    """Products of one state with one weight are one, as exporters make them: it has one point.

    So are those of query, key and value that share a factor.
    """
    known: dict[Any, Any] = {}
    for node in list(graph.nodes):
        if node.target not in PRODUCTS:
            continue
        read = tuple(a.target if getattr(a, "op", "") == "get_attr" else a for a in node.args)
        first = known.setdefault((node.target, str(read)), node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _scale_early(graph: Any) -> None:
    """Scale the query instead of the scores: its kernel does that at once (rule 4)."""
    for scaled in list(graph.nodes):
        product: Any = scaled.args[0] if scaled.args else None
        if getattr(product, "target", None) not in (_aten.matmul.default, _aten.bmm.default):
            continue
        if not only_use(product) or not is_scaling(scaled, product):
            continue
        query = product.args[0]
        while query.target in MOVING and only_use(query):
            query = query.args[0]
        if query.target not in PRODUCTS or not only_use(query):
            continue
        with graph.inserting_after(query):
            made = graph.call_function(_aten.mul.Tensor, (query, scaled.args[1]))
        made.meta = dict(query.meta)
        query.replace_all_uses_with(made)
        made.args = (query, scaled.args[1])
        scaled.replace_all_uses_with(product)
        graph.erase_node(scaled)


def _fold_norms(module: Any) -> None:
    """Rule 8, in place: the convolution takes the scale, and the norm's bias is all it adds.

    The norm's own numbers become those of one that only adds its bias, so that the module that
    the parameters are shared with goes on giving the same.
    """
    graph = module.graph
    with torch.no_grad():
        for node in list(graph.nodes):
            if node.target not in _NORMS:
                continue
            product = node.args[0]
            if not _can_fold(node, product):
                continue
            scale, bias, mean, variance = (tensor_of(module, a.target) for a in node.args[1:5])
            epsilon = next(a for a in reversed(node.args) if isinstance(a, float))
            weight = tensor_of(module, product.args[1].target)
            factor = scale / torch.sqrt(variance + epsilon)
            # One that was folded before: a factor that is nearly one would move the weights.
            factor[(scale == 1) & (mean == 0) & (variance == 1.0 - epsilon)] = 1.0
            old = product.args[2] if len(product.args) > 2 else None
            shift: Any = tensor_of(module, old.target) if old is not None else 0.0
            bias.copy_(bias + (shift - mean) * factor)
            if old is not None:
                shift.zero_()
            weight.mul_(factor.reshape(-1, *(1,) * (weight.ndim - 1)))
            scale.fill_(1.0)
            mean.zero_()
            variance.fill_(1.0 - epsilon)
            args = [*product.args]
            args[2:3] = [node.args[2]]
            with graph.inserting_before(node):
                made = graph.call_function(product.target, tuple(args), product.kwargs)
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            graph.erase_node(product)


def _can_fold(norm: Any, product: Any) -> bool:
    """Whether the norm is behind a product alone, and no other reads what would change."""
    if product.target not in PRODUCTS or not only_use(product):
        return False
    if product.target is _aten.linear.default and product.meta["val"].ndim != 2:
        return False  # its last dimension is not the norm's
    if any(a is True for a in norm.args[5:6]):
        return False  # it is training
    constants = [*norm.args[1:5], *(a for a in product.args[1:3] if a is not None)]
    return all(
        isinstance(a, torch.fx.Node) and a.op == "get_attr" and only_use(a) for a in constants
    )
