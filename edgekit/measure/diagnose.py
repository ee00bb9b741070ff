"""When a file strays from the original: which stage left first."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import EdgekitError
from edgekit.filemodel import FileModel
from edgekit.measure.expected import per_answer
from edgekit.measure.parity import TOLERANCE, compare
from edgekit.preprocess import Encoded

if TYPE_CHECKING:
    from edgekit.model import Model

_ROWS = 64


def first_divergence(model: "Model | FileModel", encoded: Encoded, artifact: Artifact) -> str:
    """Name of the first stage whose outputs leave the fp32 ``model``'s beyond rounding.

    The stages are the clean forward that is exported, the float file, and the scheme.
    """
    if isinstance(model, FileModel):
        return f"the {artifact.scheme} quantization"
    import torch

    from edgekit.export import export_artifact
    from edgekit.model import export_forward, reference_outputs

    rows = encoded.rows(np.arange(min(_ROWS, len(encoded))))
    reference = per_answer(reference_outputs(model, rows), rows)
    limit = TOLERANCE["fp32"]

    def off(outputs: npt.NDArray[np.float32]) -> bool:
        found = compare(
            per_answer(outputs, rows), reference, task=model.task, problem=model.problem
        )
        return not found.error <= limit

    with torch.inference_mode():
        tensors = [torch.from_numpy(rows.arrays[t.name]) for t in artifact.inputs]
        if off(export_forward(model)(*tensors).numpy()):
            return "the forward that is exported"
    if artifact.scheme == "fp32":
        return f"the {artifact.format} file"
    with tempfile.TemporaryDirectory(prefix="edgekit-diagnose-") as name:
        try:
            wide = export_artifact(model, Path(name), artifact.format, "fp32", artifact.lengths)
            result = run_agent(wide, rows, [Pass("rows", "outputs")], threads=1)
        except EdgekitError as error:
            return f"the fp32 {artifact.format} file ({error})"
    if off(result["passes"]["rows"]["outputs"]):
        return f"the fp32 {artifact.format} file"
    return f"the {artifact.scheme} quantization"
