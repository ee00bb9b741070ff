"""From a torch module to a graph for one fixed shape, through litert-torch."""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from edgekit.errors import EdgekitError, ExportError
from edgekit.export.decompose import decompose
from edgekit.export.tflite_file import read_program
from edgekit.export.tflite_graph import Graph
from edgekit.export.tflite_simplify import simplify
from edgekit.export.tracing import quiet_tracing

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

# A constant of fewer bytes is no weight, and may equal another by chance.
_NAMED = 64
# Operators whose graphs gain by litert-torch's passes for layouts.
_LAID_OUT = ("aten.conv", "aten.scaled_dot_product")


def convert(forward: nn.Module, samples: tuple[torch.Tensor, ...]) -> Graph:
    """The graph of ``forward`` for inputs of the samples' shapes; its inputs are in their order.

    The graph's constants stay in the converter's file, which is mapped: weights in there do not
    count as our memory. Raises ExportError when litert-torch cannot convert the module.
    """
    from edgekit.export.programs import converted, program_of

    with _quiet():
        try:
            traced = program_of(forward, samples)
            path = converted(
                "litert-torch",
                traced,
                "model.tflite",
                lambda path: _convert(forward, samples, traced, path),
            )
        except (EdgekitError, OSError):
            raise
        except Exception as error:  # the module's own code runs here, and may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise ExportError(
                f"litert-torch cannot write this model as TFLite ({reason}); try --format onnx"
            ) from error
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    program = read_program(content, path.name)
    (graph,), (signature,) = program.graphs, program.signatures
    graph.inputs = [signature.inputs[f"args_{number}"] for number, _ in enumerate(samples)]
    if len(graph.outputs) != 1:
        raise ExportError(f"the model gives {len(graph.outputs)} outputs; return one tensor")
    simplify(graph)
    return graph


def _convert(
    forward: nn.Module, samples: tuple[torch.Tensor, ...], program: ExportedProgram, path: Path
) -> None:
    """Let litert-torch 0.10, which takes modules alone, work with the program that we have.

    It breaks operators up twice, each time as long as all the rest takes. The passes between are
    about layouts: where there is nothing for them to do, the second time alone gives the same file,
    and so does breaking them up one by one.
    """
    import litert_torch
    import torch
    from litert_torch._convert import core

    own_export, own_signature = torch.export.export, core.export_torch_signature
    run_anew = torch.export.ExportedProgram.run_decompositions
    twice = any(str(node.target).startswith(_LAID_OUT) for node in program.graph.nodes)

    def export(module: nn.Module, *args: Any, **kwargs: Any) -> ExportedProgram:
        return program if module is forward else own_export(module, *args, **kwargs)

    def export_signature(signature: Any, **options: Any) -> ExportedProgram:
        made: ExportedProgram = own_signature(signature, **options, run_decompositions=twice)
        return made

    def break_up(program: ExportedProgram, table: Any) -> ExportedProgram:
        return run_anew(program, table) if twice else decompose(program, table, run_anew)

    _lower_topk()
    litert_torch.progress.config.show_progress = False
    with (
        torch.no_grad(),
        mock.patch.object(torch.export.ExportedProgram, "run_decompositions", break_up),
        mock.patch.object(torch.export, "export", export),
        mock.patch.object(core, "export_torch_signature", export_signature),
    ):
        litert_torch.convert(
            forward, samples, lightweight_conversion=True, runtime_constant_folding=False
        ).export(str(path))


def _lower_topk() -> None:
    """Let litert-torch write a ``topk`` as TOPK_V2, not, where only values are read, as a sort.

    STABLEHLO_SORT has a graph of its own for the comparison, and few runtimes have it.
    """
    import torch
    from litert_converter.mlir import ir
    from litert_converter.mlir.dialects import stablehlo
    from litert_torch.backend.lowerings import registry, utils

    def lower(context: Any, values: Any, count: int, dim: int = -1, *_: Any) -> Any:
        rank = len(values.type.shape)
        if dim not in (-1, rank - 1):
            raise ExportError("a topk along another axis than the last has no operator in TFLite")
        largest, places = utils.node_meta_to_ir_types(context.node)
        narrow = ir.RankedTensorType.get(places.shape, ir.IntegerType.get_signless(32))
        return stablehlo.custom_call(
            result=[largest, narrow],
            inputs=[values, utils.numpy_array_constant(np.array(count, np.int32))],
            call_target_name=ir.StringAttr.get("tfl.topk_v2"),
            has_side_effect=ir.BoolAttr.get(False),
            backend_config=ir.StringAttr.get("{}"),
        )

    registry.lower(torch.ops.aten.topk.default)(lower)


def name_tensors(graph: Graph, weights: Mapping[str, torch.Tensor]) -> None:
    """Call weights by their names, and all else by its operator and place.

    The converter's names are long, and change with the length.
    """
    known = {
        _fingerprint(tensor.detach().numpy()): name
        for name, tensor in weights.items()
        if tensor.nbytes >= _NAMED
    }
    for number, tensor in enumerate(graph.inputs):
        tensor.name = f"input_{number}"
    for number, op in enumerate(graph.operators):
        place = f"{op.kernel.name.lower()}_{number}"
        for at, read in enumerate(op.inputs):
            if read is not None and read.data is not None:
                read.name = known.get(_fingerprint(read.data), f"{place}.input_{at}")
        for made in op.outputs:
            made.name = place


def _fingerprint(values: npt.NDArray[Any]) -> tuple[int, int]:
    """Tells weights apart: their size and checksum."""
    return values.nbytes, zlib.crc32(np.ascontiguousarray(values).data.cast("B"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, and nothing on stderr from C++, which asks no logging level."""
    with quiet_tracing(), contextlib.ExitStack() as stack:
        silence = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, silence)
        kept = os.dup(2)
        stack.callback(os.close, kept)
        os.dup2(silence, 2)
        stack.callback(os.dup2, kept, 2)
        yield
