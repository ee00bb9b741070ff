"""Where a model's arithmetic is integer, and that rounding in training is the grid's."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from edgekit.errors import ModelError
from edgekit.model import export_forward
from edgekit.steps.quantize.fake import Point, Table, Weight
from edgekit.steps.quantize.grid import (
    Grid,
    activation_grid,
    dequantize_int8,
    quantize_activation,
    quantize_int8,
)
from edgekit.steps.quantize.points import trace
from edgekit.steps.quantize.static import traced
from tests.export.cases import case

torch.set_num_threads(1)

ends = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@st.composite
def grids(draw: st.DrawFn) -> tuple[float, float, Grid]:
    low, high = sorted((draw(ends), draw(ends)))
    if max(high, 0) - min(low, 0) < 1e-20:
        high += 1.0
    return low, high, activation_grid(low, high)


@given(grids())
def test_zero_and_both_ends_are_on_the_grid(made: tuple[float, float, Grid]) -> None:
    low, high, grid = made
    zero = quantize_activation(np.zeros(1, np.float32), grid)[0]
    assert (zero - grid.zero) * grid.scale == 0
    least, most = grid.range
    assert abs(least - min(low, 0)) <= 0.51 * grid.scale
    assert abs(most - max(high, 0)) <= 0.51 * grid.scale


@given(grids())
def test_every_integer_comes_back(made: tuple[float, float, Grid]) -> None:
    grid = made[2]
    integers = np.arange(grid.lowest, grid.highest + 1)
    values = ((integers - grid.zero) * np.float32(grid.scale)).astype(np.float32)
    np.testing.assert_array_equal(quantize_activation(values, grid), integers)


def test_halves_round_to_even_and_what_is_beyond_takes_the_ends() -> None:
    grid = Grid(1.0, 3)
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9], np.float32)
    expected = [3, 5, 5, 3, 1, 127, -128]
    assert quantize_activation(values, grid).tolist() == expected


@pytest.mark.parametrize("range", [(0, 0), (float("nan"), 1), (0, float("inf"))])
def test_a_range_without_a_grid_is_refused(range: tuple[float, float]) -> None:
    with pytest.raises(ModelError, match="has no grid"):
        activation_grid(*range)


@given(grids(), arrays(np.float32, 20, elements=ends))
def test_a_point_rounds_as_the_grid(made: tuple[float, float, Grid], values: np.ndarray) -> None:
    low, high, grid = made
    point = Point(0, None)
    point.set_range(low, high)
    point.mode = "fake"
    with torch.no_grad():
        found = point(torch.from_numpy(values)).numpy()
    assert point.grid == grid
    expected = (quantize_activation(values, grid) - grid.zero) * np.float32(grid.scale)
    # torch multiplies by one over the scale: a half may fall to its other side.
    halfway = np.abs(np.abs(values / np.float32(grid.scale)) % 1 - 0.5) < 1e-3
    apart = np.abs(found - expected)
    assert (apart <= np.where(halfway, 1.001, 1e-3) * grid.scale).all()


@pytest.mark.parametrize("shape", [(7, 5), (4, 3, 3, 3), (6, 1, 3, 3)])
def test_a_weight_rounds_as_the_grid_bit_for_bit(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    part, table = Weight(), Table()
    part.mode = table.mode = "fake"
    with torch.no_grad():
        by_channel = part(torch.from_numpy(weight)).numpy()
        at_once = table(torch.from_numpy(weight)).numpy()
    np.testing.assert_array_equal(by_channel, dequantize_int8(*quantize_int8(weight)))
    whole = dequantize_int8(*quantize_int8(weight.reshape(1, -1))).reshape(shape)
    np.testing.assert_array_equal(at_once, whole)


def test_norms_are_folded_and_nothing_changes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    norm = net[1]
    norm.running_mean.normal_()  # type: ignore[union-attr,operator]
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = net(x)
        found = trace(net, (x,), ("batch",), net)
        assert not any("norm" in str(node.target) for node in found.module.graph.nodes)
        weight = net[0].weight.clone()
        assert (found.module(x) - before).abs().max() < 1e-5
        assert (net(x) - before).abs().max() < 1e-5
        trace(net, (x,), ("batch",), net)
    assert torch.equal(net[0].weight, weight)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_second_trace_has_the_tensors_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = case("bert").model
    module: Any = model.module
    ids = torch.randint(5, 20, (2, 8))
    first = traced(model)
    first.set_mode("fake")
    with torch.no_grad():
        module.bert.embeddings.position_embeddings.weight.add_(1)
        module.classifier.bias.add_(1)
        with monkeypatch.context() as patch:
            patch.delattr("torch.export.export")
            second = traced(model)
        assert first.module is not second.module
        expected = export_forward(model)(ids, torch.ones_like(ids))
        assert (second.module(ids, torch.ones_like(ids)) - expected).abs().max() < 1e-5
        module.classifier = nn.Linear(module.classifier.in_features, 7)
        assert traced(model).module(ids, torch.ones_like(ids)).shape == (2, 7)


@pytest.mark.slow
def test_a_trace_does_not_keep_its_module_alive() -> None:
    model = case("bert").model
    gone = weakref.ref(model.module)
    traced(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.slow
def test_a_weight_that_two_products_share_has_one_grid() -> None:
    found = traced(case("albert").model)
    products = [name for name, part in found.weights.items() if isinstance(part, Weight)]
    assert len(products) == len(set(products)) == 9
    assert all("module" in name or "encoder" in name for name in found.weights)


def test_rows_of_a_table_are_rounded_where_they_go_into_floats() -> None:
    """Positions are added to the words right before a norm."""
    found = traced(case("bert").model)
    tables = {name for name, part in found.weights.items() if isinstance(part, Table)}
    assert tables == {"module.bert.embeddings.word_embeddings.weight", "encoder.positions"}


def test_islands_are_the_norms_and_the_sums_before_them() -> None:
    found = traced(case("bert").model)
    assert {island.split(" ")[1] for island in found.islands} == {"(add)", "(layer_norm)"}


@pytest.mark.slow
def test_padding_by_nothing_and_dropout_go(tmp_path: Path) -> None:
    found = traced(case("mobilenet_v2").model)
    assert found.islands == ()
    kinds = {str(node.target) for node in found.module.graph.nodes}
    assert not any("dropout" in kind for kind in kinds)
