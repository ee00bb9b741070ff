"""From a torch module to a graph for one fixed shape, through litert-torch."""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.errors import ExportError
from edgekit.export.tflite_file import read_program
from edgekit.export.tflite_graph import Graph
from edgekit.export.tflite_simplify import simplify
from edgekit.export.tracing import quiet_tracing

if TYPE_CHECKING:
    import torch
    from torch import nn

# A constant of fewer bytes is no weight, and may equal another by chance.
_NAMED = 64


def convert(forward: nn.Module, samples: tuple[torch.Tensor, ...], path: Path) -> Graph:
    """The graph of ``forward`` for inputs of the samples' shapes; its inputs are in their order.

    ``path`` takes the converter's file, and the graph's constants stay in there: keep it as long
    as the graph. (Weights in a mapped file do not count as our memory.) Raises ExportError when
    litert-torch cannot convert the module.
    """
    import torch

    with _quiet(), torch.no_grad():
        import litert_torch

        litert_torch.progress.config.show_progress = False
        try:
            litert_torch.convert(
                forward, samples, lightweight_conversion=True, runtime_constant_folding=False
            ).export(str(path))
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
