"""Sparse weights: how many, which, that they stay zero, and files that are smaller for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgekit.contents.onnx import load_onnx
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.plan.predict import predicted_bytes
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.prune.sparsify import Sparsify, kept_mask, pruned_gradually, scheduled
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts
from tests.tiny_training import Bag, bag, learn

ROWS = Rows(texts=tuple(tiny_texts(64)), labels=tuple("abc"[n % 3] for n in range(64)))
ENCODER = (".query.", ".key.", ".value.", ".dense.")


def sparse_names(weights: dict[str, Any]) -> list[str]:
    """The matrices of BERT's layers, by transformers' names."""
    inside = (name for name in weights if ".layer." in name and name.endswith(".weight"))
    return [name for name in inside if any(part in name for part in ENCODER)]


def zeros(weight: Any) -> int:
    return int((weight == 0).sum())


def bert(folder: Path, **config: Any) -> Model:
    return load_model(identify(str(tiny_checkpoint(folder, **config))))


def apply(text: str, model: Model, folder: Path | None = None) -> Model:
    if folder is not None:
        folder.mkdir()
    return apply_steps([parse_step(text).step], model, Context(ROWS, 0, folder=folder))


def state(model: Model) -> dict[str, Any]:
    return {name: t.numpy().copy() for name, t in model.module.state_dict().items()}


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(np.array),
    st.floats(0, 1),
)
def test_the_kept_are_the_largest_and_of_equals_the_first(numbers: Any, share: float) -> None:
    mask = kept_mask(torch.tensor(numbers, dtype=torch.float32), share).numpy()
    order = sorted(range(len(numbers)), key=lambda n: (-abs(numbers[n]), n))
    kept = order[: len(numbers) - round(share * len(numbers))]
    assert sorted(np.flatnonzero(mask)) == sorted(kept)


def test_the_share_rises_as_a_cubic() -> None:
    assert [scheduled(0.8, t) for t in (-1, 0, 0.5, 1, 2)] == pytest.approx([0, 0, 0.7, 0.8, 0.8])


def test_without_training_each_matrix_keeps_its_largest_numbers(tmp_path: Path) -> None:
    model = bert(tmp_path / "model")
    before, after = (
        state(model),
        state(apply("sparsify:sparsity=0.6,epochs=0", model, tmp_path / "s")),
    )
    names = sparse_names(before)
    assert len(names) == 12
    for name, weight in before.items():
        if name not in names:
            assert np.array_equal(after[name], weight), name
            continue
        flat, found = weight.reshape(-1), after[name].reshape(-1)
        kept = np.argsort(-np.abs(flat), kind="stable")[: flat.size - round(0.6 * flat.size)]
        expected = np.zeros_like(flat)
        expected[kept] = flat[kept]
        assert np.array_equal(found, expected), name


def test_training_meets_the_share_in_each_matrix_and_leaves_the_rest_dense(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    step = "sparsify:sparsity=0.7,epochs=4,batch=8,every=3,learning-rate=0.001"
    made = apply(step, load_model(identify(str(checkpoint))), tmp_path / "s")
    weights = state(made)
    names = sparse_names(weights)
    assert {abs(zeros(weights[n]) - round(0.7 * weights[n].size)) for n in names} == {0}
    original = load_file(checkpoint / "model.safetensors")
    dense = [name for name in original if name not in names and original[name].ndim == 2]
    assert all(zeros(weights[name]) <= zeros(original[name]) for name in dense)
    assert any(not np.array_equal(weights[name], original[name]) for name in dense)
    assert "70% zeros in each of 12 matrices" in made.lineage[0]


def test_a_stopped_training_ends_in_the_same_pattern_and_weights(tmp_path: Path) -> None:
    """Stopped while the share rises, again when the pattern is locked, then to the end."""

    def train(name: str, stop_at: int = 0) -> Bag:
        def on_progress(fraction: float, text: str) -> None:
            if text.startswith(f"step {stop_at} "):
                raise KeyboardInterrupt

        module = bag()
        matrices = [module.words.weight, module.head.weight]
        with pruned_gradually(module, matrices, 0.7, until=0.5, every=3) as after_step:
            learn(tmp_path / name, module, on_progress=on_progress, after_step=after_step)
        return module

    for stop_at in (10, 25):
        with pytest.raises(KeyboardInterrupt):
            train("cut", stop_at)
    cut, whole = train("cut").state_dict(), train("whole").state_dict()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    for name in ("words.weight", "head.weight"):
        assert zeros(whole[name].numpy()) == round(0.7 * whole[name].numel())


@pytest.mark.slow
def test_zeros_outlive_distill_and_integers_with_keep_zeros_alone(tmp_path: Path) -> None:
    sparse = apply("sparsify:sparsity=0.7,epochs=0", bert(tmp_path / "model"), tmp_path / "s")
    before = state(sparse)
    names = sparse_names(before)
    steps = {
        "distill": "distill:epochs=1,learning-rate=0.01,labels=0.5,keep-zeros=true",
        "train": "quantize-aware-train:scheme=int8-dynamic,epochs=1,keep-zeros=true",
    }
    for folder, step in steps.items():
        made = apply(step, sparse, tmp_path / folder)
        after = state(made)
        assert all((after[name][before[name] == 0] == 0).all() for name in names)
        assert any(not np.array_equal(after[name], before[name]) for name in names)
        assert made.sparsity == 0.7
    lost = apply("distill:epochs=1", sparse, tmp_path / "lost")
    assert sum(zeros(state(lost)[name]) for name in names) < sum(zeros(before[n]) for n in names)
    assert lost.sparsity == 0


def test_a_sparse_model_is_saved_and_says_so(tmp_path: Path) -> None:
    sparse = apply("sparsify:sparsity=0.7,epochs=0", bert(tmp_path / "model"), tmp_path / "s")
    save_model(sparse, tmp_path / "saved")
    again = load_model(identify(str(tmp_path / "saved")))
    assert again.sparsity == 0.7
    assert all(np.array_equal(state(again)[name], each) for name, each in state(sparse).items())


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["fp32", "int8-dynamic"])
def test_the_file_is_as_small_as_predicted_and_answers_as_before(
    tmp_path: Path, scheme: Any
) -> None:
    wide = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 3}
    source = identify(str(tiny_checkpoint(tmp_path / "model", "bert", **wide)))
    step = "sparsify:sparsity=0.85,epochs=0"
    model = load_model(source)
    sparse = apply(step, model, tmp_path / "s")
    outline = apply(step, load_model(source, meta=True))
    dense = export_artifact(model, tmp_path / "dense", "onnx", scheme)
    made = export_artifact(sparse, tmp_path / "sparse", "onnx", scheme)
    width = 4 if scheme == "fp32" else 1
    numbers = sum(state(model)[name].size for name in sparse_names(state(model)))
    kept = sum(int((state(sparse)[name] != 0).sum()) for name in sparse_names(state(sparse)))
    saved = dense.bytes - made.bytes
    assert saved >= width * numbers - (width + 1) * kept - 1000 * 18
    assert made.bytes == pytest.approx(predicted_bytes(outline, "onnx", scheme, ()), rel=0.02)

    import onnxruntime

    encoded = encode(sparse, Rows(texts=tuple(tiny_texts(8, seed=9))))
    cpu = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(made.path, providers=cpu)
    expanded = load_onnx(made.path).SerializeToString()
    plain = onnxruntime.InferenceSession(expanded, providers=cpu)
    expected = reference_outputs(sparse, encoded)
    for row in range(len(encoded)):
        assert encoded.lengths is not None
        length = int(encoded.lengths[row])
        feed = {n: a[row : row + 1, :length].astype(np.int64) for n, a in encoded.arrays.items()}
        found = session.run(None, feed)[0][0]
        assert np.array_equal(found, plain.run(None, feed)[0][0])
        if scheme == "fp32":
            assert np.abs(found - expected[row]).max() < 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsify:sparsity=1", "between 0 and 1"),
        ("sparsify:until=0", "until is a share"),
        ("sparsify:every=0", "every a number of steps"),
        ("sparsify:batch=0", "sparsify: batch must be above 0"),
        ("sparsify:labels=2", "sparsify: labels is a share"),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_step(text).step.requires(bert(tmp_path / "model"), Context(ROWS, 0))


@pytest.mark.slow
def test_it_is_for_encoders_with_rows_before_integers(tmp_path: Path) -> None:
    model = bert(tmp_path / "model")
    with pytest.raises(RecipeError, match="give --data"):
        Sparsify().requires(model, Context(None, 0))
    pictures = tiny_checkpoint(tmp_path / "cnn", "resnet", "image-classification")
    with pytest.raises(RecipeError, match="no encoder layers"):
        Sparsify(epochs=0).requires(load_model(identify(str(pictures))), Context(None, 0))
    on_grid = apply("quantize-aware-train:scheme=int8-dynamic,epochs=0.1", model, tmp_path / "q")
    with pytest.raises(RecipeError, match="grid of integers"):
        Sparsify(epochs=0).requires(on_grid, Context(None, 0))


@pytest.mark.parametrize("family", ["xlnet", "mobilebert"])
def test_a_family_with_matrices_out_of_reach_is_refused(family: str, tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path, family))))
    with pytest.raises(RecipeError, match=f"{family} has matrices in its layers that the step"):
        Sparsify(epochs=0).requires(model, Context(None, 0))


def test_a_model_is_as_sparse_as_it_says(tmp_path: Path) -> None:
    """After cuts, and after steps that fill zeros without a lock on them."""
    sparse = apply("sparsify:sparsity=0.8,epochs=0", bert(tmp_path / "model"), tmp_path / "s")
    cut = apply("prune-ffn:ratio=0.5,importance=magnitude", sparse, tmp_path / "cut")
    least = min(zeros(w) / w.size for n, w in state(cut).items() if n in sparse_names(state(cut)))
    assert cut.sparsity == pytest.approx(min(0.8, least))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(tiny_texts(40)))
    filled = apply(f"pretrain-mlm:text={text},epochs=0.5", sparse, tmp_path / "mlm")
    assert filled.sparsity == 0


@pytest.mark.slow
def test_what_learns_under_the_lock_is_nearer_than_pruning_at_once(tmp_path: Path) -> None:
    """At the same zeros, on texts that nothing learned from."""
    model = bert(tmp_path / "model")
    lock = ["sparsify:sparsity=0.8,epochs=0", "distill:epochs=6,learning-rate=0.01,keep-zeros=1"]
    rows = Rows(texts=tuple(tiny_texts(200)))
    steps = [parse_step(each).step for each in lock]
    once = apply_steps(steps[:1], model, Context(rows, 0, folder=tmp_path / "once"))
    taught = apply_steps(steps, model, Context(rows, 0, folder=tmp_path / "taught"))
    for name, weight in state(once).items():
        if name in sparse_names(state(once)):
            np.testing.assert_array_equal(weight == 0, state(taught)[name] == 0)
    others = Rows(texts=tuple(tiny_texts(60, seed=9)))
    wanted, raw, ours = (reference_outputs(m, encode(m, others)) for m in (model, once, taught))
    assert np.square(ours - wanted).mean() < 0.5 * np.square(raw - wanted).mean()
