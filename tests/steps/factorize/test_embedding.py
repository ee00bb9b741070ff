"""A narrow word table: as near as a table of its rank can be, smaller on disk, and trimmable."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgekit import factored, structure
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.plan.predict import weight_bytes
from edgekit.step import Context, Step, apply_steps
from edgekit.steps.distill.distill import Distill
from edgekit.steps.factorize.embedding import FactorizeEmbedding
from edgekit.steps.vocabulary.trim_vocabulary import TrimVocabulary
from tests.static_cases import calibrated
from tests.tiny import TEXT_FAMILIES, tiny_checkpoint, tiny_texts

ROWS = Rows(texts=tuple(tiny_texts(8)))


def changed(model: Model, *steps: Step, folder: Path | None = None) -> Model:
    return apply_steps(steps, model, Context(ROWS, 0, folder=folder))


def answers(model: Model) -> Any:
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(ROWS))


def table_of(model: Model) -> Any:
    assert model.architecture is not None
    return model.architecture.word_embeddings(model.module).weight.detach().numpy()


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_full_rank_is_the_original_and_loads_again(family: str, tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole", family))))
    after = changed(model, FactorizeEmbedding(table_of(model).shape[1]))
    np.testing.assert_allclose(answers(after), answers(model), atol=1e-5)
    save_model(after, tmp_path / "after")
    loaded = load_model(identify(str(tmp_path / "after")))
    np.testing.assert_allclose(answers(loaded), answers(after), atol=1e-6)
    rows, width = table_of(model).shape
    whole, rest = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "after"))
    new = rest.keys() - whole.keys()
    assert sum(rest[name].size for name in new) == rows * width + width * width
    assert all(rest[n].tobytes() == v.tobytes() for n, v in whole.items() if n in rest)
    assert len(whole.keys() - rest.keys()) == 1


@pytest.mark.parametrize("rank", [1, 7, 20])
def test_the_error_is_what_the_singular_values_leave(rank: int, tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole"))))
    save_model(changed(model, FactorizeEmbedding(rank)), tmp_path / "after")
    tensors = load_file(tmp_path / "after" / "model.safetensors")
    name = "bert.embeddings.word_embeddings"
    left, right = tensors[f"{name}.left.weight"], tensors[f"{name}.right.weight"]
    table = table_of(model)
    assert left.shape == (len(table), rank) and right.shape == (24, rank)
    tail = np.linalg.svd(table.astype(np.float64), compute_uv=False)[rank:]
    error = np.linalg.norm(table - left.astype(np.float64) @ right.T)
    assert error == pytest.approx(np.linalg.norm(tail), rel=1e-4)


def test_the_vocabulary_may_be_trimmed_before_or_after(tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole"))))
    narrow, trim = FactorizeEmbedding(8), TrimVocabulary()
    later = changed(model, narrow, trim)
    assert len(table_of(later)) < len(table_of(model))
    np.testing.assert_allclose(answers(later), answers(changed(model, narrow)), atol=1e-6)
    save_model(later, tmp_path / "later")
    loaded = load_model(identify(str(tmp_path / "later")))
    np.testing.assert_allclose(answers(loaded), answers(later), atol=1e-6)
    # Before, the rank is spent on the tokens that stay.
    kept = table_of(changed(model, trim))
    earlier = changed(model, trim, narrow)
    assert np.linalg.norm(product_of(earlier) - kept) < np.linalg.norm(product_of(later) - kept)


def product_of(model: Model) -> Any:
    parts: Any = model.module.get_submodule("bert.embeddings.word_embeddings")
    return (parts.left.weight @ parts.right.weight.T).detach().numpy()


def test_shapes_alone_say_how_large_it_is(tmp_path: Path) -> None:
    source = identify(str(tiny_checkpoint(tmp_path / "whole")))
    outline = changed(load_model(source, meta=True), FactorizeEmbedding(8))
    save_model(changed(load_model(source), FactorizeEmbedding(8)), tmp_path / "after")
    tensors = load_file(tmp_path / "after" / "model.safetensors")
    assert weight_bytes(outline) == sum(each.nbytes for each in tensors.values())


def test_the_documented_lines_load_it_without_edgekit(tmp_path: Path) -> None:
    from safetensors.torch import load_file as load_torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from tests.steps.factorize.test_factorize import documented

    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole"))))
    after = changed(model, TrimVocabulary(), FactorizeEmbedding(8))
    save_model(after, tmp_path / "after")
    lines = documented(structure.__doc__)
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
    ids = torch.randint(5, 40, (3, 7))
    with torch.no_grad():
        found, expected = names["model"].eval()(ids).logits, after.module(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "tflite", "torchscript"])
def test_files_answer_alike(format: Any, tmp_path: Path) -> None:
    from tests.export import test_onnx, test_torchscript
    from tests.export.test_tflite import run_all

    source = tiny_checkpoint(tmp_path / "whole", num_hidden_layers=1)
    model = changed(load_model(identify(str(source))), FactorizeEmbedding(8))
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(ROWS)
    feeds = {name: rows.arrays[name].astype(np.int64) for name in model.inputs}
    schemes = ["fp32", "int8-dynamic"] if format == "torchscript" else ["fp32", "int8-static"]
    for scheme in schemes:
        scheme_: Any = scheme
        written = calibrated(model, rows)[0] if scheme == "int8-static" else model
        file = export_artifact(written, tmp_path / scheme, format, scheme_, any_length=True)
        if format == "tflite":
            found = np.array(run_all(file.path, rows, model.inputs))
        else:
            run = (test_onnx if format == "onnx" else test_torchscript).run
            found = run(file.path, feeds)
        near = 1e-4 if scheme == "fp32" else 0.3
        np.testing.assert_allclose(found, answers(model), atol=near)


def test_distillation_trains_both_parts(tmp_path: Path) -> None:
    rows = Rows(texts=tuple(tiny_texts(80)))
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole", num_hidden_layers=1))))
    narrow = FactorizeEmbedding(4)
    context = Context(rows, 0, folder=tmp_path)
    raw = apply_steps([narrow], model, context)
    taught = apply_steps([narrow, Distill(epochs=4, learning_rate=3e-3)], model, context)
    for part in ("left", "right"):
        name = f"bert.embeddings.word_embeddings.{part}.weight"
        assert not raw.module.get_parameter(name).equal(taught.module.get_parameter(name))
    assert np.abs(answers(taught) - answers(model)).mean() < (
        np.abs(answers(raw) - answers(model)).mean()
    )


@pytest.mark.parametrize(("rank", "said"), [(0, "from 1 to 24, is 0"), (25, "is 25")])
def test_a_rank_beyond_the_table_is_refused(rank: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        changed(load_model(identify(str(tiny_checkpoint(tmp_path)))), FactorizeEmbedding(rank))


@pytest.mark.slow
def test_refused_models(tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "bert"))))
    with pytest.raises(RecipeError, match="factored already"):
        changed(model, FactorizeEmbedding(8), FactorizeEmbedding(4))
    assert model.preprocessor is not None
    static, _ = calibrated(model, model.preprocessor.encode(ROWS))
    with pytest.raises(RecipeError, match="grid of integers"):
        changed(static, FactorizeEmbedding(8))
    pictures = load_model(
        identify(str(tiny_checkpoint(tmp_path / "vit", "vit", "image-classification")))
    )
    with pytest.raises(RecipeError, match="no word table"):
        changed(pictures, FactorizeEmbedding(8))
