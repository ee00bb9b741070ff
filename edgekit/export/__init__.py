"""What writes a file: a model in, one file in one format out."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import SUFFIXES, Artifact, Format, Scheme
from edgekit.errors import ModelError
from edgekit.filemodel import FileModel

if TYPE_CHECKING:
    from edgekit.model import Model


def export_artifact(
    model: "Model | FileModel",
    folder: Path,
    format: Format,
    scheme: Scheme,
    lengths: Sequence[int] = (),
    any_length: bool = False,
    beside: Path | None = None,
    bits: int = 8,
    integer_ends: bool = False,
) -> Artifact:
    """Write the model into ``folder`` in one format.

    lengths: the buckets of TFLite. any_length: one TFLite signature for any length instead,
    where the graph allows it. beside: a folder that takes the same graphs in float32 as well,
    where the format's writer has them at hand (ONNX and TFLite of a checkpoint). bits: of ONNX's
    int8 weights, 7 for CPUs that saturate (``Target.weight_bits``). integer_ends: a static TFLite
    file takes and gives integers. Raises ExportError when the format cannot hold the model,
    ModelError for an exported file that cannot be brought to the scheme.
    """
    if isinstance(model, FileModel):
        return _rewrite(model, folder, scheme, bits)
    if format == "onnx":
        from edgekit.export.onnx import export_onnx

        return export_onnx(model, folder, scheme=scheme, beside=beside, bits=bits)
    if format == "tflite":
        from edgekit.export.tflite import export_tflite

        return export_tflite(
            model,
            folder,
            scheme=scheme,
            lengths=lengths,
            any_length=any_length,
            beside=beside,
            integer_ends=integer_ends,
        )
    from edgekit.export.torchscript import export_torchscript

    return export_torchscript(model, folder, scheme=scheme)


def _rewrite(model: FileModel, folder: Path, scheme: Scheme, bits: int) -> Artifact:
    """An exported file in the scheme; a TorchScript file as it is, for it cannot be edited."""
    source = model.artifact
    if source.format == "onnx":
        from edgekit.export.onnx import quantize_onnx_file

        written = quantize_onnx_file(source.path, folder, scheme=scheme, bits=bits)
    elif source.format == "tflite":
        from edgekit.export.tflite import quantize_tflite_file

        written = quantize_tflite_file(source.path, folder, scheme=scheme)
    elif scheme == "fp32":
        path = folder / f"model{SUFFIXES['torchscript']}"
        shutil.copyfile(source.path, path)
        written = replace(source, path=path)
    else:
        raise ModelError(
            f"{source.path} is TorchScript, which cannot be brought to {scheme}; give its "
            "checkpoint, or --scheme fp32"
        )
    return replace(written, lengths=source.lengths)
