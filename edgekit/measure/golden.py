"""Golden rows: inputs and the answers that the file gave, for tests inside an app."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import Artifact, Scheme
from edgekit.data import Rows
from edgekit.preprocess import Encoded

_COUNT = 16
# Share of the outputs' largest absolute value. int8 kernels round differently on different
# instruction sets; arm64 against x86-64 stayed within 0.073 absolute at outputs of about 10. The
# 4-bit kernel of tflite-runtime 2.14 is 0.045 away from XNNPACK's.
_TOLERANCE: dict[Scheme, float] = {
    "fp32": 1e-3,
    "fp16": 1e-2,
    "int8-dynamic": 0.05,
    "int8-weights": 1e-3,
    "int4-weights": 0.1,
    "int4-all": 0.1,
    "int2-weights": 0.1,
    "int8-static": 0.15,
    "int16x8": 0.02,
}


def pick_rows(encoded: Encoded, count: int = _COUNT) -> list[int]:
    """At most ``count`` rows, evenly spread over the true lengths (or over the rows)."""
    order = np.arange(len(encoded))
    if encoded.lengths is not None:
        order = np.argsort(encoded.lengths, kind="stable")
    picks = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
    return [int(row) for row in order[picks]]


def golden_rows(
    encoded: Encoded,
    rows: Rows,
    picked: Sequence[int],
    artifact: Artifact,
    outputs: npt.NDArray[np.float32],
) -> dict[str, Any]:
    """The picked rows with the file's ``outputs`` for them, as ``golden.json`` holds them."""
    found = []
    for position, index in enumerate(picked):
        length = None if encoded.lengths is None else int(encoded.lengths[index])
        row: dict[str, Any] = {
            "inputs": {
                name: array[index][:length].tolist() for name, array in encoded.arrays.items()
            },
            "outputs": {artifact.path.name: _round(_true_tokens(outputs[position], length))},
        }
        if rows.texts is not None and index < len(rows.texts):
            row["text"] = rows.texts[index]
            if rows.pairs is not None:
                row["text_pair"] = rows.pairs[index]
        if rows.words is not None:
            row["words"] = list(rows.words[index])
        found.append(row)
    return {
        "tolerance": {artifact.path.name: _TOLERANCE[artifact.scheme]},
        "rows": found,
    }


def _true_tokens(answer: npt.NDArray[np.float32], length: int | None) -> npt.NDArray[np.float32]:
    return answer[:length] if answer.ndim == 2 and length is not None else answer


def _round(answer: npt.NDArray[np.float32]) -> Any:
    """Six significant digits: more is noise, and the file stays small."""
    return json.loads(
        json.dumps(answer.astype(float).tolist()), parse_float=lambda t: float(f"{float(t):.6g}")
    )
