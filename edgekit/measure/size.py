"""Bytes of a file: per dtype with the guard that it is what it says, and in a download."""

import math
import zlib
from pathlib import Path

from edgekit.artifact import Artifact, Scheme
from edgekit.contents import Contents
from edgekit.contents.graph import multiplied
from edgekit.contents.operators import read_graph
from edgekit.errors import ProofError

# What each scheme stores its weights as: matrices as the first, tables and filters as the last.
_DTYPES: dict[Scheme, tuple[str, ...]] = {
    "fp16": ("float16",),
    "int8-dynamic": ("int8",),
    "int8-weights": ("int8",),
    "int8-static": ("int8",),
    "int16x8": ("int8",),
    "int4-weights": ("int4", "int8"),
    "int4-all": ("int4", "int8"),
    "int2-weights": ("int2", "int8"),
}
# Wider matrices that may stay, as a share of the narrow bytes: position rows, mostly.
_SHARE = 0.25
# Numbers below which a wide matrix is nobody's forgotten weight.
_SMALL = 2**16


def check_scheme(artifact: Artifact, contents: Contents) -> None:
    """Raise ProofError when the file does not hold the weights that its scheme promises."""
    dtypes = _DTYPES.get(artifact.scheme)
    if dtypes is None:
        return
    stored = contents.bytes_per_dtype()
    _refuse_wider(artifact, contents, "float32", {dtype: stored.get(dtype, 0) for dtype in dtypes})
    if len(dtypes) > 1:
        matrix, other = dtypes
        graph = read_graph(artifact.path, None)
        names = None if graph is None else set(multiplied(graph))
        _refuse_wider(artifact, contents, other, {matrix: stored.get(matrix, 0)}, names)


def deflated_bytes(content: bytes | Path) -> int:
    """Bytes as app stores and web servers send them: deflated at zlib's usual level, 6."""
    data = content.read_bytes() if isinstance(content, Path) else content
    return len(zlib.compress(data, 6))


def _refuse_wider(
    artifact: Artifact,
    contents: Contents,
    dtype: str,
    narrow: dict[str, int],
    names: set[str] | None = None,
) -> None:
    """Refuse a file with many matrices of a dtype beside its narrow bytes, by their dtypes.

    names: which matrices to count; all, when none are given.
    """
    wide = sum(
        tensor.bytes
        for tensor in contents.tensors
        if tensor.dtype == dtype
        and _is_large_matrix(tensor.shape)
        and (names is None or tensor.name in names)
    )
    total = sum(narrow.values())
    if total == 0 or wide > _SHARE * total:
        raise ProofError(
            f"{artifact.path.name} is called {artifact.scheme} but holds {wide} bytes of {dtype} "
            f"matrices beside {total} bytes of {' and '.join(narrow)}; `edgekit inspect` lists its "
            "largest tensors"
        )


def _is_large_matrix(shape: tuple[int, ...]) -> bool:
    """Two dimensions or more that are not 1: scales and biases are vectors in any shape."""
    return math.prod(shape) >= _SMALL and sum(size != 1 for size in shape) >= 2
