"""A tokenizer.json with fewer tokens: which stay, and every id in it renumbered.

Rules:

1. Added tokens, the unknown token and the tokens of the post-processor stay.
2. What else stays is the kind's own question: see ``wordpiece``, ``unigram`` and ``bpe``.
3. Kept tokens keep their order, and are numbered from zero.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.steps.vocabulary import bpe, unigram, wordpiece

_KINDS: Mapping[str, Any] = {"WordPiece": wordpiece, "Unigram": unigram, "BPE": bpe}
KINDS = tuple(_KINDS)


def token_ids(fields: Mapping[str, Any]) -> set[int]:
    """Every id that a tokenizer.json gives out."""
    vocabulary = fields["model"]["vocab"]
    known = range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
    return {*known, *(token["id"] for token in fields["added_tokens"])}


def unknown_id(fields: Mapping[str, Any]) -> int | None:
    """The id of what cannot be spelled; byte-level BPE has none."""
    model = fields["model"]
    if model["type"] == "Unigram":
        found: int | None = model.get("unk_id")
        return found
    return None if model.get("unk_token") is None else int(model["vocab"][model["unk_token"]])


def special_ids(fields: Mapping[str, Any]) -> set[int]:
    """Rule 1."""
    special = {token["id"] for token in fields["added_tokens"]}
    special |= _processor_ids(fields.get("post_processor"))
    unknown = unknown_id(fields)
    return special if unknown is None else special | {unknown}


def kept_tokens(fields: Mapping[str, Any], used: Iterable[int], common: int = 0) -> list[int]:
    """Ids to keep, ascending: the used ones, and what rules 1 and 2 add."""
    special = special_ids(fields)
    kind = _KINDS[fields["model"]["type"]]
    return sorted(special | kind.needed(fields["model"], set(used), special, common))


def rewrite_tokenizer(fields: Mapping[str, Any], kept: Iterable[int]) -> str:
    """The tokenizer.json with only the ids in ``kept``, renumbered from zero."""
    renumbered = {old: new for new, old in enumerate(kept)}
    added = [
        {**token, "id": renumbered[token["id"]]}
        for token in fields["added_tokens"]
        if token["id"] in renumbered
    ]
    rewritten = {
        **fields,
        "added_tokens": added,
        "post_processor": _renumber_processor(fields.get("post_processor"), renumbered),
        "model": _KINDS[fields["model"]["type"]].rewrite(fields["model"], renumbered),
    }
    return json.dumps(rewritten, ensure_ascii=False, separators=(",", ":"))


def _processor_ids(processor: Any) -> set[int]:
    if processor is None:
        return set()
    ids = {i for part in processor.get("processors", ()) for i in _processor_ids(part)}
    ids |= {i for t in processor.get("special_tokens", {}).values() for i in t["ids"]}
    return ids | {processor[key][1] for key in ("sep", "cls") if key in processor}


def _renumber_processor(processor: Any, renumbered: Mapping[int, int]) -> Any:
    """Ids inside a post-processor: TemplateProcessing names them, Bert and Roberta pair them."""
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in processor:
        parts = processor["processors"]
        changed["processors"] = [_renumber_processor(part, renumbered) for part in parts]
    if "special_tokens" in processor:
        changed["special_tokens"] = {
            name: {**token, "ids": [renumbered[i] for i in token["ids"]]}
            for name, token in processor["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if key in processor:
            changed[key] = [processor[key][0], renumbered[processor[key][1]]]
    return changed
