"""A text as a bag of n-grams: what an app has to do, and what it finds in the bundle."""

import collections
import itertools
import re

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.write import _explain_ngrams, app_files
from edgekit.data import Rows
from edgekit.errors import ModelError
from edgekit.model import reference_outputs
from edgekit.ngrams import most_frequent, ngram_ids, split_words
from edgekit.preprocess import NgramPreprocessor, read_ngrams
from tests.tiny_light import TEXTS, tiny_student

_SOME = st.lists(st.sampled_from(["a", "b", "c", "d e", "A?"]), max_size=12).map(" ".join)


@settings(max_examples=40)
@given(st.lists(_SOME, min_size=1, max_size=8), st.integers(1, 40))
def test_the_vocabulary_is_the_most_frequent_ngrams_and_ties_go_to_the_shorter(texts, size):
    counts: collections.Counter[tuple[str, ...]] = collections.Counter()
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]", text.lower())
        for length in range(1, 5):
            counts.update(zip(*(words[start:] for start in range(length))))
    ranked = sorted(counts.items(), key=lambda each: (-each[1], len(each[0]), " ".join(each[0])))
    expected = ["[PAD]", "[NONE]", *(" ".join(words) for words, _ in ranked[:size])]
    found = most_frequent(tuple(texts), size)
    assert list(found) == expected
    for each in found[2:]:
        *beginning, _ = each.split(" ")
        assert not beginning or " ".join(beginning) in found


@settings(max_examples=60)
@given(st.text(st.characters(max_codepoint=0x24FF, exclude_categories=("Cn",)), max_size=40))
def test_words_are_those_of_the_students_that_have_a_tokenizer(text):
    normal = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    pattern = tokenizers.Regex(r"[\p{L}\p{M}\p{N}]+|[\p{P}\p{S}]")
    split = tokenizers.pre_tokenizers.Split(pattern, "removed", invert=True)
    theirs = [word for word, _ in split.pre_tokenize_str(normal.normalize_str(text))]
    assert split_words(text) == theirs


def test_a_bag_has_no_order_but_its_ngrams_do():
    known = {each: number for number, each in enumerate(most_frequent(("not good at all",), 99))}
    back = dict(zip(known.values(), known))
    assert [back[each] for each in ngram_ids("NOT good", known)] == ["not", "not good", "good"]
    assert [back[each] for each in ngram_ids("good not not", known)] == ["good", "not", "not"]
    model, _ = tiny_student("ngram", rows=Rows(texts=("good not bad", "not good", "bad not good")))
    encoded = model.preprocessor.encode(Rows(texts=("not good", "good not")))
    one, other = reference_outputs(model, encoded)
    assert np.abs(one - other).max() > 1e-3
    length = int(encoded.lengths[0])
    first = encoded.arrays["input_ids"][0, :length]
    for order in itertools.islice(itertools.permutations(range(length)), 5):
        encoded.arrays["input_ids"][0, :length] = first[list(order)]
        np.testing.assert_allclose(reference_outputs(model, encoded)[0], one, atol=1e-6)


@pytest.mark.parametrize("text", ["", "  ", "quagga", "￼"])
def test_a_text_of_nothing_known_has_an_answer(text):
    model, _ = tiny_student("ngram", rows=Rows(texts=TEXTS[:4]))
    encoded = model.preprocessor.encode(Rows(texts=(text,)))
    assert encoded.arrays["input_ids"].tolist() == [[1]]
    assert np.isfinite(reference_outputs(model, encoded)).all()


def test_two_texts_share_the_room_of_a_row():
    # Of the second text there are a, b, c and d in the first row, a, a b and b in the next.
    lines = most_frequent(("a b c d",), 99)
    made = NgramPreprocessor(lines, 6, ("input_ids", "attention_mask", "token_type_ids"))
    encoded = made.encode(Rows(texts=("a b c d", "a"), pairs=("d c b a", "a b")))
    assert encoded.lengths.tolist() == [6, 4]
    assert encoded.arrays["attention_mask"].sum(1).tolist() == [6, 4]
    assert encoded.arrays["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]]


def test_the_code_in_the_bundle_gives_the_ids(tmp_path, monkeypatch):
    model, rows = tiny_student("ngram")
    (tmp_path / "ngrams.txt").write_text(app_files(model)["ngrams.txt"], "utf-8")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", _explain_ngrams(), re.DOTALL)
    assert code is not None
    app: dict = {}
    exec(code[1], app)
    encoded = model.preprocessor.encode(rows)
    for number, text in enumerate(rows.texts):
        expected = encoded.arrays["input_ids"][number, : encoded.lengths[number]].tolist()
        assert app["ngram_ids"](text, app["known"]) == expected


@pytest.mark.parametrize("content", ["", "a\nb\n", "[PAD]\n[NONE]\na\na\n", "\ud800", None])
def test_a_damaged_list_is_refused(tmp_path, content):
    path = tmp_path / "ngrams.txt"
    if content is not None:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ModelError, match="save the model again"):
        read_ngrams(path)
