"""Why an older runtime refuses a file: which operator, of which version, in which layer."""

import re
from pathlib import Path

from edgekit.artifact import Artifact

_TFLITE = re.compile(r"op for builtin opcode '(\w+)' version '(\d+)'")
_ONNX = (
    re.compile(r"implementation for (\w+)\((\d+)\)"),
    re.compile(r"No Op registered for (\w+) with domain_version of (\d+)"),
    re.compile(r"(opset) (\d+)", re.IGNORECASE),
    re.compile(r"model (IR) version: (\d+)"),
)


def refusal(artifact: Artifact, message: str) -> str | None:
    """A sentence where ``message``, of a runtime, says that the file is too new for it."""
    if artifact.format == "tflite":
        found = _TFLITE.search(message)
        if found is not None:
            where = _tflite_layer(artifact.path, found[1], int(found[2]))
            return _sentence(artifact, f"{found[1]} version {found[2]}", where)
    if artifact.format == "onnx":
        for pattern in _ONNX:
            found = pattern.search(message)
            if found is not None:
                needs = f"{found[1]} version {found[2]}"
                return _sentence(artifact, needs, _onnx_layer(artifact.path, found[1]))
    return None


def _sentence(artifact: Artifact, needs: str, where: str | None) -> str:
    place = f" (first at {where})" if where else ""
    return (
        f"{artifact.path.name} needs {needs}{place}, which this runtime does not know; ship a "
        "newer one, or build for a target that promises an older one"
    )


def _tflite_layer(path: Path, kernel: str, version: int) -> str | None:
    from edgekit.export.tflite_file import read_program

    for graph in read_program(path.read_bytes(), path.name).graphs:
        for op in graph.operators:
            if (op.kernel.name, op.kernel.version) == (kernel, version):
                weights = [t for t in op.inputs if t is not None and t.data is not None]
                return (weights or op.outputs)[0].name
    return None


def _onnx_layer(path: Path, kind: str) -> str | None:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == kind:
            weights = [name for name in node.input if name in stored]
            return str((weights or list(node.output))[0])
    return None
