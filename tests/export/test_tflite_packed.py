"""A TFLite file without the zeros of its weights: the dense file again, by the rules alone."""

import struct
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import BundleError
from edgekit.export.tflite_file import write_program
from edgekit.export.tflite_graph import Graph, Program, Tensor, constant, operator, schema
from edgekit.export.tflite_packed import expand_tflite, pack_tflite, packed_bytes


def program_of(*weights: np.ndarray) -> Program:  # type: ignore[type-arg]
    """x [1, columns] with a product by each weight."""
    kind = schema().TensorType.FLOAT32
    x = Tensor("x", kind, (1, weights[0].shape[1]))
    outputs = [Tensor(f"y{n}", kind, (1, len(weight))) for n, weight in enumerate(weights)]
    operators = [
        operator("FULLY_CONNECTED", [x, constant(f"w{n}", weight), None], [outputs[n]])
        for n, weight in enumerate(weights)
    ]
    return Program([Graph([x], outputs, operators)], [])


def sparse(share: float, seed: int = 0) -> np.ndarray:  # type: ignore[type-arg]
    chance = np.random.default_rng(seed)
    values = chance.integers(-127, 128, (96, 64)) * (chance.random((96, 64)) < share)
    values[20:40] = 0
    return values.astype(np.int8)


def reading(content: bytes) -> bytes:
    """The rules of the format once more, as an app's loader has them."""
    at, out = 8, bytearray()
    while at < len(content):
        plain, span, kept = struct.unpack_from("<III", content, at)
        at += 12
        out += content[at : at + plain]
        at += plain
        zeros, place = bytearray(span), 0
        for n in range(kept):
            place += content[at + n]
            zeros[place] = content[at + kept + n]
        at += 2 * kept
        out += zeros
    return bytes(out)


def test_what_is_expanded_is_the_dense_file(tmp_path: Path) -> None:
    weights = sparse(0.15), sparse(0.15, 1), sparse(0.9)
    path = tmp_path / "model.tflite"
    write_program(program_of(*weights), path)
    packed = pack_tflite(path, tmp_path / "packed")
    assert packed is not None and packed.name == "model.tflite.packed"
    assert reading(packed.read_bytes()) == path.read_bytes()
    expand_tflite(packed, tmp_path / "again" / "model.tflite")
    assert (tmp_path / "again" / "model.tflite").read_bytes() == path.read_bytes()
    saved = sum(w.size - packed_bytes(w.size, np.count_nonzero(w)) for w in weights)
    assert 0 <= packed.stat().st_size - (path.stat().st_size - saved) < 100


def test_a_dense_file_is_not_packed(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    write_program(program_of(sparse(0.9), sparse(0.6)), path)
    assert pack_tflite(path, tmp_path / "packed") is None
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("damage", [lambda c: c[:-9], lambda c: b"x" + c[1:], lambda c: c + b"1"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "model.tflite"
    write_program(program_of(sparse(0.1)), path)
    packed = pack_tflite(path, tmp_path)
    assert packed is not None and callable(damage)
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(BundleError, match="damaged"):
        expand_tflite(packed, tmp_path / "again.tflite")
    assert not (tmp_path / "again.tflite").exists()
