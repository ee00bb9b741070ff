"""How near a file comes to what its runtime can do: its multiply-accumulates per second beside
those of a single large product of matrices.

The product has the sizes of the model's widest layer, 128 rows, and is written by the same
exporter in the same scheme and run by the same agent, so that it goes through the same kernels on
the same threads. It keeps its weights near and does nothing else: more than it does no file
of that scheme can be expected to do. Williams, Waterman and Patterson, Roofline, CACM 52 (2009).
"""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact, Scheme
from edgekit.contents.graph import Operator, Value, origins
from edgekit.contents.operators import read_graph
from edgekit.devices.device import Device
from edgekit.devices.host import HOST
from edgekit.devices.run import Pass, run_agent
from edgekit.preprocess import Encoded

_ROWS = 128
_LARGEST = 4096  # of a side of the matrix; larger ones show nothing new and take long


def measure_peak(
    artifact: Artifact,
    *,
    threads: int,
    device: Device = HOST,
    seconds: float = 1.0,
) -> dict[str, Any] | None:
    """Multiply-accumulates per second of one large product, in the file's scheme and in float32.

    ``sizes``: rows, inner and outer size of the product; ``macs_per_second``: by scheme. None
    for TorchScript and for a file without products. seconds: how long each is sampled. Raises
    DeviceError as ``run_agent``, ModelError when the file is damaged.
    """
    sizes = widest_layer(artifact.path)
    if sizes is None:
        return None
    inner, outer = (min(size, _LARGEST) for size in sizes)
    schemes: tuple[Scheme, ...] = tuple(dict.fromkeys(("fp32", artifact.scheme)))
    found = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-peak-") as folder:
        for scheme in schemes:
            product = _product(Path(folder) / scheme, artifact, scheme, inner, outer)
            rows = Encoded({"x": np.ones((1, _ROWS, inner), np.float32)}, None)
            step = Pass("latency", "latency", [0], seconds=seconds)
            result = run_agent(product, rows, [step], threads=threads, device=device)
            samples = result["passes"]["latency"]["samples"]
            found[scheme] = _ROWS * inner * outer / float(np.median(samples))
    return {"sizes": [_ROWS, inner, outer], "macs_per_second": found}


def roofline(
    macs: int | None, seconds: float, peak: Mapping[str, Any] | None, scheme: Scheme
) -> dict[str, Any]:
    """``macs_per_second`` of an inference that takes ``seconds``, the ``peak`` of its scheme, and
    the ``share`` of the peak; none where one is not known.

    The seconds must be those of the length that the ``macs`` are of.
    """
    reached = None if macs is None else macs / seconds
    possible = None if peak is None else peak["macs_per_second"].get(scheme)
    share = None if reached is None or possible is None else reached / possible
    return {"macs_per_second": reached, "peak": possible, "share": share}


def widest_layer(path: Path) -> tuple[int, int] | None:
    """Inner and outer size of the largest weight that a file multiplies by.

    A filter counts as the matrix that it is to each pixel. Raises ModelError.
    """
    graph = read_graph(path, None)
    if graph is None:
        return None
    weights = origins(graph)
    found = [sizes for op in graph.operators if (sizes := _matrix(op, weights)) is not None]
    return max(found, key=lambda sizes: sizes[0] * sizes[1], default=None)


def _matrix(op: Operator, weights: Mapping[int, Value]) -> tuple[int, int] | None:
    if op.macs == 0:
        return None
    stored = [weights[id(value)].shape for value in op.inputs if id(value) in weights]
    shapes = [shape for shape in stored if shape and len(shape) > 1 and all(shape)]
    if not shapes:
        return None
    first, *rest = shapes[0]
    if op.kind.startswith("MatMul"):  # ONNX keeps a column for each output, all others a row
        return math.prod(shapes[0][:-1]), shapes[0][-1]
    return math.prod(rest), first


def _product(folder: Path, like: Artifact, scheme: Scheme, inner: int, outer: int) -> Artifact:
    """One product of matrices as a file of the same format, in a scheme."""
    weight = np.random.default_rng(0).standard_normal((inner, outer), np.float32)
    folder.mkdir()
    if like.format == "onnx":
        from edgekit.export.onnx import quantize_onnx_file

        source = folder / "product.onnx"
        _write_onnx(source, weight)
        return quantize_onnx_file(source, folder, scheme=scheme)
    from edgekit.export.tflite import quantize_tflite_file

    source = folder / "product.tflite"
    _write_tflite(source, weight)
    return quantize_tflite_file(source, folder, scheme=scheme)


def _write_onnx(path: Path, weight: Any) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    inner, outer = weight.shape
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _ROWS, size])
        for name, size in (("x", inner), ("y", outer))
    ]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    stored = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], stored)
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def _write_tflite(path: Path, weight: Any) -> None:
    from edgekit.export.tflite_file import write_program
    from edgekit.export.tflite_graph import (
        Graph,
        Program,
        Signature,
        Tensor,
        constant,
        operator,
        schema,
    )

    inner, outer = weight.shape
    kind = schema().TensorType.FLOAT32
    given, made = Tensor("x", kind, (1, _ROWS, inner)), Tensor("y", kind, (1, _ROWS, outer))
    options = schema().FullyConnectedOptionsT()
    options.keepNumDims = True
    stored = constant("w", np.ascontiguousarray(weight.T))
    op = operator("FULLY_CONNECTED", [given, stored, None], [made], version=5, options=options)
    graph = Graph([given], [made], [op])
    signature = Signature("serving_default", graph, {"x": given}, {"y": made})
    write_program(Program([graph], [signature]), path)
