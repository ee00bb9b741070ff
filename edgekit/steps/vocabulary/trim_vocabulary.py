"""Keep the tokens that the training text uses; drop the rest of the word table.

Half of a small encoder is its word table, and a task uses a tenth of it.

Rules:

1. A token stays when the training text uses it at least ``min_count`` times, when it is a
   special token, when the extra word list needs it, or when it is among the ``common`` most
   frequent of the vocabulary. Byte by byte or character by character anything can be written
   still; how is each kind's own rule (``vocabulary/``: WordPiece, Unigram, BPE).
2. Where positions are counted from the padding's id on (RoBERTa), the tokens before it stay.
3. Kept tokens keep their order and their rows byte for byte, and are renumbered from zero; the
   tokenizer is rewritten together with the table.
4. A training text whose tokens all stay is split into the very same tokens, and none gets a new
   unknown token; this is checked on every training text, not assumed.
"""

import collections
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import RecipeError
from edgekit.preprocess import TextPreprocessor
from edgekit.step import Context
from edgekit.steps.vocabulary.rewrite import (
    KINDS,
    kept_tokens,
    rewrite_tokenizer,
    token_ids,
    unknown_id,
)

if TYPE_CHECKING:
    from tokenizers import Encoding

    from edgekit.model import Model

    # A text, or one that is split into words already.
    Text = str | tuple[str, ...]


@dataclass(frozen=True)
class TrimVocabulary:
    """Keeps only the tokens that the training text uses, and every single character.

    min_count: how often the training text must use a token. words: a text file with words, one
    per line, whose tokens stay too. common: how many of the vocabulary's most frequent tokens
    stay although the training text lacks them: words that users will write all the same.
    """

    min_count: int = 1
    words: Path | None = None
    common: int = 0

    def requires(self, model: "Model", context: Context) -> None:
        if model.architecture is None or not isinstance(model.preprocessor, TextPreprocessor):
            raise RecipeError("trim-vocabulary: this model reads no text; leave the step out")
        if self.min_count < 1:
            raise RecipeError(f"trim-vocabulary: min-count must be at least 1, is {self.min_count}")
        if self.common < 0:
            raise RecipeError(f"trim-vocabulary: common must not be negative, is {self.common}")
        kind = json.loads(model.preprocessor.tokenizer_json)["model"]["type"]
        if kind not in KINDS:
            raise RecipeError(
                f"trim-vocabulary: the tokenizer is of type {kind}, and only {', '.join(KINDS)} "
                "can be trimmed; leave the step out"
            )
        if context.rows is None or (context.rows.texts is None and context.rows.words is None):
            raise RecipeError("trim-vocabulary: needs the training text; give it with --data")

    def apply(self, model: "Model", context: Context) -> "Model":
        assert isinstance(model.preprocessor, TextPreprocessor) and model.architecture is not None
        assert context.rows is not None
        texts = tuple(_texts(context.rows))
        fields = json.loads(model.preprocessor.tokenizer_json)
        kept = kept_tokens(fields, self._used(model, texts), self.common)
        before = len(token_ids(fields))
        preprocessor = replace(
            model.preprocessor,
            tokenizer_json=rewrite_tokenizer(fields, kept),
            pad_id=kept.index(model.preprocessor.pad_id),
        )
        if not model.architecture.word_embeddings(model.module).weight.is_meta:
            _check_round_trip(
                model.preprocessor.tokenizer_json, preprocessor.tokenizer_json, kept, texts
            )
        return replace(
            model,
            module=model.architecture.keep_word_rows(model.module, kept),
            preprocessor=preprocessor,
            lineage=(*model.lineage, f"trim-vocabulary: kept {len(kept)} of {before} tokens"),
        )

    def ensures(self, before: "Model", after: "Model") -> None:
        assert isinstance(after.preprocessor, TextPreprocessor) and after.architecture is not None
        tokens = len(token_ids(json.loads(after.preprocessor.tokenizer_json)))
        rows = after.architecture.word_embeddings(after.module).weight.shape[0]
        if tokens != rows:
            raise RecipeError(f"trim-vocabulary: {tokens} tokens but {rows} embedding rows")

    def _used(self, model: "Model", texts: "tuple[Text, ...]") -> set[int]:
        """Ids that the text, the word list and the padding ask for (rules 1 and 2)."""
        preprocessor, architecture = model.preprocessor, model.architecture
        assert isinstance(preprocessor, TextPreprocessor) and architecture is not None
        counts = token_counts(preprocessor.tokenizer_json, texts)
        used = {index for index, count in counts.items() if count >= self.min_count}
        if self.words is not None:
            used |= token_counts(preprocessor.tokenizer_json, _read_words(self.words)).keys()
        module: Any = model.module
        assert architecture.embeddings is not None
        counted = architecture.embeddings(module.base_model).first_position > 0
        return used | set(range(preprocessor.pad_id if counted else 0)) | {preprocessor.pad_id}


@functools.lru_cache(maxsize=4)
def token_counts(tokenizer_json: str, texts: "tuple[Text, ...]") -> Mapping[int, int]:
    """How often each id occurs in the texts. Plans ask several times."""
    counts: collections.Counter[int] = collections.Counter()
    for encoding in _split(tokenizer_json, texts):
        counts.update(encoding.ids)
    return counts


def _texts(rows: Any) -> "Iterable[Text]":
    for column in (rows.texts, rows.pairs, rows.words):
        yield from column or ()


def _split(tokenizer_json: str, texts: "Sequence[Text]") -> "list[Encoding]":
    """The texts as the preprocessor splits them: rows of words are split already."""
    from tokenizers import Tokenizer

    of_words = bool(texts) and not isinstance(texts[0], str)
    return Tokenizer.from_str(tokenizer_json).encode_batch(
        [list(text) for text in texts] if of_words else list(texts), is_pretokenized=of_words
    )


def _read_words(path: Path) -> tuple[str, ...]:
    """Each word alone and behind a space, which are other tokens in BPE."""
    try:
        words = path.read_text(encoding="utf-8").split()
        return (*words, *(" " + word for word in words))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"trim-vocabulary: cannot read the word list {path}: {error}") from None


def _check_round_trip(
    before: str, after: str, kept: Sequence[int], texts: "Sequence[Text]"
) -> None:
    """Rule 4, on every training text."""
    old_unknown, new_unknown = (unknown_id(json.loads(each)) for each in (before, after))
    split = [_split(each, texts) for each in (before, after)]
    stays = set(kept)
    for text, old, new in zip(texts, *split, strict=True):
        found = [kept[i] for i in new.ids]
        if stays.issuperset(old.ids) and (new.tokens, found) != (old.tokens, old.ids):
            raise RecipeError(
                f"trim-vocabulary: {text!r} would be split into {new.tokens} and not into "
                f"{old.tokens}; leave the step out"
            )
        if new.ids.count(new_unknown) > old.ids.count(old_unknown):
            raise RecipeError(f"trim-vocabulary: {text!r} would get a new unknown token")
