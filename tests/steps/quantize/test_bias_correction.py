"""After bias correction no product is off in the mean: recomputed with numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.data import Rows
from edgekit.model import reference_outputs
from edgekit.step import Context
from edgekit.steps.quantize.bias_correction import correct_biases
from edgekit.steps.quantize.calibrate import Calibrate, observed_ranges
from edgekit.steps.quantize.grid import Grid, dequantize_int8, quantize_activation, quantize_int8
from edgekit.steps.quantize.static import fake_outputs, pieces, traced
from edgekit.workbench import encode
from tests.export.cases import case
from tests.export.test_tflite import plain
from tests.tiny import tiny_texts

torch.set_num_threads(1)

Array = np.ndarray[Any, Any]


class Net(nn.Module):
    """Two products with a bias, one without, on inputs that are all above zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)
        self.bare = nn.Linear(4, 3, bias=False)
        # Coarse grids, so that rounding shifts.
        with torch.no_grad():
            self.first.weight[:, 0] *= 300
            self.last.weight[:, 0] *= 300

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bare(self.last(torch.relu(self.first(x))))


def rounded(values: Array, grid: Grid) -> Array:
    made: Array = (quantize_activation(values, grid) - grid.zero) * np.float32(grid.scale)
    return made


def outputs(net: Net, grids: dict[str, Grid], x: Array, corrected: Net) -> tuple[Array, Array]:
    """What the two products give: weights of ``net`` on their grids, biases of ``corrected``."""
    weights = [
        dequantize_int8(*quantize_int8(part.weight.detach().numpy()))
        for part in (net.first, net.last)
    ]
    biases = [part.bias.detach().numpy() for part in (corrected.first, corrected.last)]
    first = rounded(x, grids["x.input"]) @ weights[0].T + biases[0]
    hidden = rounded(np.maximum(first, 0), grids["relu"])
    return first, hidden @ weights[1].T + biases[1]


def test_the_mean_of_each_product_is_that_of_the_float_model(tmp_path: Path) -> None:
    net = Net().eval()
    x = np.random.default_rng(0).uniform(0, 1, (128, 6)).astype(np.float32)
    model = plain(net, torch.from_numpy(x[:1]))
    context = Context(Rows(arrays={"x": x}), 0, tmp_path)
    made = Calibrate(rows=128, bias_correction=True).apply(model, context)
    assert made.lineage[-1] == "corrected the biases of 2 products on 128 training rows"
    found = traced(made)
    points = {name.rpartition(".")[0] or name: p.grid for name, p in found.points.items()}
    grids = {"x.input": next(iter(found.points.values())).grid, "relu": points["relu"]}
    corrected: Any = made.module
    with torch.no_grad():
        first = net.first(torch.from_numpy(x))
        wanted = first.numpy(), net.last(torch.relu(first)).numpy()
    before, after = outputs(net, grids, x, net), outputs(net, grids, x, corrected)
    for exact, was, now in zip(wanted, before, after, strict=True):
        assert np.abs((was - exact).mean(0)).max() > 20 * np.abs((now - exact).mean(0)).max()
        assert np.abs((now - exact).mean(0)).max() < 1e-4 * np.abs(exact).max()
    assert torch.equal(corrected.first.bias != net.first.bias, torch.ones(12, dtype=torch.bool))


@pytest.mark.slow
def test_convolutions_are_corrected_by_channel_and_shared_biases_left() -> None:
    made = case("resnet")
    found = traced(made.model)
    found.set_ranges(observed_ranges(made.model, found, made.rows, "min-max"))
    assert correct_biases(found, list(pieces(made.model, made.rows, 4))) > 3
    made = case("albert")
    found = traced(made.model)
    found.set_ranges(observed_ranges(made.model, found, made.rows, "min-max"))
    # The projection of the embeddings, the pooler and the classifier: layers share the rest.
    assert correct_biases(found, list(pieces(made.model, made.rows, 4))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_a_corrected_encoder_is_nearer_in_the_mean(family: str, tmp_path: Path) -> None:
    made = case(family)
    texts = Rows(texts=tuple(tiny_texts(200)))
    context = Context(texts, 0, tmp_path)
    rows = encode(made.model, texts)
    exact = reference_outputs(made.model, rows)
    plainly = Calibrate().apply(made.model, context)
    corrected = Calibrate(bias_correction=True).apply(made.model, context)
    shifts = [
        np.abs((fake_outputs(model, rows) - exact).mean(0)).max() for model in (plainly, corrected)
    ]
    assert shifts[1] < shifts[0] / 3
