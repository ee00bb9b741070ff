"""Keep the tokens that the training text uses; drop the rest of the word table.

Half of a small encoder is its word table, and a task uses a tenth of it.

Rules:

1. A token stays when the training text uses it at least ``min_count`` times, when it is a
   special token, when the extra word list needs it, or when it is among the first ``common``
   whole tokens of the vocabulary (WordPiece vocabularies are written most frequent first).
2. Every single character and every single-character continuation piece stays, so that a word
   whose pieces went is spelled out instead of becoming unknown.
3. A piece with a character that has no piece of its own stays as well: it cannot be spelled.
4. Kept tokens keep their order and their rows byte for byte, and are renumbered from zero; the
   tokenizer is rewritten together with the table.
5. No training text gets a new unknown token; this is checked, not assumed.

WordPiece only: Unigram and byte-level BPE vocabularies are refused by name.
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

if TYPE_CHECKING:
    from edgekit.model import Model


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
        if kind != "WordPiece":
            raise RecipeError(
                f"trim-vocabulary: the tokenizer is of type {kind}, and only WordPiece can be "
                "trimmed; leave the step out"
            )
        if context.rows is None or (context.rows.texts is None and context.rows.words is None):
            raise RecipeError("trim-vocabulary: needs the training text; give it with --data")

    def apply(self, model: "Model", context: Context) -> "Model":
        assert isinstance(model.preprocessor, TextPreprocessor) and model.architecture is not None
        assert context.rows is not None
        texts = tuple(_texts(context.rows))
        fields = json.loads(model.preprocessor.tokenizer_json)
        used = self._used(model.preprocessor.tokenizer_json, texts)
        kept = kept_tokens(fields, used, self.common)
        before = len(fields["model"]["vocab"])
        preprocessor = replace(
            model.preprocessor,
            tokenizer_json=rewrite_tokenizer(fields, kept),
            pad_id=kept.index(model.preprocessor.pad_id),
        )
        if not model.architecture.word_embeddings(model.module).weight.is_meta:
            _refuse_new_unknowns(
                model.preprocessor.tokenizer_json, preprocessor.tokenizer_json, texts
            )
        return replace(
            model,
            module=model.architecture.keep_word_rows(model.module, kept),
            preprocessor=preprocessor,
            lineage=(*model.lineage, f"trim-vocabulary: kept {len(kept)} of {before} tokens"),
        )

    def ensures(self, before: "Model", after: "Model") -> None:
        assert isinstance(after.preprocessor, TextPreprocessor) and after.architecture is not None
        tokens = len(json.loads(after.preprocessor.tokenizer_json)["model"]["vocab"])
        rows = after.architecture.word_embeddings(after.module).weight.shape[0]
        if tokens != rows:
            raise RecipeError(f"trim-vocabulary: {tokens} tokens but {rows} embedding rows")

    def _used(self, tokenizer_json: str, texts: tuple[str, ...]) -> set[int]:
        """Ids that the training text or the word list asks for (rule 1)."""
        counts = token_counts(tokenizer_json, texts)
        used = {index for index, count in counts.items() if count >= self.min_count}
        if self.words is not None:
            used |= token_counts(tokenizer_json, _read_words(self.words)).keys()
        return used


@functools.lru_cache(maxsize=4)
def token_counts(tokenizer_json: str, texts: tuple[str, ...]) -> Mapping[int, int]:
    """How often each id occurs in the texts, without special tokens. Plans ask several times."""
    from tokenizers import Tokenizer

    counts: collections.Counter[int] = collections.Counter()
    tokenizer = Tokenizer.from_str(tokenizer_json)
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    return counts


def kept_tokens(fields: dict[str, Any], used: Iterable[int], common: int = 0) -> list[int]:
    """Ids to keep, ascending (rules 1 to 3). ``fields`` is a WordPiece tokenizer.json."""
    vocabulary: dict[str, int] = fields["model"]["vocab"]
    prefix: str = fields["model"]["continuing_subword_prefix"]
    special = {token["id"] for token in fields["added_tokens"]}
    special.add(vocabulary[fields["model"]["unk_token"]])
    heads = {token for token in vocabulary if len(token) == 1}
    tails = {
        token[len(prefix) :]
        for token in vocabulary
        if token.startswith(prefix) and len(token) == len(prefix) + 1
    }

    def spells(token: str) -> bool:
        """Whether the token's pieces of one character all exist."""
        if token.startswith(prefix) and len(token) > len(prefix):
            return all(character in tails for character in token[len(prefix) :])
        return token[0] in heads and all(character in tails for character in token[1:])

    def single(token: str) -> bool:
        return len(token.removeprefix(prefix)) == 1

    kept = set(used) | special
    kept |= {i for token, i in vocabulary.items() if single(token)}
    whole = (i for token, i in vocabulary.items() if not single(token) and not _unused(token))
    kept |= set(sorted(set(whole) - special)[:common])
    kept |= {i for token, i in vocabulary.items() if not _unused(token) and not spells(token)}
    return sorted(kept)


def rewrite_tokenizer(fields: dict[str, Any], kept: list[int]) -> str:
    """The tokenizer.json with only the ids in ``kept``, renumbered from zero."""
    renumbered = {old: new for new, old in enumerate(kept)}
    model = fields["model"]
    vocabulary = {
        token: renumbered[i]
        for token, i in sorted(model["vocab"].items(), key=lambda item: item[1])
        if i in renumbered
    }
    added = [
        {**token, "id": renumbered[token["id"]]}
        for token in fields["added_tokens"]
        if token["id"] in renumbered
    ]
    rewritten = {
        **fields,
        "added_tokens": added,
        "post_processor": _renumber_specials(fields.get("post_processor"), renumbered),
        "model": {**model, "vocab": vocabulary},
    }
    return json.dumps(rewritten, ensure_ascii=False, separators=(",", ":"))


def _renumber_specials(processor: Any, renumbered: dict[int, int]) -> Any:
    """Ids inside a post-processor: TemplateProcessing names them, Bert and Roberta pair them."""
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        return {
            **processor,
            "processors": [_renumber_specials(p, renumbered) for p in processor["processors"]],
        }
    if kind == "TemplateProcessing":
        tokens = {
            name: {**token, "ids": [renumbered[i] for i in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
        return {**processor, "special_tokens": tokens}
    if kind in ("BertProcessing", "RobertaProcessing"):
        pairs = {key: [processor[key][0], renumbered[processor[key][1]]] for key in ("sep", "cls")}
        return {**processor, **pairs}
    return processor


def _unused(token: str) -> bool:
    """Placeholders such as [unused42] of the original BERT vocabularies."""
    return token.startswith("[unused") and token.endswith("]")


def _texts(rows: Any) -> Iterable[str]:
    for texts in (rows.texts, rows.pairs):
        yield from texts or ()
    for words in rows.words or ():
        yield " ".join(words)


def _read_words(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"trim-vocabulary: cannot read the word list {path}: {error}") from None


def _refuse_new_unknowns(before: str, after: str, texts: Sequence[str]) -> None:
    """Rule 5, on every training text."""
    from tokenizers import Tokenizer

    def unknowns(tokenizer_json: str) -> list[int]:
        unknown = json.loads(tokenizer_json)["model"]
        index = unknown["vocab"][unknown["unk_token"]]
        tokenizer = Tokenizer.from_str(tokenizer_json)
        return [
            encoding.ids.count(index)
            for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    for text, old, new in zip(texts, unknowns(before), unknowns(after)):
        if new > old:
            raise RecipeError(f"trim-vocabulary: {text!r} would get a new unknown token")
