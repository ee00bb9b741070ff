"""Rounding after training: on the grid, in the files bit for bit, and nearer than one by one."""

import copy
import importlib.util
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.artifact import Format, Scheme
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.quantize.grid import dequantize, fitted_scales, quantize
from edgekit.workbench import encode
from tests.export.test_few_bits import matrices
from tests.tiny import tiny_checkpoint, tiny_texts

SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 64, "intermediate_size": 96},
    "distilbert": {"dim": 64, "hidden_dim": 96},
    "albert": {"hidden_size": 64, "intermediate_size": 96},
}
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("neural_compressor") is None, reason="needs the extra rounding"
)


def _model(folder: Path, family: str = "bert") -> Model:
    return load_model(identify(str(tiny_checkpoint(folder, family, **SIZES[family]))))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return _model(tmp_path_factory.mktemp("tiny"))


def _rows(count: int, seed: int = 0) -> Rows:
    return Rows(texts=tuple(tiny_texts(count, seed)))


def _round(model: Model, folder: Path, options: str) -> Model:
    context = Context(_rows(128, 1), 0, folder)
    return apply_steps([parse_step(f"round-weights:{options}").step], model, context)


def _linears(model: Model) -> dict[str, nn.Linear]:
    return {n: part for n, part in model.module.named_modules() if isinstance(part, nn.Linear)}


def _integers(weight: torch.Tensor, top: int, block: int | None) -> np.ndarray:
    """What whole numbers a weight is, times a scale for each row or block."""
    rows = weight.detach().numpy().astype(np.float64)
    width = block or rows.shape[1]
    cut = np.pad(rows, ((0, 0), (0, -rows.shape[1] % width))).reshape(len(rows), -1, width)
    amax = np.abs(cut).max(-1, keepdims=True)
    steps = cut / np.where(amax == 0, 1, amax / top)
    assert np.abs(steps - np.rint(steps)).max() < 1e-4
    return np.rint(steps).reshape(len(rows), -1)[:, : rows.shape[1]].astype(np.int8)


@pytest.mark.slow
@needs_library
@pytest.mark.parametrize(
    ("format", "block", "family"),
    [("onnx", 32, "bert"), ("onnx", 32, "albert"), ("tflite", None, "distilbert")],
)
def test_a_file_holds_the_very_integers_that_gptq_chose(
    format: Format, block: int | None, family: str, tmp_path: Path
) -> None:
    model = _model(tmp_path / "tiny", family)
    option = "" if block is None else f",block={block}"
    made = _round(model, tmp_path / "scratch", f"method=gptq{option}")
    path = export_artifact(
        made, tmp_path / "out", format, "int4-weights", any_length=format == "tflite"
    ).path
    wanted = set()
    for name, linear in _linears(made).items():
        before = _linears(model)[name].weight
        assert not linear.weight.equal(before)
        # TFLite's kernel takes 4 bits from 4 rows and 32 columns on.
        if format == "onnx" or (len(before) >= 4 and before.shape[1] >= 32):
            wanted.add(_integers(linear.weight, 7, block).tobytes())
    assert {integers.astype(np.int8).tobytes() for integers, _ in matrices(path)} == wanted


@pytest.mark.parametrize("options", ["method=rtn", "method=rtn,block=20"])
def test_rounding_without_rows_is_on_the_grid_and_nearer_to_the_weights(
    options: str, bert: Model, tmp_path: Path
) -> None:
    block = 20 if "block" in options else None
    before = copy.deepcopy(bert.module.state_dict())
    made = apply_steps(
        [parse_step(f"round-weights:{options}").step], bert, Context(None, 0, tmp_path)
    )
    for name, linear in _linears(made).items():
        weight = before[f"{name}.weight"].numpy()
        _integers(linear.weight, 7, block)
        plain = dequantize(*quantize(weight, 4, block=block), block=block)
        ours = linear.weight.detach().numpy()
        assert np.square(ours - weight).sum() <= np.square(plain - weight).sum() * (1 + 1e-6)
    for name, tensor in bert.module.state_dict().items():
        assert tensor.equal(before[name])
        if "embedding" in name:
            assert made.module.state_dict()[name].equal(tensor)
    assert made.quantized is not None and made.quantized.block == block


@needs_library
@pytest.mark.parametrize(
    ("scheme", "top", "block"), [("int4-weights", 7, None), ("int4-all", 7, 32),
    ("int8-dynamic", 127, None)],
)  # fmt: skip
def test_gptq_is_nearer_to_the_float_model_than_one_by_one(
    scheme: Scheme, top: int, block: int | None, bert: Model, tmp_path: Path
) -> None:
    option = "" if block is None else f",block={block}"
    rows = encode(bert, _rows(128, 9))
    wanted = reference_outputs(bert, rows)
    errors = {}
    for method in ("gptq", "rtn"):
        made = _round(bert, tmp_path / method, f"method={method},scheme={scheme}{option}")
        for linear in _linears(made).values():
            _integers(linear.weight, top, block)
        errors[method] = float(np.square(reference_outputs(made, rows) - wanted).mean())
    assert errors["gptq"] < 0.9 * errors["rtn"], errors


@needs_library
def test_a_rounded_model_is_saved_with_its_grid(bert: Model, tmp_path: Path) -> None:
    made = _round(bert, tmp_path / "scratch", "block=32")
    save_model(made, tmp_path / "checkpoint")
    loaded = load_model(identify(str(tmp_path / "checkpoint")))
    assert loaded.quantized == made.quantized
    assert loaded.lineage == ("weights rounded for int4-weights (gptq on 128 training rows)",)


@needs_library
def test_the_librarys_nearest_integers_are_the_grids(bert: Model) -> None:
    """So that method=rtn has nothing to ask it for."""
    logging.getLogger("neural_compressor").disabled = True
    from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor

    for linear in _linears(bert).values():
        weight = linear.weight.detach()
        for block in (None, 32):
            integers, *_ = quant_tensor(
                weight.clone(), bits=4, group_size=block or -1, scheme="sym", return_int=True
            )
            ours, _ = quantize(weight.numpy(), 4, block=block)
            np.testing.assert_array_equal(integers.numpy(), ours)


@needs_library
def test_the_library_leaves_no_folder_where_the_user_stands() -> None:
    from edgekit.steps.quantize.round_weights import _library

    _library()
    from neural_compressor.torch.algorithms.layer_wise import utils

    assert Path(utils.LWQ_WORKSPACE).is_relative_to(tempfile.gettempdir())
    assert not list(Path.cwd().glob("nc_workspace"))


def test_fitted_scales_clip_what_costs_more_than_it_is_worth() -> None:
    row = np.array([[70.0, *[1.0] * 63]], np.float32)
    assert fitted_scales(row, 4) == pytest.approx(10.0)
    spread = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    full = np.abs(spread).max(1) / 7
    found = fitted_scales(spread, 4) / full
    assert (found < 1).all() and (found >= 0.7 - 1e-6).all()


def test_only_shapes_are_needed_to_predict(bert: Model) -> None:
    context = Context(_rows(64), 0)
    step = parse_step("round-weights:method=rtn,block=32").step
    made = apply_steps([step], bert, context)
    assert made.module is bert.module
    assert made.quantized is not None and made.quantized.scheme == "int4-weights"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=hqq", "method must be gptq|rtn, is 'hqq'"),
        ("scheme=int8-static", "scheme must be .*, is 'int8-static'"),
        ("bits=4", "has no option 'bits'"),
        ("block=0", "block is for int4-weights, int4-all or int2-weights"),
        ("scheme=int8-dynamic,block=32", "block is for int4-weights"),
        ("rows=8", "rows must be at least 32"),
    ],
)
def test_what_makes_no_sense_is_refused_before_work(
    options: str, message: str, bert: Model, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message.replace("|", r"\|")):
        _round(bert, tmp_path / "scratch", options)
    assert not (tmp_path / "scratch").exists()


def test_gptq_needs_rows_and_nearest_does_not(bert: Model, tmp_path: Path) -> None:
    for rows in (None, _rows(8)):
        context = Context(rows, 0, tmp_path / "scratch")
        with pytest.raises(RecipeError, match=r"round-weights: .*training rows"):
            apply_steps([parse_step("round-weights").step], bert, context)
    made = apply_steps([parse_step("round-weights:method=rtn").step], bert, context)
    with pytest.raises(RecipeError, match="on a grid of integers already"):
        apply_steps([parse_step("round-weights:method=rtn").step], made, context)


def test_without_the_library_the_mend_is_named(
    bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    with pytest.raises(RecipeError, match=r"pip install 'edgekit\[rounding\]'"):
        _round(bert, tmp_path / "scratch", "method=gptq")


def test_a_model_without_matrices_has_nothing_to_round(tmp_path: Path) -> None:
    plain = Model(nn.ReLU(), "module", None, None, None, (), example={"x": torch.zeros(1, 4)})
    with pytest.raises(RecipeError, match="has no linear layer"):
        apply_steps([parse_step("round-weights:method=rtn").step], plain, Context(None, 0))
