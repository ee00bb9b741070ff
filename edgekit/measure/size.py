"""Bytes per dtype of a file, and the guard that a quantized file is what it says."""

from edgekit.artifact import Artifact
from edgekit.contents import Contents
from edgekit.errors import ProofError

_DTYPES = {"int8-dynamic": "int8", "fp16": "float16"}
# Float matrices that may stay, as a share of the narrow bytes: position rows, mostly.
_SHARE = 0.25
# Below this a float matrix is nobody's forgotten weight.
_SMALL = 2**18


def check_scheme(artifact: Artifact, contents: Contents) -> None:
    """Raise ProofError when the file does not hold the weights that its scheme promises."""
    if artifact.scheme not in _DTYPES:
        return
    dtype = _DTYPES[artifact.scheme]
    narrow = contents.bytes_per_dtype().get(dtype, 0)
    wide = sum(
        tensor.bytes
        for tensor in contents.tensors
        if tensor.dtype == "float32" and tensor.bytes >= _SMALL and _is_matrix(tensor.shape)
    )
    if narrow == 0 or wide > _SHARE * narrow:
        raise ProofError(
            f"{artifact.path.name} is called {artifact.scheme} but holds {wide} bytes of float32 "
            f"matrices beside {narrow} bytes of {dtype}; `edgekit inspect` lists its largest "
            "tensors"
        )


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Two dimensions or more that are not 1: scales and biases are vectors in any shape."""
    return sum(size != 1 for size in shape) >= 2
