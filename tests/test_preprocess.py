"""Rows become the inputs that transformers' own preprocessing makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.data import Rows
from edgekit.errors import DataError, ModelError
from edgekit.model import identify, load_model
from edgekit.preprocess import Encoded, TextPreprocessor, image_preprocessor
from tests.tiny import IMAGE_FAMILIES, TEXT_FAMILIES, tiny_checkpoint, tiny_texts, tiny_tokenizer


def preprocessor(folder: Path, family: str, task: str, **settings: Any) -> Any:
    source = identify(str(tiny_checkpoint(folder, family, task)))
    return load_model(source, meta=True, **settings).preprocessor


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("pair", [False, True])
def test_text_is_encoded_as_by_transformers(family: str, pair: bool, tmp_path: Path) -> None:
    texts, pairs = tiny_texts(8, seed=1, longest=40), tiny_texts(8, seed=2, longest=40)
    made = preprocessor(tmp_path, family, "text-classification", pair=pair)
    encoded = made.encode(Rows(texts=tuple(texts), pairs=tuple(pairs) if pair else None))
    tokenizer = tiny_tokenizer(family)
    tokenizer.padding_side = "right"
    expected = tokenizer(
        texts, pairs if pair else None, truncation=True, max_length=64, padding=True
    )
    for name, array in encoded.arrays.items():
        assert array.dtype == np.int32
        real = encoded.arrays["attention_mask"] == 1
        assert np.array_equal(array[real], np.array(expected[name])[real])
    assert list(encoded.lengths) == [sum(row) for row in expected["attention_mask"]]
    assert (
        encoded.arrays["input_ids"].shape == (8, max(encoded.lengths))
        and max(encoded.lengths) == 64
    )
    reads_types = pair and family in ("bert", "electra", "mobilebert")
    assert ("token_type_ids" in encoded.arrays) == reads_types


def test_length_can_be_cut_but_not_beyond_the_position_table(tmp_path: Path) -> None:
    made = preprocessor(tmp_path, "roberta", "text-classification")
    rows = Rows(texts=("card " * 200,))
    assert made.max_length == 64
    assert made.encode(rows, max_length=10).lengths.tolist() == [10]
    assert made.encode(rows, max_length=100).lengths.tolist() == [64]


def test_first_tokens_of_words_are_found(tmp_path: Path) -> None:
    made = preprocessor(tmp_path, "bert", "token-classification")
    encoded = made.encode(Rows(words=(("my", "gxa", "card"), ("card", "\u200b", "bank"))))
    assert [starts.tolist() for starts in encoded.word_starts] == [[1, 2, 5], [1, -1, 2]]
    cut = made.encode(Rows(words=(("my", "gxa", "card"),)), max_length=4)
    assert cut.word_starts[0].tolist() == [1, 2, -1]


def test_a_pair_of_an_embedding_model_is_two_rows(tmp_path: Path) -> None:
    made = preprocessor(tmp_path, "bert", "sentence-embedding", pair=True)
    apart = made.encode(Rows(texts=("my card", "help"), pairs=("a bank", "me")))
    alone = made.encode(Rows(texts=("my card", "help", "a bank", "me")))
    assert tuple(apart.arrays) == ("input_ids", "attention_mask")
    assert np.array_equal(apart.arrays["input_ids"], alone.arrays["input_ids"])


def test_rows_can_be_picked() -> None:
    encoded = Encoded(
        {"input_ids": np.arange(8, dtype=np.int32).reshape(4, 2)},
        np.array([1, 2, 1, 2], np.int32),
        tuple(np.array([i]) for i in range(4)),
    )
    for index in ([1, 3], slice(1, None, 2), np.array([False, True, False, True])):
        picked = encoded.rows(index)
        assert len(picked) == 2 and picked.lengths is not None and picked.word_starts is not None
        assert picked.arrays["input_ids"].tolist() == [[2, 3], [6, 7]]
        assert picked.lengths.tolist() == [2, 2]
        assert [starts.tolist() for starts in picked.word_starts] == [[1], [3]]


def test_no_rows_and_empty_texts(tmp_path: Path) -> None:
    made = preprocessor(tmp_path, "bert", "text-classification")
    assert isinstance(made, TextPreprocessor)
    assert len(made.encode(Rows(texts=()))) == 0
    lengths = made.encode(Rows(texts=("", "card"))).lengths
    assert lengths is not None and lengths.tolist() == [2, 3]


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_pictures_are_prepared_as_by_transformers(family: str, tmp_path: Path) -> None:
    import transformers

    made = preprocessor(tmp_path, family, "image-classification")
    generator = np.random.default_rng(0)
    for height, width in ((32, 32), (40, 57), (90, 64), (20, 25)):
        pictures = generator.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        found = made.encode(Rows(images=pictures)).arrays["pixel_values"]
        own = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        expected = own(list(pictures), return_tensors="np")["pixel_values"]
        assert found.dtype == np.float32 and found.shape == (2, 3, 32, 32)
        assert np.abs(found - expected).max() < 1e-6


def test_grey_pictures_fill_three_channels_and_colour_fits_one() -> None:
    settings = {"size": {"height": 4, "width": 4}, "image_mean": [0.5], "image_std": [0.5]}
    grey = np.full((1, 8, 8, 1), 255, np.uint8)
    three = image_preprocessor(settings | {"image_mean": 0.5, "image_std": 0.5}, 3, "here")
    assert (three.encode(Rows(images=grey)).arrays["pixel_values"] == 1).all()
    one = image_preprocessor(settings, 1, "here")
    colour = np.full((1, 8, 8, 3), 255, np.uint8)
    assert one.encode(Rows(images=colour)).arrays["pixel_values"].shape == (1, 1, 4, 4)
    with pytest.raises(DataError, match="3 channels"):
        one.encode(Rows(images=np.zeros((1, 8, 8, 2), np.uint8)))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"size": {"shortest_edge": 36}},
        {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": 32},
        {"size": {"height": 36, "width": 36}, "do_center_crop": True, "crop_size": 32},
    ],
)
def test_settings_without_one_size_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="here "):
        image_preprocessor(settings, 3, "here")
