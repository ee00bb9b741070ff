"""Smaller tokenizers of every kind, on random vocabularies and texts: the same tokens as before."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from edgekit.steps.vocabulary.rewrite import kept_tokens, rewrite_tokenizer, token_ids, unknown_id
from tests.tiny import tiny_tokenizer

_TEXTS = st.lists(st.text("abcdeABé ", max_size=25), min_size=1, max_size=8)


def _unigram(seed: int, *, byte_fallback: bool = False) -> Tokenizer:
    chance = random.Random(seed)
    pieces = ["".join(chance.choices("abcde▁", k=chance.randint(2, 4))) for _ in range(25)]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    names = dict.fromkeys(["<unk>", "<s>", "</s>", *bytes_, *"abcde▁", *pieces, "aé"])
    # Few different scores, so that there are ties.
    scored = [(name, -float(chance.randint(2, 8))) for name in names]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=byte_fallback))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def _bpe(seed: int, alphabet: list[str], **options: Any) -> Tokenizer:
    """Random merges of what is there already; the same text may be built in several ways."""
    chance = random.Random(seed)
    prefix = options.get("continuing_subword_prefix") or ""
    parts, merges = list(alphabet), {}
    letters = [part for part in alphabet if part.strip(prefix)[0] in "abcdeĠ"]
    for _ in range(40):
        left, right = chance.choice(letters), chance.choice(letters)
        if right.startswith(prefix) and len(left + right) <= 8:
            merges[left, right] = None
            letters.append(left + right[len(prefix) :])
            parts.append(letters[-1])
    names = dict.fromkeys(["<unk>", "<s>", "</s>", *parts])
    return Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, list(merges), **options))


def _byte_level(seed: int) -> Tokenizer:
    tokenizer = _bpe(seed, sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _marked(seed: int) -> Tokenizer:
    letters = [*"abcde", *(f"##{letter}" for letter in "abcde")]
    tokenizer = _bpe(seed, letters, unk_token="<unk>", continuing_subword_prefix="##")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _ended(seed: int) -> Tokenizer:
    letters = [*"abcde", *(f"{letter}</w>" for letter in "abcde")]
    chance = random.Random(seed)
    inner = list("abcde")
    merges = {}
    for _ in range(30):
        left, right = chance.choice(inner), chance.choice([*inner, *letters[5:]])
        merges[left, right] = None
        if not right.endswith("</w>") and len(left + right) < 6:
            inner.append(left + right)
        letters.append(left + right)
    names = {name: i for i, name in enumerate(dict.fromkeys(["<unk>", "<s>", "</s>", *letters]))}
    pairs = [pair for pair in merges if pair[0] in names and pair[1] in names]
    tokenizer = Tokenizer(models.BPE(names, pairs, unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


_KINDS = {
    "unigram": _unigram,
    "unigram of bytes": lambda seed: _unigram(seed, byte_fallback=True),
    "bpe of bytes": _byte_level,
    "bpe with continuations": _marked,
    "bpe with word ends": _ended,
}


@pytest.mark.parametrize("kind", list(_KINDS))
@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), _TEXTS)
def test_the_used_tokens_suffice_for_the_same_split(kind: str, seed: int, texts: list[str]) -> None:
    before = _KINDS[kind](seed)
    before.add_special_tokens([AddedToken("<s>"), AddedToken("</s>"), AddedToken("<extra>")])
    ids = [("<s>", before.token_to_id("<s>")), ("</s>", before.token_to_id("</s>"))]
    before.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ids)
    fields = json.loads(before.to_str())
    used = {i for text in texts for i in before.encode(text).ids}
    kept = kept_tokens(fields, used)
    after = Tokenizer.from_str(rewrite_tokenizer(fields, kept))
    assert after.get_vocab_size() == len(kept)
    for text in texts:
        old, new = before.encode(text), after.encode(text)
        assert new.tokens == old.tokens
        assert [kept[i] for i in new.ids] == old.ids
        assert new.offsets == old.offsets


def test_unknown_characters_cost_as_much_as_before() -> None:
    """The least score decides what an unknown character costs, so its piece stays though unused."""
    pieces = [("<unk>", 0.0), ("a", -2.0), ("b", -20.0), ("c", -20.0), ("bc", -2.0)]
    pieces += [("éb", -15.0), ("bbb", -40.0)]
    before = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    assert before.encode("aébc").tokens == ["a", "éb", "c"]
    fields = json.loads(before.to_str())
    kept = kept_tokens(fields, {*before.encode("aébc").ids, before.token_to_id("bc")})
    after = Tokenizer.from_str(rewrite_tokenizer(fields, kept))
    assert after.encode("aébc").tokens == ["a", "éb", "c"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_any_text_can_be_written_in_bytes_that_stay(seed: int, data: st.DataObject) -> None:
    """Whatever was used, byte-level BPE still writes every text, and reads it back."""
    before = _byte_level(seed)
    fields = json.loads(before.to_str())
    used = data.draw(st.sets(st.sampled_from(sorted(token_ids(fields)))))
    after = Tokenizer.from_str(rewrite_tokenizer(fields, kept_tokens(fields, used)))
    text = data.draw(st.text(max_size=12).filter(str.isprintable))
    assert after.decode(after.encode(text).ids) == text
    names = {token for token, i in before.get_vocab().items() if i in used}
    assert names <= set(after.get_vocab())


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "albert", "xlnet", "mpnet"])
def test_the_ids_of_special_tokens_follow_in_every_place(family: str) -> None:
    before = tiny_tokenizer(family).backend_tokenizer
    fields = json.loads(before.to_str())
    kept = kept_tokens(fields, set())
    after = Tokenizer.from_str(rewrite_tokenizer(fields, kept))
    for first, second in (("", ""), ("b", "c")):
        assert after.encode(first, second).tokens == before.encode(first, second).tokens
    unknown = unknown_id(json.loads(after.to_str()))
    if unknown is not None:
        old = unknown_id(fields)
        assert old is not None
        assert after.id_to_token(unknown) == before.id_to_token(old)
