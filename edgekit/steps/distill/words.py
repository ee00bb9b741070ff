"""A light student's own words, from the training text alone, and what the teacher knows of them.

Rules:

1. A text is put into NFC, and into lower case where the teacher's tokenizer does not tell cases
   apart. Its words are those of ``edgekit.ngrams``; in tagging each word of the row is one.
2. The vocabulary is [PAD], [UNK], [CLS] and [SEP], then the words of the training text: most
   frequent first, of those as frequent by code points.
3. A text begins with [CLS], so that an empty one has an answer too; [SEP] stands between two.
4. A word's first vector is the mean of the teacher's vectors for the tokens that the word has
   there. All are centred, turned to their principal axes and cut to the student's width, and
   scaled to a mean square of 1. The special tokens have zeros, which is the mean.
5. With ``pieces`` the tokens are the teacher's own instead, as ``trim-vocabulary`` cuts them: the
   most frequent ones of the training text, where there is room for more the most frequent ones of
   the vocabulary, and whatever spells all other words. A token's first vector is the teacher's,
   reduced by rule 4.
"""

from __future__ import annotations

import collections
import functools
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.preprocess import TextPreprocessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgekit.data import Rows
    from edgekit.model import Model

PAD, UNKNOWN, FIRST, BETWEEN = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORD = r"[\p{L}\p{M}\p{N}]+|[\p{P}\p{S}]"
# Rows of a table whose axes are worked out exactly.
_MOST = 20_000


def word_preprocessor(
    model: Model, rows: Rows, size: int, max_length: int, *, types: bool
) -> TextPreprocessor:
    """The student's tokenizer: at most ``size`` words and the four special tokens.

    types: whether the student asks which of two texts a word is in.
    """
    texts = (*(rows.texts or ()), *(rows.pairs or ()), *(rows.words or ()))
    tokenizer_json = _tokenizer(texts, size, _ignores_case(model))
    return TextPreprocessor(
        tokenizer_json=tokenizer_json,
        max_length=max_length,
        pad_id=SPECIAL.index(PAD),
        inputs=("input_ids", "attention_mask", *(("token_type_ids",) if types else ())),
    )


def piece_preprocessor(
    model: Model, rows: Rows, size: int, max_length: int, *, types: bool
) -> TextPreprocessor | None:
    """The model's own tokenizer, cut down by rule 5 to about ``size`` tokens.

    ``None`` where it reads whole words itself.
    """
    own = model.preprocessor
    if not isinstance(own, TextPreprocessor):
        return None
    texts = (*(rows.texts or ()), *(rows.pairs or ()), *(rows.words or ()))
    found = _cut(own.tokenizer_json, own.pad_id, texts, size)
    if found is None:
        return None
    return TextPreprocessor(
        tokenizer_json=found[0],
        max_length=max_length,
        pad_id=found[1],
        inputs=("input_ids", "attention_mask", *(("token_type_ids",) if types else ())),
    )


@functools.lru_cache(maxsize=4)
def _cut(
    tokenizer_json: str, pad_id: int, texts: tuple[Any, ...], size: int
) -> tuple[str, int] | None:
    """The tokenizer of rule 5, and its padding. Plans ask several times."""
    from edgekit.steps.vocabulary.rewrite import KINDS, kept_tokens, rewrite_tokenizer
    from edgekit.steps.vocabulary.trim_vocabulary import token_counts

    fields = json.loads(tokenizer_json)
    if fields["model"]["type"] not in KINDS:
        return None
    counts = token_counts(tokenizer_json, texts)
    used = sorted(counts, key=lambda token: (-counts[token], token))[:size]
    kept = kept_tokens(fields, {*used, pad_id}, common=size - len(used))
    return rewrite_tokenizer(fields, kept), kept.index(pad_id)


@functools.lru_cache(maxsize=4)
def _tokenizer(texts: tuple[Any, ...], size: int, lower: bool) -> str:
    """``tokenizer.json`` by rules 1 to 3. Plans ask several times."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    of_words = bool(texts) and not isinstance(texts[0], str)
    normal = [normalizers.NFC(), *([normalizers.Lowercase()] if lower else [])]
    normalizer = normalizers.Sequence(normal)
    splitter = (
        pre_tokenizers.Split(Regex(r"\s+"), "removed")
        if of_words
        else pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    )
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        for part in text if of_words else (text,):
            normal_text = normalizer.normalize_str(part)
            counts.update(word for word, _ in splitter.pre_tokenize_str(normal_text))
    for token in SPECIAL:
        counts.pop(token, None)
    words = sorted(counts, key=lambda word: (-counts[word], word))[:size]
    ids = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{FIRST} $A",
        pair=f"{FIRST}:0 $A:0 {BETWEEN}:1 $B:1",
        special_tokens=[(FIRST, ids[FIRST]), (BETWEEN, ids[BETWEEN])],
    )
    made: str = tokenizer.to_str()
    return made


def words_of(preprocessor: TextPreprocessor) -> list[str]:
    """The words by their ids, special tokens included."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(preprocessor.tokenizer_json).get_vocab(with_added_tokens=True)
    return sorted(ids, key=ids.__getitem__)


def first_vectors(model: Model, reader: TextPreprocessor, width: int) -> Any:
    """float32 [tokens, width] for a student's reader, by rule 4 or 5; ``None`` as there."""
    from tokenizers import Tokenizer

    words = words_of(reader)
    if json.loads(reader.tokenizer_json)["model"]["type"] == "WordLevel":
        return word_vectors(model, words, width, len(SPECIAL))
    if model.architecture is None or not isinstance(model.preprocessor, TextPreprocessor):
        return None
    table = model.architecture.word_embeddings(model.module).weight.detach().numpy()
    known = Tokenizer.from_str(model.preprocessor.tokenizer_json).get_vocab()
    vectors = table[[known[word] for word in words]]
    return _reduced(vectors.astype(np.float64), len(words), width, 0)


def word_vectors(model: Model, words: Sequence[str], width: int, special: int) -> Any:
    """float32 [words, width] by rule 4; ``None`` where the teacher has no table that tells words.

    special: how many of the words are special tokens: [PAD], [UNK], others.
    """
    if model.architecture is None or not isinstance(model.preprocessor, TextPreprocessor):
        return None
    from tokenizers import Tokenizer

    table = model.architecture.word_embeddings(model.module).weight.detach().numpy()
    tokenizer = Tokenizer.from_str(model.preprocessor.tokenizer_json)
    encodings = tokenizer.encode_batch(list(words[special:]), add_special_tokens=False)
    means = [table[each.ids].mean(0) if each.ids else table.mean(0) for each in encodings]
    return _reduced(np.asarray(means, np.float64), len(words), width, special)


def _reduced(means: Any, count: int, width: int, special: int) -> Any:
    found = np.zeros((count, width), np.float32)
    if len(means) < 2:
        return found
    centred = means - means.mean(0)
    # Of axes only the directions matter, so that the most frequent words will do.
    _, _, axes = np.linalg.svd(centred[:_MOST], full_matrices=False)
    reduced = centred @ axes[:width].T
    scale = np.sqrt((reduced**2).mean()) or 1.0
    found[special:, : reduced.shape[1]] = reduced / scale
    return found


def _ignores_case(model: Model) -> bool:
    if not isinstance(model.preprocessor, TextPreprocessor):
        return True
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.preprocessor.tokenizer_json)
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("Paris A", "paris a")]
    return bool(ids[0] == ids[1])
