"""Files with fewer than 8 bits: what they hold, taken apart by code that did not pack it."""

import collections
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgekit.artifact import Format, Scheme
from edgekit.contents import read_contents
from edgekit.errors import ProofError
from edgekit.export import export_artifact
from edgekit.export.packing import pack_bits, pack_rows
from edgekit.measure.integers import check_integers
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.steps.quantize.grid import dequantize, quantize
from tests.export.test_onnx import run
from tests.export.test_tflite import (
    KNOWN_TO_2_14,
    encoded,
    operator_versions,
    raw_model,
    run_all,
)
from tests.tiny import tiny_checkpoint

Array = np.ndarray[Any, Any]
PACKED = {17: 4, 19: 2}  # TFLite's INT4 and INT2
INT8 = 9
WORDS = 1100


@pytest.fixture(scope="module")
def bert() -> Model:
    """Its word table is large enough for 4 bits, its table of positions is not."""
    folder = Path(tempfile.mkdtemp())
    sizes = {"hidden_size": 64, "intermediate_size": 96}
    model = load_model(identify(str(tiny_checkpoint(folder, "bert", **sizes))))
    words = model.module.base_model.embeddings.word_embeddings
    more = torch.randn(WORDS - len(words.weight), 64, generator=torch.Generator().manual_seed(0))
    words.weight = torch.nn.Parameter(torch.cat([words.weight.detach(), more]))
    words.num_embeddings = WORDS
    return model


def numbers(data: Array, bits: int) -> Array:
    """The signed numbers in bytes, the lowest bits first."""
    bytes_ = np.unpackbits(data.view(np.uint8).reshape(-1, 1), axis=1, bitorder="little")
    return bytes_.reshape(-1, bits).astype(int) @ (2 ** np.arange(bits))


def signed(each: Array, bits: int) -> Array:
    return np.where(each >= 2 ** (bits - 1), each - 2**bits, each)


def matrices(path: Path) -> list[tuple[Array, Array]]:
    """Integers [outputs, inputs] and scales of every matrix of 4 or 2 bits in a file."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        found = []
        for node in graph.node:
            if node.op_type == "MatMulNBits":
                options = {e.name: helper.get_attribute_value(e) for e in node.attribute}
                bits, rows, columns = (options[name] for name in ("bits", "N", "K"))
                each = numbers(stored[node.input[1]], bits).reshape(rows, -1)
                integers = each[:, :columns] - 2 ** (bits - 1)
                found.append((integers, stored[node.input[2]].reshape(rows, -1)))
        return found
    model = raw_model(path)
    found = []
    for tensor in model.subgraphs[0].tensors:
        if tensor.type in PACKED:
            bits = PACKED[tensor.type]
            data = np.asarray(model.buffers[tensor.buffer].data, np.uint8)
            integers = signed(numbers(data, bits), bits).reshape(tensor.shape)
            found.append((integers, tensor.quantization.scale.reshape(-1, 1)))
    return found


def largest_matrix(path: Path) -> bytes:
    """The bytes of the file's largest matrix of 4 or 2 bits."""
    if path.suffix == ".onnx":
        packed = [t.raw_data for t in onnx.load(path).graph.initializer if t.data_type == 2]
    else:
        model = raw_model(path)
        packed = [
            bytes(model.buffers[t.buffer].data)
            for t in model.subgraphs[0].tensors
            if t.type in PACKED
        ]
    return max(packed, key=len)


def word_bytes(path: Path) -> Array:
    """The int8 constant with a row for each word."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        arrays = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == 3]
    else:
        model = raw_model(path)
        arrays = [
            np.asarray(model.buffers[t.buffer].data, np.uint8).view(np.int8).reshape(t.shape)
            for t in model.subgraphs[0].tensors
            if t.type == INT8 and model.buffers[t.buffer].data is not None
        ]
    (found,) = (array for array in arrays if len(array) == WORDS)
    return found


@given(st.lists(st.integers(0, 15), max_size=9), st.sampled_from([4, 2]))
def test_packed_numbers_come_back(values: list[int], bits: int) -> None:
    packed = pack_bits(np.array(values, np.uint8) % 2**bits, bits)
    assert len(packed) == -(-len(values) * bits // 8)
    assert numbers(packed, bits)[: len(values)].tolist() == [v % 2**bits for v in values]


@given(st.integers(-7, 7), st.integers(-7, 7))
def test_float_arithmetic_takes_a_byte_apart(first: int, second: int) -> None:
    packed = np.float32(pack_rows(np.array([[first, second]], np.int8))[0, 0])
    quotient = np.rint(packed / np.float32(16))
    assert (packed - 16 * quotient, quotient) == (first, second)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite"])
@pytest.mark.parametrize(("scheme", "bits"), [("int4-all", 4), ("int2-weights", 2)])
def test_a_file_holds_the_grids_integers_and_answers_by_them(
    scheme: Scheme, bits: int, format: Format, bert: Model, tmp_path: Path
) -> None:
    made = export_artifact(bert, tmp_path, format, scheme, any_length=format == "tflite")
    block = 32 if format == "onnx" else None
    rounded = copy.deepcopy(bert)
    expected: collections.Counter[bytes] = collections.Counter()
    scales: dict[bytes, Array] = {}
    for module in rounded.module.modules():
        if isinstance(module, torch.nn.Linear):
            # TFLite's head has 3 rows and keeps 8 bits.
            fewer = 8 if format == "tflite" and len(module.weight) < 4 else bits
            weight = module.weight.detach().numpy()
            integers, found = quantize(weight, fewer, block=block)
            module.weight.data = torch.from_numpy(dequantize(integers, found, block=block))
            if fewer == bits:
                expected[integers.tobytes()] += 1
                scales[integers.tobytes()] = found.reshape(len(weight), -1)
    words = rounded.module.base_model.embeddings.word_embeddings.weight
    integers, found = quantize(words.detach().numpy(), 4 if scheme == "int4-all" else 8)
    words.data = torch.from_numpy(dequantize(integers, found))

    stored = matrices(made.path)
    assert collections.Counter(i.astype(np.int8).tobytes() for i, _ in stored) == expected
    for held, of in stored:
        np.testing.assert_array_equal(of, scales[held.astype(np.int8).tobytes()])
    table = word_bytes(made.path).astype(int)
    if scheme == "int4-all":
        second = (table + 8) // 16
        table = np.concatenate([table - 16 * second, second], axis=1)
    np.testing.assert_array_equal(table, integers)

    rows = encoded(bert, 12)
    reference = reference_outputs(rounded, rows)
    if format == "onnx":
        feeds = {name: array.astype(np.int64) for name, array in rows.arrays.items()}
        answers = run(made.path, feeds)
    else:
        answers = np.asarray(run_all(made.path, rows, bert.inputs))
    error = np.sqrt(np.mean((answers - reference) ** 2)) / reference.std()
    assert error < 0.25
    assert read_contents(made.path).bytes_per_dtype()[f"int{bits}"] == sum(
        len(key) * count * bits // 8 for key, count in expected.items()
    )

    proof = check_integers(made, bert)
    assert proof is not None and proof["tensors"] == 15  # all but two small tables
    content = bytearray(made.path.read_bytes())
    content[content.find(largest_matrix(made.path))] ^= 1
    made.path.write_bytes(content)
    with pytest.raises(ProofError, match=r"1 integers of bert\..*\.weight differ"):
        check_integers(made, bert)


@pytest.mark.slow
def test_packed_tables_promise_what_an_old_runtime_can_keep(bert: Model, tmp_path: Path) -> None:
    made = export_artifact(bert, tmp_path, "tflite", "int4-all", any_length=True)
    for name, version in operator_versions(made.path).items():
        assert version <= KNOWN_TO_2_14[name], name
    made = export_artifact(bert, tmp_path, "onnx", "int4-all")
    kinds = {node.op_type for node in onnx.load(made.path).graph.node}
    assert "MatMulNBits" in kinds and "GatherBlockQuantized" not in kinds
