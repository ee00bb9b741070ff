"""From a torch program to ONNX, through torch.onnx."""

from __future__ import annotations

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
    """Call by the names that torch.onnx translates what our transformers have beside those.

    torch 2.13 breaks operators up by running the program anew, twice, on symbolic shapes: half of
    the time that an export takes, for a cast and a subtraction, and to ask for each size once.
    """
    import torch

    aten = torch.ops.aten
    graph = program.graph
    sizes: dict[str, Any] = {}
    for node in list(graph.nodes):
        if isinstance(node.meta.get("val"), torch.SymInt):
            first = sizes.setdefault(str(node.meta["val"]), node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)
        elif node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs:
            node.target = aten._to_copy.default
            node.args, node.kwargs = node.args[:1], {"dtype": node.args[1]}
        elif node.target is aten.rsub.Scalar and len(node.args) == 2 and not node.kwargs:
            node.target, node.args = aten.sub.Tensor, tuple(reversed(node.args))


def _is_translated(program: ExportedProgram, registry: Any) -> bool:
    """Whether torch.onnx has a translation of every operator."""
    from torch.onnx._internal.exporter import _decomp

    known = set(_decomp.get_onnx_implemented_overloads(registry))
    called = (node for node in program.graph.nodes if node.op == "call_function")
    return all(node.target in known for node in called)
