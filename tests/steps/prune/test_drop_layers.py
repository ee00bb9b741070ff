"""Layers left out: the lists of the paper, the same weights, the function without them."""

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, export_forward, identify, load_model, reference_outputs, save_model
from edgekit.step import Context, apply_steps
from edgekit.steps.prune.drop_layers import DropLayers, contributions, depth_of, kept_layers
from tests.tiny import TEXT_FAMILIES, tiny_checkpoint, tiny_texts

ROWS = Rows(texts=tuple(tiny_texts(40)), labels=tuple("abc"[n % 3] for n in range(40)))

# Sajjad et al. 2020, figure 1, and what follows from its rules: layers that stay, from 0.
PAPER: dict[tuple[int, str, int], list[int]] = {
    (12, "top", 2): [*range(10)],
    (12, "top", 4): [*range(8)],
    (12, "top", 6): [*range(6)],
    (12, "even", 2): [*range(9), 10],
    (12, "even", 4): [0, 1, 2, 3, 4, 6, 8, 10],
    (12, "even", 6): [0, 2, 4, 6, 8, 10],
    (12, "odd", 2): [*range(8), 9, 11],
    (12, "odd", 4): [0, 1, 2, 3, 5, 7, 9, 11],
    (12, "odd", 6): [1, 3, 5, 7, 9, 11],
    (12, "symmetric", 2): [*range(5), *range(7, 12)],
    (12, "symmetric", 4): [*range(4), *range(8, 12)],
    (12, "symmetric", 6): [0, 1, 2, 9, 10, 11],
    (12, "bottom", 2): [*range(2, 12)],
    (12, "bottom", 4): [*range(4, 12)],
    (12, "bottom", 6): [*range(6, 12)],
    (6, "top", 1): [0, 1, 2, 3, 4],
    (6, "top", 2): [0, 1, 2, 3],
    (6, "top", 3): [0, 1, 2],
    (6, "even", 1): [0, 1, 2, 3, 4],
    (6, "even", 2): [0, 1, 2, 4],
    (6, "even", 3): [0, 2, 4],
    (6, "odd", 1): [0, 1, 2, 3, 5],
    (6, "odd", 2): [0, 1, 3, 5],
    (6, "odd", 3): [1, 3, 5],
    (6, "symmetric", 2): [0, 1, 4, 5],
    (6, "bottom", 1): [1, 2, 3, 4, 5],
    (6, "bottom", 2): [2, 3, 4, 5],
    (6, "bottom", 3): [3, 4, 5],
}


def model_of(folder: Path, family: str = "bert", depth: int = 6, **config: Any) -> Model:
    name = {"distilbert": "n_layers", "xlnet": "n_layer"}.get(family, "num_hidden_layers")
    return load_model(identify(str(tiny_checkpoint(folder, family, **{name: depth}, **config))))


def dropped(model: Model, folder: Path | None = None, **options: Any) -> Model:
    return apply_steps([DropLayers(**options)], model, Context(ROWS, 0, folder=folder))


@pytest.mark.parametrize(("depth", "strategy", "count"), PAPER)
def test_the_papers_lists(depth: int, strategy: str, count: int) -> None:
    assert kept_layers(strategy, depth, count) == PAPER[depth, strategy, count]


@given(
    st.sampled_from(["top", "bottom", "even", "odd", "symmetric"]),
    st.integers(2, 24),
    st.integers(-2, 26),
)
def test_a_count_is_met_or_refused(strategy: str, depth: int, count: int) -> None:
    half = strategy in ("even", "odd") and count > depth // 2
    uneven = strategy == "symmetric" and (depth - count) % 2 == 1
    if not 1 <= count < depth or half or uneven:
        with pytest.raises(RecipeError):
            kept_layers(strategy, depth, count)
        return
    kept = kept_layers(strategy, depth, count)
    assert kept == sorted(set(kept)) and len(kept) == depth - count
    if strategy == "symmetric":
        assert kept == [depth - 1 - layer for layer in kept][::-1]


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_what_stays_is_as_it_was_and_loads_again(family: str, tmp_path: Path) -> None:
    depth = 4
    model = model_of(tmp_path / "whole", family, depth)
    after = dropped(model, strategy="odd", count=2)
    save_model(after, tmp_path / "dropped")
    loaded = load_model(identify(str(tmp_path / "dropped")))
    assert depth_of(loaded) == 2
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(ROWS)
    expected = reference_outputs(after, rows)
    np.testing.assert_allclose(reference_outputs(loaded, rows), expected, atol=1e-6)
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    rest = load_file(tmp_path / "dropped" / "model.safetensors")
    if family == "albert":
        assert {n: v.tobytes() for n, v in whole.items()} == {
            n: v.tobytes() for n, v in rest.items()
        }
        return
    layers = by_layer(whole)
    assert by_layer(rest) == {0: layers[1], 1: layers[3]}
    others = {n: v.tobytes() for n, v in rest.items() if layer_of(n) is None}
    assert others == {n: v.tobytes() for n, v in whole.items() if layer_of(n) is None}


def layer_of(name: str) -> int | None:
    """The number in ``encoder.layer.3.…``; nothing else in these families is numbered so."""
    parts = name.split(".")
    numbered = [int(b) for a, b in itertools.pairwise(parts) if a == "layer" and b.isdecimal()]
    return numbered[0] if numbered else None


def by_layer(tensors: dict[str, np.ndarray[Any, Any]]) -> dict[int, dict[str, str]]:
    found: dict[int, dict[str, str]] = {}
    for name, values in tensors.items():
        layer = layer_of(name)
        if layer is not None:
            part = name.split(f"layer.{layer}.", 1)[1]
            found.setdefault(layer, {})[part] = hashlib.sha256(values.tobytes()).hexdigest()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_the_file_is_the_model_with_identities_in_place_of_layers(
    format: Any, tmp_path: Path
) -> None:
    from tests.export.test_onnx import run

    model = model_of(tmp_path / "whole")
    after = dropped(model, strategy="symmetric", count=2)
    assert model.preprocessor is not None
    encoded = model.preprocessor.encode(ROWS)
    feeds = {name: array.astype(np.int64) for name, array in encoded.arrays.items()}
    forward: Any = export_forward(model)
    layers = forward.encoder.layers
    forward.encoder.layers = tuple(layers[n] for n in (0, 1, 4, 5))
    with torch.no_grad():
        expected = forward(*(torch.from_numpy(feeds[name]) for name in model.inputs)).numpy()
    made = export_artifact(after, tmp_path / "out", format, "fp32", ())
    if format == "onnx":
        answers = run(made.path, feeds)
    else:
        loaded = torch.jit.load(str(made.path))
        answers = loaded(*(torch.from_numpy(feeds[name]) for name in model.inputs)).numpy()
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_parameters_fall_by_whole_layers(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    wide, inner = model.module.config.hidden_size, model.module.config.intermediate_size

    def count(each: Model) -> int:
        return sum(parameter.numel() for parameter in each.module.parameters())

    layer = 4 * wide**2 + 2 * wide * inner + inner + 9 * wide
    assert count(model) - count(dropped(model, count=3)) == 3 * layer


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_a_planted_identity_is_found(family: str, tmp_path: Path) -> None:
    model = model_of(tmp_path, family)
    plant_identity(model, family, 3)
    context = Context(ROWS, 0, folder=tmp_path)
    cosines = contributions(model, context)
    assert cosines[3] == pytest.approx(1, abs=1e-5) and cosines[3] == max(cosines)
    assert cosines == pytest.approx(by_numpy(model, -1 if family == "xlnet" else 0), abs=1e-5)
    after = dropped(model, tmp_path, strategy="contribution", threshold=0.9999)
    assert depth_of(after) == 5
    low, high = (kept_by(cosines, threshold) for threshold in (0.9, 0.99))
    assert low <= high


def kept_by(cosines: list[float], threshold: float) -> set[int]:
    return {layer for layer, cosine in enumerate(cosines) if cosine <= threshold}


def plant_identity(model: Model, family: str, layer: int) -> None:
    """Norms of one and zero everywhere, so that a state stays as it is where nothing is added."""
    module: Any = model.module
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.weight.fill_(1)
                part.bias.zero_()
        if family == "xlnet":
            chosen = module.base_model.layer[layer]
            zero = (chosen.rel_attn.o, chosen.ff.layer_2.weight, chosen.ff.layer_2.bias)
        else:
            chosen = module.base_model.encoder.layer[layer]
            zero = (
                *chosen.attention.output.dense.parameters(),
                *chosen.output.dense.parameters(),
            )
        for tensor in zero:
            tensor.zero_()


def by_numpy(model: Model, place: int) -> list[float]:
    """The cosines, row by row, from the hidden states that transformers returns."""
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(ROWS)
    assert rows.lengths is not None
    sums: Any = 0
    for row, length in enumerate(rows.lengths):
        inputs = {
            name: torch.from_numpy(array[row : row + 1, :length].astype(np.int64))
            for name, array in rows.arrays.items()
        }
        with torch.no_grad():
            states = model.module.base_model(**inputs, output_hidden_states=True).hidden_states
        vectors = [state[0, place].numpy().astype(np.float64) for state in states]
        sums = sums + np.array(
            [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.pairwise(vectors)]
        )
    found: list[float] = (sums / len(rows)).tolist()
    return found


def test_the_search_drops_what_costs_nothing(tmp_path: Path) -> None:
    model = model_of(tmp_path / "model")
    plant_identity(model, "bert", 5)
    plant_identity(model, "bert", 4)
    answers = reference_outputs(model, model.preprocessor.encode(ROWS))  # type: ignore[union-attr]
    labels = tuple("abc"[n] for n in answers.argmax(1))
    rows = Rows(texts=ROWS.texts, labels=labels)
    context = Context(rows, 0, folder=tmp_path)
    after = apply_steps([DropLayers(within=0.0)], model, context)
    assert depth_of(after) <= 4
    assert "whole 100.00%" in after.lineage[-1] and "2 dropped 100.00%" in after.lineage[-1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give either count"),
        ({"count": 0}, "from 1 to 5"),
        ({"count": 6}, "from 1 to 5"),
        ({"count": 1, "within": 0.1}, "give either count"),
        ({"count": 3, "strategy": "symmetric"}, "odd"),
        ({"count": 4, "strategy": "even"}, "at most 3"),
        ({"count": 2, "strategy": "contribution"}, "outcome"),
        ({"strategy": "contribution", "threshold": 1.5}, "between 0 and 1"),
        ({"within": 2.0}, "share from 0 to 1"),
    ],
)
def test_refusals(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=said):
        dropped(model_of(tmp_path), **options)


def test_a_convolutional_model_has_no_layers(tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path, "resnet", "image-classification"))))
    with pytest.raises(RecipeError, match="no stack of layers"):
        apply_steps([DropLayers(count=1)], model, Context(None, 0))


def test_a_refusal_names_counts_that_can_be() -> None:
    for count in (1, 3):
        with pytest.raises(RecipeError, match=rf"4 - {count} is odd; drop 2$"):
            kept_layers("symmetric", 4, count)
    with pytest.raises(RecipeError, match=r"drop 2 or 4$"):
        kept_layers("symmetric", 6, 3)
