"""Trimming a WordPiece vocabulary: what stays, what goes, and that no text loses a word."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.preprocess import TextPreprocessor
from edgekit.step import Context, apply_steps
from edgekit.steps.trim_vocabulary import TrimVocabulary, kept_tokens, rewrite_tokenizer
from tests.tiny import tiny_checkpoint

TRAIN = ("my card was stolen", "please help me", "exchange rate?")


def _trim(model: Model, texts: tuple[str, ...] = TRAIN, **options: object) -> Model:
    step = TrimVocabulary(**options)  # type: ignore[arg-type]
    return apply_steps([step], model, Context(Rows(texts=texts), seed=0))


def _vocabulary(model: Model) -> dict[str, int]:
    assert isinstance(model.preprocessor, TextPreprocessor)
    found: dict[str, int] = json.loads(model.preprocessor.tokenizer_json)["model"]["vocab"]
    return found


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(identify(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny"), "bert"))))


def test_used_special_and_single_tokens_stay_and_the_rest_goes(bert: Model) -> None:
    before, after = _vocabulary(bert), _vocabulary(_trim(bert))
    assert {"card", "stolen", "exchange", "[CLS]", "[SEP]", "[PAD]", "[UNK]"} <= set(after)
    assert {token for token in before if len(token.removeprefix("##")) == 1} <= set(after)
    assert "london" in before and "london" not in after
    assert sorted(after.values()) == list(range(len(after)))


def test_kept_rows_are_byte_identical(bert: Model) -> None:
    trimmed = _trim(bert)
    rows = bert.module.base_model.embeddings.word_embeddings.weight
    kept = trimmed.module.base_model.embeddings.word_embeddings.weight
    before = _vocabulary(bert)
    for token, index in _vocabulary(trimmed).items():
        assert rows[before[token]].equal(kept[index])


def test_training_text_gets_the_same_answers_from_a_saved_and_loaded_model(
    bert: Model, tmp_path: Path
) -> None:
    save_model(_trim(bert), tmp_path)
    loaded = load_model(identify(str(tmp_path)))
    rows = Rows(texts=TRAIN)
    assert bert.preprocessor is not None and loaded.preprocessor is not None
    expected = reference_outputs(bert, bert.preprocessor.encode(rows))
    found = reference_outputs(loaded, loaded.preprocessor.encode(rows))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert loaded.module.config.vocab_size == len(_vocabulary(loaded))


def test_min_count_drops_what_is_rare_and_words_keep_what_is_listed(
    bert: Model, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("london\nparis\n")
    texts = ("card card", "stolen")
    assert "stolen" not in _vocabulary(_trim(bert, texts, min_count=2))
    listed = _vocabulary(_trim(bert, texts, words=words))
    assert {"london", "paris", "card"} <= set(listed)


def test_common_keeps_the_first_whole_tokens_of_the_vocabulary(bert: Model) -> None:
    none, few, all_ = (set(_vocabulary(_trim(bert, common=n))) for n in (0, 5, 10_000))
    assert none < few < all_
    before = _vocabulary(bert)
    whole = [t for t in before if len(t.removeprefix("##")) > 1 and not t.startswith("[")]
    first = sorted(whole, key=lambda token: before[token])[:5]
    assert few == none | set(first)
    assert all_ == {token for token in before if not token.startswith("[unused")}


def test_the_outcome_has_the_same_shapes_on_the_meta_device(tmp_path: Path) -> None:
    source = identify(str(tiny_checkpoint(tmp_path, "distilbert")))
    real, outline = _trim(load_model(source)), _trim(load_model(source, meta=True))
    shapes = {name: p.shape for name, p in real.module.named_parameters()}
    assert shapes == {name: p.shape for name, p in outline.module.named_parameters()}
    assert all(p.is_meta for p in outline.module.parameters())


def test_what_it_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    roberta = load_model(identify(str(tiny_checkpoint(tmp_path / "r", "roberta"))))
    with pytest.raises(RecipeError, match="type BPE"):
        _trim(roberta)
    bert = load_model(identify(str(tiny_checkpoint(tmp_path / "b", "bert"))))
    with pytest.raises(RecipeError, match="--data"):
        apply_steps([TrimVocabulary()], bert, Context(None, 0))
    with pytest.raises(RecipeError, match="min-count"):
        _trim(bert, min_count=0)
    with pytest.raises(RecipeError, match="common"):
        _trim(bert, common=-1)
    with pytest.raises(RecipeError, match="word list"):
        _trim(bert, words=tmp_path / "none.txt")


_PIECES = st.lists(st.text("abcde", min_size=2, max_size=4), max_size=12, unique=True)


@settings(max_examples=60)
@given(_PIECES, _PIECES, st.data())
def test_no_text_gets_a_new_unknown(
    heads: list[str], tails: list[str], data: st.DataObject
) -> None:
    """Any vocabulary with all its single characters, any subset of used tokens, any text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    singles = [*"abcde", *(f"##{c}" for c in "abcde")]
    tokens = ["[UNK]", *singles, *heads, *(f"##{tail}" for tail in tails)]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = data.draw(st.sets(st.sampled_from(sorted(vocabulary.values()))))
    fields = json.loads(tokenizer.to_str())
    trimmed = Tokenizer.from_str(rewrite_tokenizer(fields, kept_tokens(fields, used)))
    text = data.draw(st.text("abcdex ", max_size=30))

    def unknown(tokenizer: Tokenizer) -> list[str]:
        encoding = tokenizer.encode(text)
        pairs = zip(encoding.tokens, encoding.offsets, strict=True)
        return [text[slice(*offsets)] for token, offsets in pairs if token == "[UNK]"]

    assert unknown(trimmed) == unknown(tokenizer)
