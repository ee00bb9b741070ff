"""From graphs of a model to ``model.tflite``: signatures, the scheme's weights, the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Scheme
from edgekit.export.tflite_file import write_program
from edgekit.export.tflite_graph import Graph, Program, Signature, describe
from edgekit.export.tracing import output_name

if TYPE_CHECKING:
    from edgekit.model import Model

_FILE = "model.tflite"
_ONLY = "serving_default"


def export_graphs(model: Model, graphs: Mapping[int, Graph], out: Path, scheme: Scheme) -> Artifact:
    """Write graphs of the model, by their length, as ``export_tflite`` does."""
    fixed = tuple(length for length in graphs if length)
    return write_artifact(program_of(model, graphs), out, scheme, fixed)


def program_of(model: Model, graphs: Mapping[int, Graph]) -> Program:
    """A program with a signature for each graph, by their length, 0 for one that serves any."""
    names = (*model.inputs, output_name(model))
    signatures = [
        Signature(
            f"length_{length}" if len(graphs) > 1 else _ONLY,
            graph,
            dict(zip(names, graph.inputs, strict=False)),
            {names[-1]: graph.outputs[0]},
        )
        for length, graph in graphs.items()
    ]
    return Program(list(graphs.values()), signatures)


def write_artifact(
    program: Program, out: Path, scheme: Scheme, lengths: tuple[int, ...]
) -> Artifact:
    """Write ``out/model.tflite``; the program's weights become those of the scheme."""
    if scheme == "fp16":
        from edgekit.export.tflite_fp16 import halve_weights

        halve_weights(program)
    elif scheme != "fp32":
        from edgekit.export.tflite_weights import quantize_weights

        quantize_weights(program, scheme)
    out.mkdir(parents=True, exist_ok=True)
    path = out / _FILE
    write_program(program, path)
    inputs, outputs = describe(program)
    return Artifact(path, "tflite", scheme, inputs, outputs, lengths)
