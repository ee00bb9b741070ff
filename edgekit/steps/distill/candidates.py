"""Words that may stand for another: the nearest in a table, and a language model's guesses.

Candidates are whole words: tokens that their tokenizer makes of a word that stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.preprocess import TextPreprocessor

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer
    from torch import nn

    from edgekit.events import OnProgress
    from edgekit.filemodel import FileModel
    from edgekit.model import Model
    from edgekit.preprocess import Array

CANDIDATES = 15
_BATCH = 64
# Neighbours that may be the word itself in another case.
_SAME = 5
# Words whose cosines are worked out at once.
_AT_ONCE = 256


class Table:
    """The whole words of a vocabulary, and the rows that a model has for its tokens."""

    def __init__(self, tokenizer: Tokenizer, rows: Callable[[Sequence[int]], Array]) -> None:
        """rows: float32 [n, D] of n token ids."""
        self.tokenizer = tokenizer
        self.rows = rows
        added = tokenizer.get_added_tokens_decoder()
        self.special = {number for number, token in added.items() if token.special}
        known = whole_words(tokenizer)
        self.words = tuple(known.values())
        self.vectors = _unit(rows(tuple(known))) if known else np.zeros((0, 1), np.float32)

    def nearest(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """Of each word the 15 whole words of the largest cosine, the nearest first.

        A word of several pieces is their mean; in whatever case, no word is its own neighbour. None
        for a word that the tokenizer does not know.
        """
        found = []
        for start in range(0, len(words), _AT_ONCE):
            some = words[start : start + _AT_ONCE]
            each = [self._vector(ids) for ids in _pieces(self.tokenizer, some)]
            cosines = _unit(np.stack(each)) @ self.vectors.T
            order = _largest(cosines, CANDIDATES + _SAME)
            for word, vector, places in zip(some, each, order, strict=True):
                near = (self.words[place] for place in places if vector.any())
                others = [other for other in near if other.casefold() != word.casefold()]
                found.append(tuple(others[:CANDIDATES]))
        return found

    def _vector(self, ids: Sequence[int]) -> Array:
        """[D]: the mean of the tokens that are of text; zeros for a word that has none."""
        known = [number for number in ids if number not in self.special]
        if not known:
            return np.zeros(self.vectors.shape[1], np.float32)
        mean: Array = self.rows(known).mean(0)
        return mean


def table_of(model: Model | FileModel) -> Table | None:
    """The model's own table of words; ``None`` where it has none, or too few whole words."""
    import torch
    from tokenizers import Tokenizer

    words = words_of(model)
    if words is None:
        return None
    preprocessor: Any = model.preprocessor

    def rows(ids: Sequence[int]) -> Array:
        with torch.inference_mode():
            found: Array = words(torch.tensor(ids)).float().numpy()
        return found

    tokenizer = Tokenizer.from_str(preprocessor.tokenizer_json)
    made = Table(tokenizer, rows)
    return made if len(made.words) > CANDIDATES else None


def words_of(model: Model | FileModel) -> nn.Module | None:
    """What gives a text model's rows of token ids; ``None`` for what is no checkpoint of texts."""
    from edgekit.model import Model

    if not isinstance(model, Model) or model.architecture is None:
        return None
    described, module = model.architecture, model.module
    return None if described.embeddings is None else described.embeddings(module.base_model).words


def whole_words(tokenizer: Tokenizer) -> dict[int, str]:
    """Tokens that a word of letters becomes when it stands alone, by id; one for each word."""
    ids = range(tokenizer.get_vocab_size(with_added_tokens=True))
    texts = [tokenizer.decode([number], skip_special_tokens=True).strip() for number in ids]
    letters = [(number, text) for number, text in zip(ids, texts, strict=True) if text.isalpha()]
    pieces = _pieces(tokenizer, [text for _, text in letters])
    return {
        number: text
        for (number, text), each in zip(letters, pieces, strict=True)
        if each == [number]
    }


def _pieces(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word inside a text, which in BPE begin with the space before it."""
    behind = tokenizer.encode_batch([" " + word for word in words], add_special_tokens=False)
    alone = tokenizer.encode_batch(list(words), add_special_tokens=False)
    return [min(b.ids, a.ids, key=len) for b, a in zip(behind, alone, strict=True)]


def _largest(values: Array, count: int) -> Array:
    """Where the largest of each row [B, N] are, the largest first: [B, count]."""
    count = min(count, values.shape[1])
    some = np.sort(np.argpartition(-values, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(values, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def _unit(vectors: Array) -> Array:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Array = vectors / np.maximum(lengths, 1e-12)
    return found


def guesses(
    guesser: Model,
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    on_progress: OnProgress,
) -> list[list[tuple[str, ...]]]:
    """For each span of each text the 15 likeliest whole words in its place, the likeliest first.

    guesser: a masked language model, whose module gives ``logits`` [B, L, V]. None for a span that
    is not one of its tokens. Each word is masked alone. Raises
    RecipeError without a mask token.
    """
    import torch
    from tokenizers import Tokenizer

    from edgekit.steps.distill.masked import Mask

    preprocessor = guesser.preprocessor
    assert isinstance(preprocessor, TextPreprocessor)
    tokenizer = Tokenizer.from_str(preprocessor.tokenizer_json)
    tokenizer.enable_truncation(preprocessor.max_length)
    mask = Mask(guesser).mask
    words = whole_words(tokenizer)
    offered = torch.tensor(sorted(words))
    encodings = tokenizer.encode_batch(list(texts))
    found: list[list[tuple[str, ...]]] = [[()] * len(each) for each in spans]
    asked = [
        (text, place, token)
        for text, each in enumerate(spans)
        for place, span in enumerate(each)
        for token in _only_token(encodings[text], span)
    ]
    asked.sort(key=lambda each: len(encodings[each[0]].ids))
    for start in range(0, len(asked), _BATCH):
        some = asked[start : start + _BATCH]
        rows = [list(encodings[text].ids) for text, _, _ in some]
        for row, (_, _, token) in zip(rows, some, strict=True):
            row[token] = mask
        scores = _scores(guesser, rows, [token for _, _, token in some], preprocessor.pad_id)
        best = scores[:, offered].topk(min(CANDIDATES, len(offered))).indices
        for (text, place, _), chosen in zip(some, offered[best].tolist(), strict=True):
            found[text][place] = tuple(words[number] for number in chosen)
        on_progress(start / len(asked), f"guessing words: {start:,} of {len(asked):,}")
    return found


def _only_token(encoding: Any, span: tuple[int, int]) -> list[int]:
    """The place of the token that is all of the span; none where there are several."""
    start, end = span
    inside = [
        place
        for place, (left, right) in enumerate(encoding.offsets)
        if left < end and right > start and not encoding.special_tokens_mask[place]
    ]
    return inside if len(inside) == 1 else []


def _scores(
    guesser: Model, rows: Sequence[Sequence[int]], places: Sequence[int], pad: int
) -> torch.Tensor:
    """float32 [B, V]: the guesses at one place of each row of token ids."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    module: Any = guesser.module
    at = torch.arange(len(rows)), torch.tensor(places)

    def only(_: Any, __: Any, output: Any) -> Any:
        # The head takes as long as several layers, so it is given the asked places alone.
        output.last_hidden_state = output.last_hidden_state[at][:, None]
        return output

    hook = module.base_model.register_forward_hook(only)
    try:
        with torch.inference_mode():
            scores: torch.Tensor = module(input_ids=ids, attention_mask=mask).logits[:, 0]
    finally:
        hook.remove()
    return scores
