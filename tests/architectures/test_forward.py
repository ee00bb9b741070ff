"""The clean forward answers what the original model answers, for every family and task."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekit.data import Rows
from edgekit.model import Model, export_forward, identify, load_model, reference_outputs
from edgekit.preprocess import Encoded
from tests.tiny import IMAGE_FAMILIES, TEXT_FAMILIES, TEXT_TASKS, tiny_checkpoint, tiny_texts

# On a busy machine threads wait for each other longer than these tiny products take.
torch.set_num_threads(1)

TEXTS = tuple(tiny_texts(12, seed=3))
PAIRS = tuple(tiny_texts(12, seed=4))


def load(folder: Path, family: str, task: str, **settings: Any) -> Model:
    pair = settings.pop("pair", False)
    return load_model(identify(str(tiny_checkpoint(folder, family, task, **settings))), pair=pair)


def rows_for(model: Model, pair: bool = False) -> Rows:
    if model.task == "token-classification":
        return Rows(words=tuple(tuple(text.split()) for text in TEXTS))
    return Rows(texts=TEXTS, pairs=PAIRS if pair else None)


def age(folder: Path) -> None:
    """Make a checkpoint one of transformers 4."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "4.57.0"}))


def run(
    model: Model, encoded: Encoded, padding: int, decomposed_norm: bool
) -> np.ndarray[Any, Any]:
    """All rows in one batch, padded by ``padding`` more tokens; zeros where there is no token."""
    forward = export_forward(model, decomposed_norm=decomposed_norm)
    inputs = [
        torch.from_numpy(np.pad(array, ((0, 0), (0, padding)))) for array in encoded.arrays.values()
    ]
    with torch.inference_mode():
        outputs = forward(*inputs).numpy()
    if outputs.ndim == 3:
        assert encoded.lengths is not None
        for row, length in zip(outputs, encoded.lengths):
            row[length:] = 0
        outputs = outputs[:, : outputs.shape[1] - padding]
    return outputs


def assert_same(found: Any, expected: Any) -> None:
    """To 1e-5, of the largest output where that is above 1."""
    scale = max(1.0, float(np.abs(expected).max()))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * scale
    assert expected.std() > 0.05, "rows that are all alike prove nothing"


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize(
    "task", [*TEXT_TASKS, "pair", "transformers-4", "multi-label", "regression"]
)
def test_clean_forward_equals_the_original(family: str, task: str, tmp_path: Path) -> None:
    if task in TEXT_TASKS:
        model = load(tmp_path, family, task)
    elif task == "pair":
        model = load(tmp_path, family, "text-classification", pair=True)
    elif task == "transformers-4":
        tiny_checkpoint(tmp_path, family)
        age(tmp_path)
        model = load_model(identify(str(tmp_path)), pair=True)
    else:
        model = load(tmp_path, family, "text-classification", problem=task)
    encoded = model.preprocessor.encode(rows_for(model, pair=task in ("pair", "transformers-4")))  # type: ignore[union-attr]
    expected = reference_outputs(model, encoded)
    for decomposed_norm in (False, True):
        for padding in (0, 7):
            assert_same(run(model, encoded, padding, decomposed_norm), expected)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("version", [4, 5])
def test_reference_is_what_transformers_answers(family: str, version: int, tmp_path: Path) -> None:
    """Its own tokenizer and model, row by row and as a padded batch with its own mask code.

    Up to version 4 the tokenizers of ALBERT and XLNet made token types.
    """
    import transformers

    tiny_checkpoint(tmp_path, family)
    if version == 4:
        age(tmp_path)
    model = load_model(identify(str(tmp_path)), pair=True)
    rows = rows_for(model, pair=True)
    expected = reference_outputs(model, model.preprocessor.encode(rows))  # type: ignore[union-attr]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    original = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    types = True if version == 4 and family in ("albert", "xlnet") else None
    assert ("token_type_ids" in model.inputs) == bool(types or "token_type_ids" in tokenizer("a"))

    def answer(texts: Any, pairs: Any) -> Any:
        batch = tokenizer(
            list(texts), list(pairs), padding=True, return_tensors="pt", return_token_type_ids=types
        )
        with torch.inference_mode():
            return original(**batch).logits.numpy()

    alone = np.concatenate([answer([a], [b]) for a, b in zip(TEXTS, PAIRS)])
    assert_same(expected, alone)
    # MobileBERT looks at the next token's word, and takes the padding's for one.
    if family != "mobilebert":
        assert_same(expected, answer(TEXTS, PAIRS))


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_one_row_alone_is_the_row_in_the_batch(family: str, tmp_path: Path) -> None:
    model = load(tmp_path, family, "text-classification")
    encoded = model.preprocessor.encode(rows_for(model))  # type: ignore[union-attr]
    together = run(model, encoded, 0, False)
    for index in range(3):
        row = encoded.rows([index])
        assert row.lengths is not None
        cut = {name: array[:, : row.lengths[0]] for name, array in row.arrays.items()}
        alone = run(model, dataclasses.replace(row, arrays=cut), 0, False)
        assert np.abs(alone - together[[index]]).max() < 1e-5


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_image_forward_equals_the_original(family: str, tmp_path: Path) -> None:
    model = load(tmp_path, family, "image-classification")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 40, 50, 3), dtype=np.uint8)
    encoded = model.preprocessor.encode(Rows(images=pictures))  # type: ignore[union-attr]
    expected = reference_outputs(model, encoded)
    for decomposed_norm in (False, True):
        with torch.inference_mode():
            pixels = torch.from_numpy(encoded.arrays["pixel_values"])
            found = export_forward(model, decomposed_norm=decomposed_norm)(pixels).numpy()
        assert_same(found, expected)


def test_albert_layers_run_as_often_as_it_is_deep(tmp_path: Path) -> None:
    model = load(
        tmp_path,
        "albert",
        "text-classification",
        num_hidden_layers=6,
        num_hidden_groups=2,
        inner_group_num=2,
    )
    assert model.architecture is not None and model.architecture.layers is not None
    layers = model.architecture.layers(model.module.base_model)
    assert len(layers) == 12 and len({id(layer.query) for layer in layers}) == 4
    encoded = model.preprocessor.encode(rows_for(model))  # type: ignore[union-attr]
    assert_same(run(model, encoded, 3, True), reference_outputs(model, encoded))


@pytest.mark.parametrize(
    "variant",
    [
        {"use_bottleneck": False, "intra_bottleneck_size": 24, "true_hidden_size": 24},
        {"use_bottleneck_attention": True},
        {"trigram_input": False},
        {"normalization_type": "layer_norm"},
        {"classifier_activation": False},
    ],
)
def test_mobilebert_variants(variant: dict[str, Any], tmp_path: Path) -> None:
    model = load(tmp_path, "mobilebert", "text-classification", **variant)
    encoded = model.preprocessor.encode(rows_for(model))  # type: ignore[union-attr]
    assert_same(run(model, encoded, 3, True), reference_outputs(model, encoded))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_other_activations(name: str, tmp_path: Path) -> None:
    model = load(tmp_path, "bert", "text-classification", hidden_act=name)
    encoded = model.preprocessor.encode(rows_for(model))  # type: ignore[union-attr]
    assert_same(run(model, encoded, 0, False), reference_outputs(model, encoded))


def test_embeddings_are_unit_vectors_of_the_mean_state(tmp_path: Path) -> None:
    """Recomputed by hand from transformers' last hidden states."""
    import transformers

    model = load(tmp_path, "bert", "sentence-embedding")
    encoded = model.preprocessor.encode(Rows(texts=TEXTS[:1]))  # type: ignore[union-attr]
    original = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        states = original(torch.from_numpy(encoded.arrays["input_ids"]).long()).last_hidden_state
    mean = states.numpy()[0].mean(0)
    found = run(model, encoded, 5, False)[0]
    assert np.abs(found - mean / np.linalg.norm(mean)).max() < 1e-6
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


def test_fewer_words_keep_their_answers(tmp_path: Path) -> None:
    """Rows of the word table can go, on the meta device too, and the rest stays as it was."""
    model = load(tmp_path, "bert", "text-classification")
    assert model.architecture is not None
    kept = [0, *range(2, 120)]
    changed = model.architecture.keep_word_rows(model.module, kept)
    before, after = (model.architecture.word_embeddings(m) for m in (model.module, changed))
    assert torch.equal(after.weight, before.weight[kept])
    assert (
        changed.config.vocab_size == 119 and model.module.config.vocab_size == before.num_embeddings
    )
    assert changed.classifier.weight is model.module.classifier.weight
    outline = load_model(identify(str(tmp_path)), meta=True)
    small = model.architecture.keep_word_rows(outline.module, kept)
    assert {n: p.shape for n, p in small.named_parameters()} == {
        n: p.shape for n, p in changed.named_parameters()
    }


def test_forward_can_be_built_without_weights(tmp_path: Path) -> None:
    for family in (*TEXT_FAMILIES, *IMAGE_FAMILIES):
        task = "text-classification" if family in TEXT_FAMILIES else "image-classification"
        source = identify(str(tiny_checkpoint(tmp_path / family, family, task)))
        outline = load_model(source, meta=True)
        assert all(p.is_meta for p in outline.module.parameters())
        assert export_forward(outline, decomposed_norm=True) is not None


@pytest.mark.slow
def test_real_checkpoint(shared: Path) -> None:
    import csv

    model = load_model(identify(str(shared / "checkpoints" / "minilm-banking77")))
    with (shared / "data" / "banking77" / "test.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))[::10]
    rows = Rows(texts=tuple(row["text"] for row in table))
    encoded = model.preprocessor.encode(rows)  # type: ignore[union-attr]
    expected = reference_outputs(model, encoded)
    gold = np.array([model.labels.index(row["category"]) for row in table])
    assert (expected.argmax(1) == gold).mean() == pytest.approx(0.9708, abs=1e-4)
    some = encoded.rows(np.arange(0, len(table), 3))
    assert np.abs(run(model, some, 40, True) - expected[::3]).max() < 3e-5
