"""Trimming a vocabulary: what stays, what goes, and that no text loses a word."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.preprocess import TextPreprocessor
from edgekit.step import Context, apply_steps
from edgekit.steps.vocabulary.rewrite import kept_tokens, rewrite_tokenizer
from edgekit.steps.vocabulary.trim_vocabulary import TrimVocabulary
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
    bert = load_model(identify(str(tiny_checkpoint(tmp_path / "b", "bert"))))
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "card": 1}, unk_token="[UNK]"))
    assert isinstance(bert.preprocessor, TextPreprocessor)
    other = replace(bert, preprocessor=replace(bert.preprocessor, tokenizer_json=words.to_str()))
    with pytest.raises(RecipeError, match="type WordLevel"):
        _trim(other)
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


@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "albert", "xlnet"])
def test_other_kinds_of_vocabulary_give_the_same_answers_from_fewer_rows(
    family: str, tmp_path: Path
) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "whole", family))))
    trimmed = _trim(model, (*TRAIN, "Zürich 😀 cafe"))
    save_model(trimmed, tmp_path / "trimmed")
    loaded = load_model(identify(str(tmp_path / "trimmed")))
    rows = Rows(texts=(*TRAIN, "Zürich 😀 cafe"))
    assert model.preprocessor is not None and loaded.preprocessor is not None
    before, after = model.preprocessor.encode(rows), loaded.preprocessor.encode(rows)
    np.testing.assert_allclose(
        reference_outputs(loaded, after), reference_outputs(model, before), atol=1e-6
    )
    assert isinstance(loaded.preprocessor, TextPreprocessor)
    assert isinstance(model.preprocessor, TextPreprocessor)
    small = Tokenizer.from_str(loaded.preprocessor.tokenizer_json)
    whole = Tokenizer.from_str(model.preprocessor.tokenizer_json)
    for text in rows.texts or ():
        assert small.encode(text).tokens == whole.encode(text).tokens
    found = loaded.architecture.word_embeddings(loaded.module).weight  # type: ignore[union-attr]
    rows_before = model.architecture.word_embeddings(model.module).weight  # type: ignore[union-attr]
    assert small.get_vocab_size() == found.shape[0] < rows_before.shape[0]
    for token, index in small.get_vocab().items():
        assert (found[index] == rows_before[whole.get_vocab()[token]]).all()


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_rows_of_words_are_split_as_before(family: str, tmp_path: Path) -> None:
    """A word behind no space is another token in BPE, and the one that rows of words give."""
    model = load_model(
        identify(str(tiny_checkpoint(tmp_path, family, task="token-classification")))
    )
    rows = Rows(words=(("my", "card", "stolen"), ("transfer", "London")))
    trimmed = apply_steps([TrimVocabulary()], model, Context(rows, seed=0))
    assert model.preprocessor is not None and trimmed.preprocessor is not None
    before, after = model.preprocessor.encode(rows), trimmed.preprocessor.encode(rows)
    assert before.word_starts is not None and after.word_starts is not None
    for old, new in zip(before.word_starts, after.word_starts, strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_allclose(
        reference_outputs(trimmed, after), reference_outputs(model, before), atol=1e-6
    )


def test_positions_counted_from_the_padding_stay_where_they_are(tmp_path: Path) -> None:
    """A RoBERTa whose padding is its last special token: nothing before it may go."""
    folder = tiny_checkpoint(tmp_path / "whole", "roberta")
    fields = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = fields["model"]["vocab"]
    pad = vocabulary["london"]
    fields["added_tokens"].append({**fields["added_tokens"][1], "id": pad, "content": "london"})
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "london"}))
    model = load_model(identify(str(folder)))
    assert model.preprocessor is not None and model.preprocessor.pad_id == pad  # type: ignore[union-attr]
    assert _trim(model).preprocessor.pad_id == pad  # type: ignore[union-attr]


@pytest.mark.parametrize("family", ["roberta", "xlnet"])
def test_common_keeps_the_most_frequent_of_the_vocabulary(family: str, tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path, family))))
    assert isinstance(model.preprocessor, TextPreprocessor)
    fields = json.loads(model.preprocessor.tokenizer_json)["model"]
    if family == "roberta":
        first = {"".join(pair) for pair in fields["merges"][:9]}
    else:
        longer = [(s, p) for p, s in fields["vocab"] if len(p) > 1 and not p.startswith("<")]
        first = {piece for _, piece in sorted(longer, reverse=True)[:9]}
    trimmed = _trim(model, common=9)
    assert isinstance(trimmed.preprocessor, TextPreprocessor)
    kept = Tokenizer.from_str(trimmed.preprocessor.tokenizer_json).get_vocab()
    assert first <= set(kept)
