"""What writes a file: a model in, one file in one format out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.artifact import Artifact, Format, Scheme

if TYPE_CHECKING:
    from edgekit.model import Model


def export_artifact(
    model: "Model", folder: Path, format: Format, scheme: Scheme, lengths: Sequence[int] = ()
) -> Artifact:
    """Write the model into ``folder`` in one format; ``lengths`` are the buckets of TFLite.

    Raises ExportError when the format cannot hold the model.
    """
    if format == "onnx":
        from edgekit.export.onnx import export_onnx

        return export_onnx(model, folder, scheme=scheme)
    if format == "tflite":
        from edgekit.export.tflite import export_tflite

        return export_tflite(model, folder, scheme=scheme, lengths=lengths)
    from edgekit.export.torchscript import export_torchscript

    return export_torchscript(model, folder, scheme=scheme)
