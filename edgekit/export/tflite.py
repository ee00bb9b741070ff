"""Write TFLite: for LiteRT, and for tflite-runtime 2.14 and later.

Rules of the file:

1. A text model has one signature for any length, ``serving_default``, or one for each length
   bucket, ``length_16`` and so on, which share their weights. Any length is the faster and the
   smaller one: it computes no padding, and runtimes repack the weights once, not once a bucket.
   Fixed lengths are for GPU delegates, which take no other shapes, and for those graphs that
   cannot do without.
2. Inputs have the model's names, ids are int32; the output is float32 ``logits`` or ``embedding``.
3. A constant is called as the checkpoint calls it, and stored once.
4. The same model gives the same bytes.

The converter makes a graph for one length in seconds. It runs once, or twice where the length
cannot be told from other numbers; all other lengths are learned from that (``tflite_lengths``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import FLOAT_SCHEMES, STATIC, Artifact, Scheme
from edgekit.errors import ExportError, ModelError
from edgekit.export.lengths import default_lengths
from edgekit.export.tflite_any_length import graph_for_any_length
from edgekit.export.tflite_artifact import program_of, write_artifact
from edgekit.export.tflite_convert import convert, name_tensors
from edgekit.export.tflite_file import read_program
from edgekit.export.tflite_graph import Graph, Program, type_name
from edgekit.export.tflite_lengths import (
    CannotLearnError,
    Pattern,
    graph_for_length,
    learn_lengths,
    read_lengths,
    shorten,
    unmistakable,
)
from edgekit.export.tflite_light import is_light, light_graph
from edgekit.model import Model, as_exported, export_forward
from edgekit.preprocess import ImagePreprocessor, TextReader

if TYPE_CHECKING:
    import torch

    from edgekit.steps.quantize.points import Traced

_MASK = "attention_mask"
# Describes the converter's file, not ours: which runtime its operators asked for.
_STALE_METADATA = ("min_runtime_version", "keep_stablehlo_constant")


def export_tflite(
    model: Model,
    out: Path,
    *,
    scheme: Scheme,
    lengths: Sequence[int] = (),
    any_length: bool = False,
    beside: Path | None = None,
    integer_ends: bool = False,
) -> Artifact:
    """Write ``out/model.tflite``.

    lengths: the buckets of a text model, in tokens; 16, 32, 64 and 128 when there are none.
    any_length: one signature for any length instead, where the graph allows it; the artifact's
        ``lengths`` are empty then. Not for GPU delegates.
    beside: a folder that takes the same graphs in float32 as well.
    integer_ends: of a static scheme, inputs and outputs are integers on the grids that they name.
    Inputs: ids int32 [1, length], pictures float32 [1, C, H, W]. Raises ExportError when
    litert-torch cannot convert the module, or the file would pass 2 GB.
    """
    static = _marked(model, scheme) if scheme in STATIC else None
    graphs = _graphs(model, scheme, sorted(set(lengths)), any_length, static)
    program = program_of(model, graphs)
    fixed = tuple(length for length in graphs if length)
    if beside is not None:
        write_artifact(program if static is None else _plain(program), beside, "fp32", fixed)
    if static is not None:
        _make_integer(program, static, model, integer_ends)
    return write_artifact(program, out, scheme, fixed)


def _plain(program: Program) -> Program:
    from edgekit.export.tflite_static import without_marks

    return without_marks(program)


def _marked(model: Model, scheme: Scheme) -> Traced:
    from edgekit.steps.quantize.static import marked

    return marked(model, scheme, "tflite")


def _make_integer(program: Program, static: Traced, model: Model, integer_ends: bool) -> None:
    from edgekit.export.tflite_static import quantize_static
    from edgekit.steps.quantize.static import grids, tables

    quantize_static(program, grids(static), tables(static), integer_ends=integer_ends)
    if model.quantized is not None and model.quantized.float_layers:
        from edgekit.export.tflite_weights import quantize_weights

        quantize_weights(program, "int8-weights")


def quantize_tflite_file(source: Path, out: Path, *, scheme: Scheme) -> Artifact:
    """Write a float TFLite file, from whatever converter, as ``out/model.tflite`` in a scheme.

    Raises ModelError when the source is damaged, is not float32 throughout, or has no weights
    that the scheme changes.
    """
    program = read_program(source.read_bytes(), str(source))
    for name in _STALE_METADATA:
        program.metadata.pop(name, None)
    if scheme != "fp32":
        _check_float32(program, source)
    artifact = write_artifact(program, out, scheme, ())
    if scheme != "fp32" and artifact.bytes >= source.stat().st_size:
        artifact.path.unlink()
        raise ModelError(f"{source} holds no weights that {scheme} makes smaller; ship it as is")
    return artifact


def _graphs(
    model: Model,
    scheme: Scheme,
    lengths: list[int],
    any_length: bool,
    static: Traced | None,
) -> dict[int, Graph]:
    """The model's graphs by their length, 0 for one that serves any (or has none)."""
    model = as_exported(model)
    forward = export_forward(model, decomposed_norm=True)
    weights = dict(forward.named_buffers()) | dict(model.module.named_parameters())

    @functools.cache
    def converted(length: int) -> Graph:
        traced = forward if static is None else static.module
        graph = convert(traced, _samples(model, length))
        name_tensors(graph, weights)
        return graph

    if not isinstance(model.preprocessor, TextReader):
        return {0: converted(0)}
    allowed = model.preprocessor.max_length
    if is_light(model) and any_length:
        return {0: light_graph(model, 0)}
    lengths = lengths or list(default_lengths(allowed))
    if lengths[-1] > allowed:
        raise ExportError(f"length {lengths[-1]} is beyond the {allowed} positions of the model")
    if is_light(model):
        return {length: light_graph(model, length) for length in lengths}
    longest = allowed if any_length else lengths[-1]
    if [longest] == lengths and not any_length:
        return {longest: converted(longest)}
    try:
        pattern = _pattern(converted, longest, weights)
    except CannotLearnError:
        return {length: converted(length) for length in lengths}
    if any_length:
        mask = pattern.graph.inputs[model.inputs.index(_MASK)]
        with contextlib.suppress(CannotLearnError):
            return {0: graph_for_any_length(pattern, mask)}
        pattern = shorten(pattern, lengths[-1])
    # A GPU delegate has no use for a SLICE of a constant, nor for an int8 file.
    slices = scheme not in FLOAT_SCHEMES
    return {length: graph_for_length(pattern, length, slices=slices) for length in lengths}


def _pattern(
    converted: Callable[[int], Graph], longest: int, weights: Mapping[str, torch.Tensor]
) -> Pattern:
    """How the graph depends on the length, from one conversion where that will do.

    Graphs of ``architectures`` hold no value worked out from the length.
    """
    with contextlib.suppress(CannotLearnError):
        length = unmistakable(longest)
        tables = (weight.detach().numpy() for weight in weights.values())
        return read_lengths(converted(length), length, longest, tables)
    shorter = longest // 2
    return learn_lengths(converted(shorter), converted(longest), shorter, longest)


def _samples(model: Model, length: int) -> tuple[torch.Tensor, ...]:
    """An example of each input, one row: text of ``length`` tokens; 32-bit numbers throughout."""
    import torch

    if isinstance(model.preprocessor, TextReader):
        return tuple(torch.ones(1, length, dtype=torch.int32) for _ in model.inputs)
    if isinstance(model.preprocessor, ImagePreprocessor):
        picture = model.preprocessor
        return (torch.zeros(1, picture.channels, picture.height, picture.width),)
    narrow = {torch.int64: torch.int32, torch.float64: torch.float32}
    example = (model.example or {}).values()
    return tuple(tensor.to(narrow.get(tensor.dtype, tensor.dtype)) for tensor in example)


def _check_float32(program: Program, source: Path) -> None:
    mend = "give the float32 file that it was made of"
    for graph in program.graphs:
        for tensor in graph.tensors():
            if (
                tensor.fields.quantization is not None
                and tensor.fields.quantization.scale is not None
            ):
                raise ModelError(f"{source} is quantized already: see {tensor.name}; {mend}")
            if tensor.data is not None and type_name(tensor.type) == "float16":
                raise ModelError(f"{source} is in half precision: see {tensor.name}; {mend}")
