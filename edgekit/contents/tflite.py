"""What is inside a TFLite file."""

from pathlib import Path

from edgekit.contents import Contents, StoredTensor
from edgekit.errors import ModelError
from edgekit.export.tflite_file import read_program
from edgekit.export.tflite_graph import describe, type_name


def read_tflite(path: Path) -> Contents:
    """Read a TFLite file; inputs and outputs are those of its signatures, where it has any.

    Raises ModelError when the file is missing, damaged or no TFLite file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; give a model file") from error
    program = read_program(content, str(path))
    inputs, outputs = describe(program)
    ops: dict[str, int] = {}
    stored: dict[int, StoredTensor] = {}
    for graph in program.graphs:
        for op in graph.operators:
            ops[op.kernel.name] = ops.get(op.kernel.name, 0) + 1
        for tensor in graph.tensors():
            if tensor.data is not None:
                # Tensors that share a buffer hold the same array.
                kind = type_name(tensor.type)
                found = StoredTensor(tensor.name, kind, tensor.shape, tensor.data.nbytes)
                stored.setdefault(id(tensor.data), found)
    return Contents(
        format="tflite",
        bytes=len(content),
        inputs=inputs,
        outputs=outputs,
        signatures=tuple(signature.key for signature in program.signatures),
        ops=ops,
        tensors=tuple(stored.values()),
    )
