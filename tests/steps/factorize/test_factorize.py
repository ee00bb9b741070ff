"""Factored matrices: the numbers on disk, the errors of the best products, planted structure."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgekit import factored, structure
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import (
    Model,
    as_exported,
    identify,
    load_model,
    reference_outputs,
    save_model,
)
from edgekit.plan.predict import predicted_bytes
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.distill import Distill
from edgekit.steps.factorize.factorize import Factorize, factors
from edgekit.steps.prune.drop_layers import DropLayers
from edgekit.steps.prune.slicing import cut, everything
from edgekit.steps.quantize.quantize_aware_train import QuantizeAwareTrain
from tests.fresh import run_fresh
from tests.static_cases import calibrated
from tests.tiny import tiny_checkpoint, tiny_texts

Array = np.ndarray[Any, Any]

ROWS = Rows(texts=tuple(tiny_texts(8)))
# Parts of a BERT layer, and whether its slices are as stored: the paper's orientation.
PARTS = {
    "attention.self.query": False,
    "attention.self.key": False,
    "attention.self.value": False,
    "attention.output.dense": False,
    "intermediate.dense": True,
    "output.dense": False,
}
FACTORS = ("left", "right", "core", "mix", "bank")


def model_of(folder: Path, depth: int = 2, size: int = 24, **config: Any) -> Model:
    fields = {"hidden_size": size, "intermediate_size": 4 * size, "num_hidden_layers": depth}
    return load_model(identify(str(tiny_checkpoint(folder, "bert", **(fields | config)))))


def factorized(model: Model, *args: Any, **options: Any) -> Model:
    return apply_steps([Factorize(*args, **options)], model, Context(None, 0))


def answers(model: Model) -> Array:
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(ROWS))


def dense_tensors(folder: Path) -> dict[str, Array]:
    """A checkpoint's tensors, its factored matrices multiplied out by numpy alone."""
    tensors = load_file(folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text())["edgekit"]["factored"]
    shared = {n: tensors.pop(f"{described['shared']}.{n}", None) for n in FACTORS}
    for name, transposed in described["matrices"].items():
        own = {n: tensors.pop(f"{name}.{n}", None) for n in FACTORS}
        left, right = (shared[n] if own[n] is None else own[n] for n in ("left", "right"))
        slices = left @ right if own["left"] is not None else None
        if slices is None:
            core = own["core"]
            if core is None:
                core = np.tensordot(own["mix"], shared["bank"], 1)
            slices = np.stack([left @ each @ right for each in core])
        matrix = np.concatenate(list(slices))
        tensors[f"{name}.weight"] = matrix.T if transposed else matrix
    return tensors


def slices_of(tensors: dict[str, Array], depth: int) -> Array:
    """[12 L, D, D], cut as the paper's code cuts them."""
    found = []
    for layer in range(depth):
        for part, stored in PARTS.items():
            weight = tensors[f"bert.encoder.layer.{layer}.{part}.weight"]
            matrix = weight if stored else weight.T
            found.extend(np.split(matrix, len(matrix) // matrix.shape[1]))
    return np.stack(found).astype(np.float64)


def hosvd_error(whole: Array, ranks: tuple[int, int, int]) -> float:
    """Of the truncated higher-order singular value decomposition."""
    core = whole
    for axis, rank in enumerate(ranks):
        unfolded = np.moveaxis(whole, axis, 0).reshape(whole.shape[axis], -1)
        leading = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
        core = np.moveaxis(np.tensordot(leading @ leading.T, core, (1, axis)), 0, axis)
    return float(np.linalg.norm(whole - core))


@pytest.mark.parametrize(
    "options",
    [{"method": "II"}, {"method": "III"}, {"method": "IV", "bank": 24}],
    ids=["II", "III", "IV"],
)
def test_full_rank_is_the_original(options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole")
    after = factorized(model, rank=24, **options)
    np.testing.assert_allclose(answers(after), answers(model), atol=1e-4)
    save_model(after, tmp_path / "factored")
    dense, whole = (
        dense_tensors(tmp_path / "factored"),
        load_file(tmp_path / "whole/model.safetensors"),
    )
    assert dense.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_allclose(dense[name], values, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_the_numbers_on_disk_are_the_formula(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("formula")
    depth = data.draw(st.sampled_from([1, 2, 3]), label="L")
    size = data.draw(st.sampled_from([24, 48]), label="D")
    method = data.draw(st.sampled_from(["II", "III", "IV"]), label="method")
    count = 12 * depth
    left = data.draw(st.integers(1, size - 2), label="d1")
    right = left if method == "II" else data.draw(st.integers(1, size - 2), label="d2")
    bank = data.draw(st.integers(1, count), label="l") if method == "IV" else None
    model = model_of(folder / "whole", depth, size)
    save_model(
        factorized(model, method, left_rank=left, right_rank=right, bank=bank), folder / "after"
    )
    tensors = load_file(folder / "after" / "model.safetensors")
    made = [v for n, v in tensors.items() if n.rpartition(".")[2] in FACTORS]
    expected = {
        "II": count * 2 * size * left,
        "III": count * left * right + 2 * size * (left + right) // 2,
        "IV": (bank or 0) * (count + left * right) + size * (left + right),
    }[method]
    assert sum(each.size for each in made) == expected
    # No matrix of the encoder is left, and the rest is byte for byte as it was.
    whole = load_file(folder / "whole" / "model.safetensors")
    encoder = {n for n in whole if ".encoder.layer." in n and whole[n].ndim == 2}
    assert not encoder & tensors.keys()
    assert all(each.size // (len(each) if each.ndim == 3 else 1) < size * size for each in made)
    for name in whole.keys() - encoder:
        assert tensors[name].tobytes() == whole[name].tobytes()
    # The same from shapes alone.
    outline = load_model(identify(str(folder / "whole")), meta=True)
    predicted = factorized(outline, method, left_rank=left, right_rank=right, bank=bank)
    shapes = {n: tuple(t.shape) for n, t in predicted.module.state_dict().items()}
    assert shapes == {n: v.shape for n, v in tensors.items()}


def test_no_worse_than_hosvd_and_better_with_rank(tmp_path: Path) -> None:
    model_of(tmp_path / "whole", 2)
    whole = slices_of(load_file(tmp_path / "whole" / "model.safetensors"), 2)
    stacks = [torch.from_numpy(each[None]).float() for each in whole]

    def error(left: int, right: int, bank: int | None) -> float:
        found = factors("III" if bank is None else "IV", stacks, left, right, bank)[2]
        assert found is not None
        return found * float(np.linalg.norm(whole))

    for ranks in [(24, 7, 11), (5, 8, 8), (12, 20, 3), (23, 23, 23)]:
        bank = None if ranks[0] == 24 else ranks[0]
        assert error(*ranks[1:], bank) <= hosvd_error(whole, ranks) * (1 + 1e-6)
    for axis in range(3):
        at = [12, 12, 12]
        errors = []
        for rank in (4, 12, 20, 24):
            at[axis] = rank
            errors.append(error(at[1], at[2], at[0]))
        assert errors == sorted(errors, reverse=True)


def test_method_ii_leaves_out_the_smallest_singular_values(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", 1)
    save_model(factorized(model, "II", rank=9), tmp_path / "after")
    before = slices_of(load_file(tmp_path / "whole" / "model.safetensors"), 1)
    after = slices_of(dense_tensors(tmp_path / "after"), 1)
    tails = np.linalg.svd(before, compute_uv=False)[:, 9:]
    np.testing.assert_allclose(
        np.linalg.norm(before - after, axis=(1, 2)), np.linalg.norm(tails, axis=1), rtol=1e-4
    )


@pytest.mark.parametrize("bank", [None, 5])
def test_a_planted_structure_is_found_at_its_rank_and_not_below(
    bank: int | None, tmp_path: Path
) -> None:
    model, rank = model_of(tmp_path, 2), 8
    chance = torch.Generator().manual_seed(3)
    left, right = (torch.randn(*shape, generator=chance) for shape in ((24, rank), (rank, 24)))
    cores = torch.randn(bank or 24, rank, rank, generator=chance)
    mix = torch.eye(24) if bank is None else torch.randn(24, bank, generator=chance)
    planted = iter(0.02 * left @ torch.einsum("xi,ikl->xkl", mix, cores) @ right)
    with torch.no_grad():
        for layer in model.module.bert.encoder.layer:  # type: ignore[attr-defined]
            for part, stored in PARTS.items():
                weight = layer.get_submodule(part).weight
                matrix = torch.cat([next(planted) for _ in range(weight.numel() // 24**2)])
                weight.copy_(matrix if stored else matrix.T)
    expected = answers(model)
    method: Any = "III" if bank is None else "IV"
    found = answers(factorized(model, method, rank=rank, bank=bank))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    below = answers(factorized(model, method, rank=rank - 1, bank=bank))
    assert np.abs(below - expected).max() > 1e-2
    if bank is not None:
        fewer = answers(factorized(model, "IV", rank=rank, bank=bank - 1))
        assert np.abs(fewer - expected).max() > 1e-2


def test_the_same_numbers_every_time(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    first, second = (factorized(model, "IV", rank=6, bank=7).module.state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)


LOADING = """
import sys
import numpy as np
from edgekit.data import Rows
from edgekit.model import identify, load_model, reference_outputs
model = load_model(identify(sys.argv[1]))
texts = Rows(texts=tuple(sys.argv[3:]))
np.save(sys.argv[2], reference_outputs(model, model.preprocessor.encode(texts)))
"""


@pytest.mark.slow
def test_a_fresh_process_loads_it(tmp_path: Path) -> None:
    after = factorized(model_of(tmp_path / "whole"), "IV", left_rank=5, right_rank=7, bank=6)
    save_model(after, tmp_path / "after")
    files = [str(tmp_path / "after"), str(tmp_path / "out.npy")]
    run_fresh(["-c", LOADING, *files, *(ROWS.texts or ())])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), answers(after), atol=1e-6)


@pytest.mark.parametrize("method", ["II", "IV"])
def test_the_documented_lines_load_it_without_edgekit(method: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    bank = 6 if method == "IV" else None
    after = factorized(model_of(tmp_path / "whole"), method, rank=7, bank=bank)
    save_model(after, tmp_path / "after")
    lines = documented(structure.__doc__)
    # The factored lines stand in for the file's tensors.
    loop = next(n for n, line in enumerate(lines) if line.startswith("for name, tensor in"))
    lines[loop] = "for name, tensor in tensors.items():"
    lines[loop:loop] = documented(factored.__doc__)
    names: dict[str, Any] = {
        "AutoConfig": AutoConfig,
        "AutoModelForSequenceClassification": AutoModelForSequenceClassification,
        "folder": str(tmp_path / "after"),
        "load_file": load_torch,
        "torch": torch,
    }
    exec("\n".join(lines), names)
    ids = torch.randint(5, 60, (3, 7))
    with torch.no_grad():
        found, expected = names["model"].eval()(ids).logits, after.module(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def documented(text: str | None) -> list[str]:
    lines = (text or "").splitlines()
    return [line.removeprefix("    ") for line in lines if line.startswith("    ")]


# Three products each; of ranks 11 and 10 two for attention, three for the rest; of rank 20 one.
@pytest.mark.parametrize(
    ("method", "ranks", "bank"),
    [("II", (6, 6), None), ("III", (4, 6), None), ("IV", (11, 10), 5), ("III", (20, 20), None)],
)
def test_however_it_is_multiplied_a_file_answers_alike(
    method: Any, ranks: tuple[int, int], bank: int | None, tmp_path: Path
) -> None:
    from tests.export.test_torchscript import run

    model = model_of(tmp_path, 1)
    after = factorized(model, method, left_rank=ranks[0], right_rank=ranks[1], bank=bank)
    assert after.preprocessor is not None
    rows = after.preprocessor.encode(ROWS)
    feeds = {name: rows.arrays[name].astype(np.int64) for name in after.inputs}
    file = export_artifact(after, tmp_path / "out", "torchscript", "fp32")
    np.testing.assert_allclose(run(file.path, feeds), answers(after), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "format"), [("II", "onnx"), ("IV", "tflite")])
def test_onnx_and_tflite_answer_alike_static_ones_too(
    method: Any, format: Any, tmp_path: Path
) -> None:
    from edgekit.steps.quantize.static import fake_outputs
    from tests.export.test_onnx import run
    from tests.export.test_tflite import run_all

    bank = 5 if method == "IV" else None
    after = factorized(model_of(tmp_path, 1), method, rank=6, bank=bank)
    assert after.preprocessor is not None
    rows = after.preprocessor.encode(ROWS)
    feeds = {name: rows.arrays[name].astype(np.int64) for name in after.inputs}
    static, found = calibrated(after, rows)
    step = list(found.points.values())[-1].grid.scale
    for scheme, model, expected, near in [
        ("fp32", after, answers(after), 1e-4),
        ("int8-dynamic", after, answers(after), 0.3),
        ("int8-static", static, fake_outputs(static, rows), 12 * step),
    ]:
        scheme_: Any = scheme
        file = export_artifact(model, tmp_path / scheme, format, scheme_, any_length=True)
        assert not file.lengths
        if format == "onnx":
            found_ = run(file.path, feeds)
        else:
            found_ = np.array(run_all(file.path, rows, after.inputs))
        assert np.abs(found_ - expected).max() <= near


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "scheme"),
    [
        ("onnx", "fp32"),
        ("onnx", "int8-dynamic"),
        ("tflite", "int8-dynamic"),
        ("torchscript", "fp32"),
        ("torchscript", "int8-dynamic"),
    ],
)
def test_prediction_is_near(format: Any, scheme: Any, tmp_path: Path) -> None:
    """Of a model of real width; each method's factors are what files hold, and nothing besides."""
    # A factor that one layer alone reads, float ONNX keeps as the transpose of the other.
    model_of(tmp_path / "whole", 2 if (format, scheme) == ("onnx", "fp32") else 1, 384)
    source = identify(str(tmp_path / "whole"))
    for method, ranks in (("III", {"left_rank": 96, "right_rank": 128}), ("II", {"rank": 96})):
        model = factorized(load_model(source), method=method, **ranks)
        outline = factorized(load_model(source, meta=True), method=method, **ranks)
        predicted = predicted_bytes(outline, format, scheme, ())
        file = export_artifact(model, tmp_path / method, format, scheme, any_length=True)
        assert predicted == pytest.approx(file.bytes, rel=0.02), method


def test_dropping_layers_later_drops_their_cores(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", 3)
    after = factorized(model, "IV", rank=6, bank=7)
    fewer = apply_steps([DropLayers("bottom", count=1)], after, Context(None, 0))
    save_model(fewer, tmp_path / "fewer")
    tensors = load_file(tmp_path / "fewer" / "model.safetensors")
    weights = sum(v.size for n, v in tensors.items() if n.rpartition(".")[2] in FACTORS)
    assert weights == 7 * (24 + 36) + 24 * 12
    loaded = load_model(identify(str(tmp_path / "fewer")))
    np.testing.assert_allclose(answers(loaded), answers(fewer), atol=1e-6)
    kept = [layer.attention.self.query for layer in after.module.bert.encoder.layer[1:]]  # type: ignore[attr-defined]
    found = [layer.attention.self.query for layer in fewer.module.bert.encoder.layer]  # type: ignore[attr-defined]
    assert all(a.mix.equal(b.mix) for a, b in zip(kept, found, strict=True))


@pytest.mark.slow
def test_distillation_trains_the_factors_and_recovers(tmp_path: Path) -> None:
    rows = Rows(texts=tuple(tiny_texts(200)))
    model = model_of(tmp_path / "whole", 1)
    context = Context(rows, 0, folder=tmp_path)
    factorize = Factorize("IV", rank=12, bank=8)
    raw = apply_steps([factorize], model, context)
    taught = apply_steps(
        [factorize, Distill(epochs=8, learning_rate=3e-3, batch=16)], model, context
    )
    others = Rows(texts=tuple(tiny_texts(40, seed=9)))
    assert model.preprocessor is not None
    encoded = model.preprocessor.encode(others)
    teacher, before, after = (reference_outputs(m, encoded) for m in (model, raw, taught))
    assert np.square(after - teacher).mean() < 0.5 * np.square(before - teacher).mean()
    shared = taught.module.get_submodule("bert.factors").state_dict()
    was = raw.module.get_submodule("bert.factors").state_dict()
    assert shared.keys() == was.keys() == {"left", "right", "bank"}
    assert not any(shared[name].equal(was[name]) for name in was)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give either rank"),
        ({"rank": 4, "left_rank": 4}, "give either rank"),
        ({"left_rank": 4}, "give either rank"),
        ({"rank": 25}, "rank must be from 1 to 24, is 25"),
        ({"rank": 0}, "rank must be from 1 to 24, is 0"),
        ({"left_rank": 4, "right_rank": 30}, "right-rank must be from 1 to 24, is 30"),
        ({"method": "II", "left_rank": 4, "right_rank": 5}, "one rank"),
        ({"method": "IV", "rank": 4}, "bank"),
        ({"method": "III", "rank": 4, "bank": 3}, "bank"),
        ({"method": "IV", "rank": 4, "bank": 25}, "bank must be from 1 to 24"),
    ],
)
def test_refused_options(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        factorized(model_of(tmp_path), **options)


@pytest.mark.slow
def test_refused_models(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole")
    with pytest.raises(RecipeError, match="factored already"):
        factorized(factorized(model, rank=4), rank=4)
    uneven = model_of(tmp_path / "uneven", intermediate_size=32)
    with pytest.raises(RecipeError, match=r"32 x 24, and 32 is no multiple of the width 24"):
        factorized(uneven, rank=4)
    assert model.preprocessor is not None
    static, _ = calibrated(model, model.preprocessor.encode(ROWS))
    with pytest.raises(RecipeError, match="grid of integers"):
        factorized(static, rank=4)
    trained = QuantizeAwareTrain()
    rows = Rows(texts=tuple(tiny_texts(40)))
    with pytest.raises(RecipeError, match="put calibrate in its place"):
        trained.requires(factorized(model, rank=4), Context(rows, 0))
    for family, task, reason in [
        ("resnet", "image-classification", "no encoder layers"),
        ("xlnet", "text-classification", "copies of its weights"),
        ("mobilebert", "text-classification", "attention.self.value is 16 x 24"),
    ]:
        other = load_model(identify(str(tiny_checkpoint(tmp_path / family, family, task))))
        with pytest.raises(RecipeError, match=reason):
            factorized(other, rank=4)


@pytest.mark.parametrize("family", ["albert", "distilbert", "mpnet", "roberta", "vit"])
def test_other_families(family: str, tmp_path: Path) -> None:
    task = "image-classification" if family == "vit" else "text-classification"
    width = {"hidden_dim": 96} if family == "distilbert" else {"intermediate_size": 96}
    source = identify(str(tiny_checkpoint(tmp_path / "whole", family, task, **width)))
    model = load_model(source)
    after = factorized(model, "III", rank=24)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(Rows(images=pictures) if family == "vit" else ROWS)
    expected = reference_outputs(model, rows)
    np.testing.assert_allclose(reference_outputs(after, rows), expected, atol=1e-4)
    save_model(after, tmp_path / "after")
    loaded = load_model(identify(str(tmp_path / "after")))
    np.testing.assert_allclose(reference_outputs(loaded, rows), expected, atol=1e-4)


def test_blocks_that_are_gone_stay_gone(tmp_path: Path) -> None:
    model = model_of(tmp_path / "whole", 3)
    kept = everything(model)
    kept = [replace(kept[0], heads=[]), replace(kept[1], neurons=[]), kept[2]]
    pruned = model.with_module(cut(model, kept), "by hand")
    after = factorized(pruned, "III", rank=24)
    np.testing.assert_allclose(answers(after), answers(pruned), atol=1e-4)
    save_model(after, tmp_path / "saved")
    loaded = load_model(identify(str(tmp_path / "saved")))
    np.testing.assert_allclose(answers(loaded), answers(after), atol=1e-6)
    nothing = [replace(each, heads=[], neurons=[]) for each in kept]
    with pytest.raises(RecipeError, match="no layer has a matrix left"):
        factorized(model.with_module(cut(model, nothing), ""), "III", rank=4)


@pytest.mark.parametrize(
    ("options", "said", "parts"),
    [
        ({"method": "III", "rank": 4}, "as three products", 3),
        ({"method": "II", "rank": 6}, "as two products", 2),
        ({"method": "III", "left_rank": 24, "right_rank": 9}, "as two products, the core mult", 2),
        ({"method": "II", "rank": 20}, "whole again", 1),
    ],
)
def test_the_lineage_says_what_files_hold(
    options: dict[str, Any], said: str, parts: int, tmp_path: Path
) -> None:
    model = model_of(tmp_path / "whole", 1, intermediate_size=24)
    after = factorized(model, **options)
    assert f"exported files hold each matrix {said}" in after.lineage[-1]
    query = as_exported(after).module.bert.encoder.layer[0].attention.self.query  # type: ignore[index, union-attr]
    inside = [each for each in query.modules() if isinstance(each, torch.nn.Linear)]
    assert len(inside) == parts
