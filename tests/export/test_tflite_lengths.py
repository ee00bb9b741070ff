"""What one or two graphs teach about all lengths, on graphs made by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.export.tflite_any_length import graph_for_any_length
from edgekit.export.tflite_graph import Graph, Tensor, constant, operator, schema
from edgekit.export.tflite_lengths import (
    CannotLearnError,
    graph_for_length,
    learn_lengths,
    read_lengths,
    shorten,
    unmistakable,
)

ROWS = np.arange(64 * 2, dtype=np.float32).reshape(64, 2)


def graph(length: int, added: np.ndarray, *, rows: int | None = None) -> Graph:
    """A mask [1, length] reshaped to [rows, 1], plus a constant."""
    int32, float32 = schema().TensorType.INT32, schema().TensorType.FLOAT32
    rows = length if rows is None else rows
    mask = Tensor("mask", int32, (1, length))
    tall = Tensor("tall", float32, (rows, 1))
    total = Tensor("total", float32, (rows, 2))
    operators = [
        operator("RESHAPE", [mask, constant("shape", np.array([rows, 1], np.int32))], [tall]),
        operator("ADD", [tall, constant("added", added)], [total], options=schema().AddOptionsT()),
    ]
    return Graph([mask], [total], operators)


def constants(made: Graph) -> dict[str, np.ndarray]:
    return {t.name: t.values() for t in made.tensors() if t.data is not None}


@given(st.integers(2, 30), st.integers(1, 30), st.integers(1, 64))
def test_sizes_and_shapes_follow_the_length(a: int, further: int, length: int) -> None:
    b = a + further
    pattern = learn_lengths(graph(a, ROWS[:1]), graph(b, ROWS[:1]), a, b)
    made = graph_for_length(pattern, length)
    assert [tensor.shape for tensor in made.inputs + made.outputs] == [(1, length), (length, 2)]
    assert constants(made)["shape"].tolist() == [length, 1]


@given(st.integers(2, 30), st.integers(1, 30))
def test_a_square_of_the_length_is_no_line(a: int, further: int) -> None:
    b = a + further
    with pytest.raises(CannotLearnError):
        learn_lengths(graph(a, ROWS[:1], rows=a * a), graph(b, ROWS[:1], rows=b * b), a, b)


@pytest.mark.parametrize(
    "rows_for",
    [lambda n: ROWS[:n], lambda n: ROWS[32 - n : 32 + n], lambda n: ROWS[32 - n : 32]],
    ids=["leading", "middle", "last"],
)
@pytest.mark.parametrize("slices", [True, False])
def test_blocks_of_a_table_are_found(rows_for: Callable[[int], np.ndarray], slices: bool) -> None:
    pattern = learn_lengths(graph(8, rows_for(8)), graph(32, rows_for(32)), 8, 32)
    for learned in (pattern, shorten(pattern, 24)):
        stored = constants(graph_for_length(learned, 20, slices=slices))
        found = stored["added"]
        if slices:
            begin, size = stored["added.block.begin"], stored["added.block.size"]
            found = found[begin[0] : begin[0] + size[0]]
        np.testing.assert_array_equal(found, rows_for(20))


def test_other_numbers_at_another_length_are_refused() -> None:
    for short, long in ((ROWS[:1] / 8, ROWS[:1] / 32), (ROWS[5:13], ROWS[:32])):
        with pytest.raises(CannotLearnError, match="added holds other values"):
            learn_lengths(graph(8, short + 1), graph(32, long + 1), 8, 32)


def test_for_any_length_a_table_is_read_by_position() -> None:
    pattern = learn_lengths(graph(8, ROWS[:8]), graph(32, ROWS[:32]), 8, 32)
    made = graph_for_any_length(pattern, pattern.graph.inputs[0])
    names = [op.kernel.name for op in made.operators]
    assert names == ["RESHAPE", "CUMSUM", "RESHAPE", "EMBEDDING_LOOKUP", "ADD"]
    assert constants(made)["shape"].tolist() == [-1, 1]
    np.testing.assert_array_equal(constants(made)["added"], ROWS[:32])
    assert [list(t.fields.shapeSignature) for t in made.inputs + made.outputs] == [[1, -1], [-1, 2]]


def test_for_any_length_a_middle_block_is_refused() -> None:
    pattern = learn_lengths(graph(8, ROWS[24:40]), graph(32, ROWS), 8, 32)
    with pytest.raises(CannotLearnError, match="no table with a row for each position"):
        graph_for_any_length(pattern, pattern.graph.inputs[0])


@pytest.mark.slow
@given(st.integers(7, 64), st.integers(0, 2))
def test_one_graph_teaches_what_two_do(longest: int, before: int) -> None:
    """With a table by position that has some rows before the first position."""
    table = np.vstack([ROWS, ROWS + 0.5])[: before + longest] + 1000
    rows = table[before:]
    length = unmistakable(longest)
    one = read_lengths(graph(length, rows[:length]), length, longest, [table])
    two = learn_lengths(graph(2, rows[:2]), graph(longest, rows), 2, longest)
    for wanted in range(1, longest + 1):
        made, expected = graph_for_length(one, wanted), graph_for_length(two, wanted)
        assert [t.shape for t in made.tensors()] == [t.shape for t in expected.tensors()]
        for name, values in constants(expected).items():
            np.testing.assert_array_equal(constants(made)[name], values)


@pytest.mark.parametrize(
    ("added", "rows"),
    [(ROWS[:31], 31 * 12), (ROWS[:31], 31 * 31), (ROWS[:31], 32), (ROWS[1:32] + 0.5, None)],
    ids=["heads times length", "length squared", "a width of 32", "no table by position"],
)
def test_a_length_that_may_be_mistaken_is_refused(added: np.ndarray, rows: int | None) -> None:
    with pytest.raises(CannotLearnError):
        read_lengths(graph(31, added, rows=rows), 31, 32, [ROWS])


def test_positions_beyond_the_table_are_not_made_up() -> None:
    with pytest.raises(CannotLearnError, match="no table by position"):
        read_lengths(graph(31, ROWS[:31]), 31, 40, [ROWS[:32]])
