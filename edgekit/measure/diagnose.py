"""When a file strays from the original: which stage left first."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.artifact import Artifact
from edgekit.devices.host import Pass, run_agent
from edgekit.errors import EdgekitError
from edgekit.measure.parity import TOLERANCE, compare
from edgekit.measure.proof import Expected, per_answer
from edgekit.preprocess import Encoded

if TYPE_CHECKING:
    from edgekit.model import Model

_ROWS = 64


def first_divergence(
    model: "Model", encoded: Encoded, expected: Expected, artifact: Artifact
) -> str:
    """Name of the first stage whose outputs are off by more than fp32 rounding allows.

    ``model`` is the model after its steps. The stages are the steps, the forward that is
    exported, the float file, and the quantized file.
    """
    import torch

    from edgekit.export import export_artifact
    from edgekit.model import export_forward, reference_outputs

    rows = encoded.rows(np.arange(min(_ROWS, len(encoded))))
    reference = expected.outputs[: _answers(rows)]

    def off(outputs: np.ndarray, limit: float) -> bool:  # type: ignore[type-arg]
        found = compare(
            per_answer(outputs, rows), reference, task=expected.task, problem=expected.problem
        )
        return not found.error <= limit

    limit = TOLERANCE["fp32"]
    if off(reference_outputs(model, rows), limit):
        return "the steps on the model"
    with torch.inference_mode():
        tensors = [torch.from_numpy(rows.arrays[t.name]) for t in artifact.inputs]
        answers = export_forward(model)(*tensors).numpy()
    if off(answers, limit):
        return "the forward that is exported"
    if artifact.scheme == "fp32":
        return f"the {artifact.format} file"
    with tempfile.TemporaryDirectory(prefix="edgekit-diagnose-") as name:
        try:
            wide = export_artifact(model, Path(name), artifact.format, "fp32", artifact.lengths)
            result = run_agent(wide, rows, [Pass("rows", "outputs")], threads=1)
        except EdgekitError as error:
            return f"the fp32 {artifact.format} file ({error})"
    if off(result["passes"]["rows"]["outputs"], limit):
        return f"the fp32 {artifact.format} file"
    return f"the {artifact.scheme} quantization"


def _answers(encoded: Encoded) -> int:
    """How many answers the rows have: one each, or one per word."""
    if encoded.word_starts is None:
        return len(encoded)
    return sum(len(starts) for starts in encoded.word_starts)
