"""Ranges from training rows, and what is refused."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.errors import ModelError, RecipeError
from edgekit.model import Model
from edgekit.step import Context
from edgekit.steps.quantize.calibrate import Calibrate, Method, observed_ranges
from edgekit.steps.quantize.fake import Weight
from edgekit.steps.quantize.grid import dequantize_int8
from edgekit.steps.quantize.static import integer_weights, traced
from tests.export.cases import case
from tests.tiny import tiny_texts

torch.set_num_threads(1)


def rows(count: int, labels: tuple[str, ...] = ("a", "b")) -> Rows:
    texts = tuple(tiny_texts(count))
    return Rows(texts=texts, labels=tuple(labels[i % len(labels)] for i in range(count)))


@pytest.fixture(scope="module")
def model() -> Model:
    return case("bert").model


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        "min-max",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("percentile", "mse", "entropy")),
    ],
)
def test_every_method_gives_every_point_a_range(
    model: Model, method: Method, tmp_path: Path
) -> None:
    made = Calibrate(method=method).apply(model, Context(rows(40), 0, tmp_path))
    assert made.quantized is not None and made.quantized.scheme == "int8-static"
    found = traced(made)
    assert set(made.quantized.ranges) == set(found.points)
    for low, high in made.quantized.ranges.values():
        assert low <= 0 <= high and low < high


@pytest.mark.slow
def test_min_max_holds_what_was_seen_and_others_lie_inside(model: Model) -> None:
    made = case("bert")
    found = traced(made.model)
    widest = observed_ranges(made.model, found, made.rows, "min-max")
    for method in ("percentile", "mse", "entropy"):
        for name, (low, high) in observed_ranges(made.model, found, made.rows, method).items():  # type: ignore[arg-type]
            assert widest[name][0] - 1e-6 <= low and high <= widest[name][1] + 1e-6


@pytest.mark.slow
def test_the_weights_are_on_their_grids_and_the_model_stays_as_it_was(
    model: Model, tmp_path: Path
) -> None:
    before = copy.deepcopy(model.module.state_dict())
    made = Calibrate().apply(model, Context(rows(40), 0, tmp_path))
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    found, state = traced(made), made.module.state_dict()
    integers = integer_weights(found)
    for name, part in found.weights.items():
        if isinstance(part, Weight):
            short = name.removeprefix("module.")
            np.testing.assert_allclose(
                state[short].numpy(), dequantize_int8(*integers[short]), rtol=1e-6
            )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "calibrate: needs training rows to see its activations; give --data"),
        (rows(31), "calibrate: 31 training rows say too little .* give at least 32"),
        (rows(40, ("a",)), "calibrate: all 40 training rows have the label 'a'"),
    ],
)
def test_rows_that_say_too_little_are_refused(model: Model, given: Rows | None, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Calibrate().requires(model, Context(given, 0))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "resnet"])
def test_random_rows_are_for_want_of_others_and_said_so(family: str, tmp_path: Path) -> None:
    made = case(family)
    step = Calibrate(random=True)
    step.requires(made.model, Context(None, 0))
    done = step.apply(made.model, Context(None, 0, tmp_path))
    again = step.apply(made.model, Context(None, 0, tmp_path))
    assert done.quantized is not None and done.quantized == again.quantized
    assert "WARNING: calibrated for int8-static on 64 random rows" in done.lineage[-1]


@pytest.mark.slow
def test_int16_grids_are_around_zero(model: Model, tmp_path: Path) -> None:
    made = Calibrate(scheme="int16x8").apply(model, Context(rows(40), 0, tmp_path))
    assert made.quantized is not None and made.quantized.scheme == "int16x8"
    for point in traced(made).points.values():
        assert (point.grid.bits, point.grid.zero) == (16, 0)
        assert point.grid.scale == pytest.approx(max(map(abs, point.range)) / 32767)


@pytest.mark.slow
def test_a_row_as_long_as_the_model_reads_is_looked_at(model: Model, tmp_path: Path) -> None:
    texts = (" ".join(["card"] * 80), *tiny_texts(40))
    Calibrate().apply(model, Context(Rows(texts=texts), 0, tmp_path))


@pytest.mark.slow
def test_a_model_on_its_grids_is_not_calibrated_again(model: Model, tmp_path: Path) -> None:
    made = Calibrate().apply(model, Context(rows(40), 0, tmp_path))
    with pytest.raises(RecipeError, match="is on a grid of integers already"):
        Calibrate().requires(made, Context(rows(40), 0))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_values_without_a_range_name_their_point(bad: float) -> None:
    made = case("bert")
    broken = replace(made.model, module=copy.deepcopy(made.model.module))
    dense = broken.module.bert.encoder.layer[1].intermediate.dense
    with torch.no_grad():
        dense.bias.fill_(bad)
        if bad == 0:
            dense.weight.zero_()
    said = "nothing but zeros" if bad == 0 else "infinite or NaN"
    with pytest.raises(
        ModelError, match=rf"^bert\.encoder\.layer\.1\.intermediate\.dense .*{said}"
    ):
        observed_ranges(broken, traced(broken), made.rows, "min-max")
