"""Bytes per dtype of a file, and the guard that a quantized file is what it says."""

from edgekit.artifact import Artifact
from edgekit.errors import ProofError
from edgekit.inspect import Contents

# The dtype that must hold a scheme's weights, and how many bytes of fp32 constants may remain
# beside it (norms, biases, scales, position rows).
_WEIGHTS = {"int8-dynamic": ("int8", 0.35), "fp16": ("float16", 0.1)}


def check_scheme(artifact: Artifact, contents: Contents) -> None:
    """Raise ProofError when the file does not hold the weights that its scheme promises."""
    if artifact.scheme not in _WEIGHTS:
        return
    dtype, share = _WEIGHTS[artifact.scheme]
    found = contents.bytes_per_dtype()
    small, wide = found.get(dtype, 0), found.get("float32", 0)
    if small == 0 or wide > share * (small + wide):
        raise ProofError(
            f"{artifact.path.name} is called {artifact.scheme} but holds {wide} bytes of float32 "
            f"beside {small} bytes of {dtype}; `edgekit inspect` lists its largest tensors"
        )
