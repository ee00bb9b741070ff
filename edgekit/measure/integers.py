"""Whether a file holds the very integers that were trained or rounded, tensor by tensor.

Rules:

1. Each weight's integers and scales come from the model and the grid; the file's are read back
   from its bytes. Both must be equal: the integers bit for bit, the scales to float32 rounding.
2. A weight is found by its name, or where a converter renamed it by its content, in any layout
   that a format has for it. A converter may fold a constant factor into a weight; then its scales
   are the expected ones times one number.
3. For static schemes every product's weight of the traced model must be there, and each table,
   or its first rows where the file has no use for more; a table that a converter merged into
   something else is named in the record. For other schemes those weights that the file calls by
   their names are held against the model; a file without names proves nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.artifact import MATRIX_BITS, STATIC, Artifact
from edgekit.contents.integers import StoredIntegers, read_integers
from edgekit.errors import ProofError
from edgekit.export.onnx_weights import BLOCK
from edgekit.export.packing import table_bits
from edgekit.export.tflite_weights import matrix_bits
from edgekit.steps.quantize.grid import quantize

if TYPE_CHECKING:
    from edgekit.model import Model

Array = np.ndarray[Any, Any]
Expected = Mapping[str, tuple[Array, Array]]

_SCALES = 2e-6  # a few roundings of float32
_WEIGHTS = ("int8-dynamic", "int8-weights", *MATRIX_BITS)


def check_integers(artifact: Artifact, model: "Model", bits: int = 8) -> dict[str, Any] | None:
    """How many tensors were held against the model, how many numbers they have, what is merged.

    bits: of ONNX weights in ``int8-dynamic`` (``Target.weight_bits``).

    ``None`` for schemes and formats that this is not for. Raises ProofError, naming the tensor,
    when one is not what it should be.
    """
    if artifact.format == "torchscript":
        return None
    if artifact.scheme in STATIC:
        from edgekit.steps.quantize.static import integer_weights, traced

        return _hold(artifact.path, integer_weights(traced(model)), complete=True)
    if artifact.scheme in _WEIGHTS:
        return _hold(artifact.path, _rounded(artifact, model, bits), complete=False)
    return None


def _rounded(artifact: Artifact, model: "Model", bits: int) -> Expected:
    """Every product's weight and every table, a scale a row or a block of a row."""
    from torch import nn

    onnx, scheme = artifact.format == "onnx", artifact.scheme

    def of_product(weight: Array) -> tuple[Array, Array]:
        if onnx and scheme in MATRIX_BITS:
            return quantize(weight, MATRIX_BITS[scheme], block=BLOCK)
        if onnx:
            return quantize(weight, bits if scheme == "int8-dynamic" else 8)
        return quantize(weight, matrix_bits(scheme, weight.shape))

    return {
        f"{name}.weight": of_product(weight)
        if isinstance(part, nn.Linear)
        else quantize(weight, table_bits(scheme, weight.shape))
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear | nn.Embedding)
        for weight in [part.weight.detach().numpy()]
    }


def _hold(path: Path, expected: Expected, *, complete: bool) -> dict[str, Any]:
    found = read_integers(path)
    by_name = {each.name: each for each in found}
    by_content = {each.values.tobytes(): each for each in found}
    tensors = numbers = 0
    merged = []
    for name, (integers, scales) in expected.items():
        stored = by_name.get(name)
        if stored is None and complete:
            known = (by_content.get(layout.tobytes()) for layout in _layouts(integers))
            stored = next((each for each in known if each is not None), None)
        table = len(scales) == 1 and (integers.shape[0] > 1 or integers.ndim == 3)
        if complete and table and (stored is None or stored.values.size != integers.size):
            rows = _first_rows(found, integers)
            if rows is None:
                merged.append(name)
                continue
            stored = rows
            integers = integers.reshape(-1, integers.shape[-1])
            integers = integers[: rows.values.size // integers.shape[-1]]
        if stored is not None and 2 * stored.values.size == integers.size:
            stored = stored.in_halves()
        if stored is None:
            if complete:
                raise ProofError(
                    f"{path.name} does not hold the integers of {name}; this is a bug of "
                    "edgekit, please report it"
                )
            continue
        _equal(path, name, stored, integers, scales)
        tensors += 1
        numbers += integers.size
    return {"tensors": tensors, "numbers": numbers, "merged": merged}


def _layouts(integers: Array) -> list[Array]:
    """The ways in which formats hold a weight: as it is, transposed, a filter's channels last."""
    orders = [tuple(range(integers.ndim)), tuple(range(integers.ndim))[::-1]]
    if integers.ndim == 4:
        orders += [(0, 2, 3, 1), (1, 2, 3, 0)]
    return [np.ascontiguousarray(integers.transpose(order)) for order in orders]


def _first_rows(found: list[StoredIntegers], table: Array) -> StoredIntegers | None:
    """What of the file holds a table's first rows, whatever it is called."""
    flat = table.reshape(-1)
    for each in found:
        size = each.values.size
        whole = size % table.shape[-1] == 0 and size <= flat.size
        if whole and np.array_equal(each.values.reshape(-1), flat[:size]):
            return each
    return None


def _equal(path: Path, name: str, stored: StoredIntegers, integers: Array, scales: Array) -> None:
    flat = stored.values.reshape(-1)
    differing = [
        int((flat != layout.reshape(-1)).sum()) if flat.size == layout.size else flat.size
        for layout in _layouts(integers)
    ]
    if min(differing):
        count = min(differing)
        raise ProofError(
            f"{path.name}: {count} integers of {name} differ from the model's; this is a bug of "
            "edgekit, please report it"
        )
    if stored.scales is None or stored.scales.size != scales.size:
        return
    ratios = stored.scales.astype(np.float64) / scales.astype(np.float64).reshape(-1)
    if np.ptp(ratios) > _SCALES * ratios.mean():
        raise ProofError(
            f"{path.name}: the scales of {name} are not the model's; this is a bug of edgekit, "
            "please report it"
        )
