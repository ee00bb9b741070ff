"""From a torch program to ONNX, through torch.onnx."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import onnx
    from torch import nn
    from torch.export import ExportedProgram

_OPSET = 20


def convert(program: ExportedProgram) -> onnx.ModelProto:
    """The program's graph, which may be spoilt by it. Raises whatever torch raises."""
    from torch.onnx._internal.exporter import _fx_passes

    _spell_as_translated(program)
    decompose = _fx_passes.decompose_with_registry

    def where_needed(program: ExportedProgram, registry: Any) -> ExportedProgram:
        return program if _is_translated(program, registry) else decompose(program, registry)

    with mock.patch.object(_fx_passes, "decompose_with_registry", where_needed):
        return convert_module(program)


def convert_module(
    traced: nn.Module | ExportedProgram, inputs: tuple[Any, ...] = (), dynamic_shapes: Any = None
) -> onnx.ModelProto:
    """The same, with whatever way of tracing torch finds for a module."""
    import torch

    made = torch.onnx.export(
        traced,
        inputs,
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        opset_version=_OPSET,
        verbose=False,
    )
    assert made is not None
    proto: onnx.ModelProto = made.model_proto
    return proto


def _spell_as_translated(program: ExportedProgram) -> None:
    """Call by the names that torch.onnx translates what our models have beside those.

    torch 2.13 breaks operators up by running the program anew, twice, on symbolic shapes: half of
    the time that an export takes, for a cast and a subtraction, and to ask for each size once.
    """
    import torch

    aten = torch.ops.aten
    graph = program.graph
    sizes: dict[str, Any] = {}
    for node in list(graph.nodes):
        target, arguments = node.target, list(node.args)
        # The program knows its outputs by the names of their nodes.
        if node.op != "call_function" or any(user.op == "output" for user in node.users):
            continue
        if isinstance(node.meta.get("val"), torch.SymInt):
            _replace(node, sizes.setdefault(str(node.meta["val"]), node))
        elif target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.kwargs:
            continue
        elif target is aten.to.dtype and len(arguments) == 2:
            if _dtype(arguments[0]) == arguments[1]:
                _replace(node, arguments[0])
                continue
            node.target = aten._to_copy.default
            node.args, node.kwargs = (arguments[0],), {"dtype": arguments[1]}
        elif target is aten.rsub.Scalar and len(arguments) == 2:
            node.target, node.args = aten.sub.Tensor, (arguments[1], arguments[0])
        elif target is aten.add_.Tensor and _is_its_own(arguments[0], node, arguments[1]):
            node.target = aten.add.Tensor
        elif target in (aten.dropout.default, aten.dropout_.default) and not arguments[2]:
            _replace(node, arguments[0])
        elif target is aten.adaptive_avg_pool2d.default and list(arguments[1]) == [1, 1]:
            node.target, node.args = aten.mean.dim, (arguments[0], [-1, -2], True)
        elif target is aten.batch_norm.default and not arguments[5]:
            _spell_norm(node)


def _spell_norm(node: Any) -> None:
    """A batch norm that does not learn: the first of three outputs."""
    import torch

    node.target = torch.ops.aten._native_batch_norm_legit_no_training.default
    node.args = (*node.args[:5], *node.args[6:8])
    with node.graph.inserting_after(node):
        first = node.graph.call_function(operator.getitem, (node, 0))
    first.meta = dict(node.meta)
    node.meta["val"] = (node.meta["val"],)
    node.replace_all_uses_with(first, delete_user_cb=lambda user: user is not first)


def _replace(node: Any, other: Any) -> None:
    if other is not node:
        node.replace_all_uses_with(other)
        node.graph.erase_node(node)


def _is_its_own(node: Any, changed_by: Any, added: Any) -> bool:
    """Whether nothing else sees what ``changed_by`` adds to it in place, and no dtype differs."""
    made_by = node.args[0] if node.target is operator.getitem else node
    schema = getattr(made_by.target, "_schema", None)
    is_new = schema is not None and all(each.alias_info is None for each in schema.returns)
    alike = _dtype(added) in (None, _dtype(node))
    return is_new and alike and list(node.users) == [changed_by]


def _dtype(value: Any) -> Any:
    """Of a node's tensor; ``None`` of a number."""
    return getattr(getattr(value, "meta", {}).get("val"), "dtype", None)


def _is_translated(program: ExportedProgram, registry: Any) -> bool:
    """Whether torch.onnx has a translation of every operator."""
    from torch.onnx._internal.exporter import _decomp

    known = set(_decomp.get_onnx_implemented_overloads(registry))
    called = (node for node in program.graph.nodes if node.op == "call_function")
    return all(node.target in known for node in called)
