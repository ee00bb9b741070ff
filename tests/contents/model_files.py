"""Small model files of each format, made without an exporter."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYER = "bert.encoder.layer.{}."


def onnx_stack(path: Path, layers: int = 2, width: int = 16, rows: int = 20, seed: int = 0) -> Path:
    """A table, layers of two products each, and a classifier, named like BERT's."""
    random = np.random.default_rng(seed)
    constants = {"bert.embeddings.word_embeddings.weight": (rows, width)}
    nodes = [helper.make_node("Gather", [*constants, "input_ids"], ["embedded"])]
    state = "embedded"
    for layer in range(layers):
        for part in ("attention.self.query", "intermediate.dense"):
            weight = f"{LAYER.format(layer)}{part}.weight"
            constants[weight] = (width, width)
            made = f"{part.partition('.')[0]}_{layer}"
            nodes.append(helper.make_node("MatMul", [state, weight], [made], name=made))
            state = made
    constants["classifier.weight"] = (width, 3)
    nodes.append(helper.make_node("MatMul", [state, "classifier.weight"], ["scores"]))
    nodes.append(helper.make_node("Add", ["scores", "classifier.bias"], ["logits"]))
    stored = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name)
        for name, shape in (constants | {"classifier.bias": (3,)}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "stack",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 3])],
        stored,
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


def tflite_product(path: Path, width: int = 16, seed: int = 0) -> Path:
    """One FULLY_CONNECTED with a bias, and a second one with the very same weight again."""
    from edgekit.export.tflite_file import write_program
    from edgekit.export.tflite_graph import Graph, Program, Tensor, constant, operator

    random = np.random.default_rng(seed)
    matrix = random.normal(size=(width, width)).astype(np.float32)
    weight = constant("bert.encoder.layer.0.intermediate.dense.weight", matrix)
    bias = constant("bert.encoder.layer.0.intermediate.dense.bias", matrix[0])
    states = [Tensor(name, 0, (1, width)) for name in ("x", "state", "y")]
    operators = [
        operator("FULLY_CONNECTED", [states[0], weight, bias], [states[1]]),
        operator("FULLY_CONNECTED", [states[1], weight, bias], [states[2]]),
    ]
    graph = Graph([states[0]], [states[2]], operators)
    write_program(Program([graph], [], {"note": b"made by hand"}, "small"), path)
    return path


def torchscript_product(path: Path, quantized: bool = False) -> Path:
    import torch

    torch.manual_seed(0)
    module: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(16, 12), torch.nn.ReLU())
    if quantized:
        from torch.ao.quantization import quantize_dynamic

        module = quantize_dynamic(module, dtype=torch.qint8)
    traced = torch.jit.trace(module.eval(), torch.ones(2, 16))
    traced.save(str(path))  # type: ignore[no-untyped-call]
    return path
