"""Tiny random checkpoints of every family, in the layout that ``save_pretrained`` writes.

Two layers of width 24 and a vocabulary of a few hundred tokens: written in milliseconds, and
with weights large enough that different texts get different answers.
"""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TEXT_FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "albert",
    "xlnet",
    "electra",
    "mpnet",
    "mobilebert",
)
IMAGE_FAMILIES = ("vit", "mobilenet_v2", "resnet")
TEXT_TASKS = ("text-classification", "token-classification", "sentence-embedding")

# The vocabulary knows these words, and every letter and digit by itself.
_SENTENCE = (
    "the my a card account bank is was lost stolen new old please can you help me i want to"
    " transfer money cash from at top up how long does it take why has not arrived yet payment"
    " pending declined twice exchange rate fee pin code phone app london paris smith anna berlin"
)
WORDS = _SENTENCE.split()
_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"
_AUTO = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "sentence-embedding": "AutoModel",
}
_PROBLEMS = {
    "single-label": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}


def tiny_checkpoint(
    folder: Path,
    family: str = "bert",
    task: str = "text-classification",
    labels: Sequence[str] = ("a", "b", "c"),
    problem: str = "single-label",
    seed: int = 0,
    dtype: str = "float32",
    max_length: int = 64,
    layers: int = 2,
    **config: Any,
) -> Path:
    """Write a random checkpoint into ``folder`` (made if need be) and return it.

    ``labels`` are ignored by sentence-embedding; regression has one output whatever they are.
    ``config`` overrides fields of the transformers config. For image families pass
    ``task="image-classification"``; pictures are 32 x 32 RGB.
    """
    import torch
    import transformers

    if task == "sentence-embedding":
        heads: dict[str, Any] = {}
    elif problem == "regression":
        heads = {"num_labels": 1, "problem_type": "regression"}
    else:
        heads = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: number for number, label in enumerate(labels)},
        }
        if task == "text-classification":
            heads["problem_type"] = _PROBLEMS[problem]
    transformers.utils.logging.disable_progress_bar()
    folder.mkdir(parents=True, exist_ok=True)
    fields = _sizes(family, max_length, layers) | heads | config
    if family not in IMAGE_FAMILIES:
        tokenizer = tiny_tokenizer(family, max_length)
        tokenizer.save_pretrained(folder)
        fields |= {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
    else:
        settings = json.dumps(_image_settings(family))
        (folder / "preprocessor_config.json").write_text(settings)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    settings = transformers.AutoConfig.for_model(family, **fields)
    model = getattr(transformers, _AUTO[task]).from_config(settings)
    _scatter(model)
    torch.random.set_rng_state(state)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def tiny_texts(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Random sentences of 1 to ``longest`` words, some of which must be split into pieces."""
    chosen = random.Random(seed)
    return [
        " ".join(
            chosen.choice(WORDS)
            if chosen.random() < 0.8
            else "".join(chosen.choices("abcdefgxyz", k=chosen.randint(1, 5)))
            for _ in range(chosen.randint(1, longest))
        )
        for _ in range(count)
    ]


def tiny_tokenizer(family: str, max_length: int = 64) -> Any:
    """The family's kind of tokenizer: WordPiece, byte-level BPE or Unigram."""
    import transformers

    build = {"roberta": _bpe, "xlm-roberta": _unigram, "albert": _unigram, "xlnet": _unigram}
    tokenizer, special = build.get(family, _wordpiece)(family)
    names = {"model_input_names": _INPUTS} if family in ("bert", "electra", "mobilebert") else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        padding_side="left" if family == "xlnet" else "right",
        **special,
        **names,
    )


def _sizes(family: str, max_length: int, layers: int) -> dict[str, Any]:
    encoder = {
        "hidden_size": 24,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": max_length,
    }
    if family in ("roberta", "xlm-roberta", "mpnet"):
        encoder["max_position_embeddings"] = max_length + 2
    if family in ("roberta", "xlm-roberta"):
        encoder["type_vocab_size"] = 1
    if family in ("albert", "electra"):
        encoder["embedding_size"] = 16
    if family == "mobilebert":
        encoder |= {
            "embedding_size": 12,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
            "num_feedforward_networks": 2,
        }
    if family == "distilbert":
        return {
            "dim": 24,
            "n_layers": layers,
            "n_heads": 4,
            "hidden_dim": 32,
            "max_position_embeddings": max_length,
        }
    if family == "xlnet":
        return {"d_model": 24, "n_layer": layers, "n_head": 4, "d_inner": 32}
    if family == "vit":
        return {key: encoder[key] for key in list(encoder)[:4]} | {
            "image_size": 32,
            "patch_size": 8,
        }
    if family == "mobilenet_v2":
        return {"image_size": 32, "depth_multiplier": 0.35, "min_depth": 8}
    if family == "resnet":
        return {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 1]}
    return encoder


def _scatter(model: Any) -> None:
    """Random weights that keep signals alive; norms and biases away from 1 and 0."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 4:
                fan_in = parameter[0].numel()
                parameter.normal_(0, math.sqrt(2 / fan_in))
            elif parameter.dim() >= 2:
                parameter.normal_(0, 0.25)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def _wordpiece(family: str) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if family == "mpnet":
        pad, unknown, first, last, mask = "<pad>", "[UNK]", "<s>", "</s>", "<mask>"
        opening = [first, pad, last, unknown, mask]
    else:
        pad, unknown, first, last, mask = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
        opening = [pad, "[unused0]", unknown, first, last, mask]
    pieces = [*_LETTERS, *("##" + letter for letter in _LETTERS[:36]), *WORDS, "##ing", "##s"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(opening + pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = _template(vocabulary, first, last, doubled=family == "mpnet")
    return tokenizer, {
        "pad_token": pad,
        "unk_token": unknown,
        "cls_token": first,
        "sep_token": last,
        "mask_token": mask,
    }


def _bpe(family: str) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    # A merge for each step of each word, from the left: "Ġc"+"a", "Ġca"+"r", "Ġcar"+"d".
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for letters in ("Ġ" + word, word):
            for end in range(1, len(letters)):
                merges[(letters[:end], letters[end])] = None
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = special + alphabet + [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=False
    )
    return tokenizer, {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "mask_token": "<mask>",
    }


def _unigram(family: str) -> tuple[Any, dict[str, str]]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    special = {
        "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "albert": ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"],
        "xlnet": ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>"],
    }[family]
    pieces = [("▁", -4.0)]
    pieces += [("▁" + word, -3.0 - number / 50) for number, word in enumerate(WORDS) if word != "▁"]
    pieces += [(word, -4.0 - number / 50) for number, word in enumerate(WORDS) if len(word) > 1]
    pieces += [(letter, -8.0 - number / 50) for number, letter in enumerate(_LETTERS)]
    scored = [(piece, 0.0) for piece in special] + pieces
    tokenizer = Tokenizer(
        models.Unigram(scored, unk_id=special.index("<unk>"), byte_fallback=False)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    vocabulary = {piece: number for number, (piece, _) in enumerate(scored)}
    first, last = {"xlm-roberta": ("<s>", "</s>"), "albert": ("[CLS]", "[SEP]")}.get(
        family, ("<cls>", "<sep>")
    )
    if family == "xlnet":
        tokenizer.post_processor = _xlnet_template(vocabulary)
    else:
        tokenizer.post_processor = _template(
            vocabulary, first, last, doubled=family == "xlm-roberta"
        )
    names = {
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "cls_token": first,
        "sep_token": last,
        "mask_token": "[MASK]" if family == "albert" else "<mask>",
    }
    if family != "albert":
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return tokenizer, names


def _template(vocabulary: dict[str, int], first: str, last: str, *, doubled: bool) -> Any:
    from tokenizers import processors

    middle = f"{last} {last} $B {last}" if doubled else f"{last} $B:1 {last}:1"
    return processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {middle}",
        special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])],
    )


def _xlnet_template(vocabulary: dict[str, int]) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single="$A:0 <sep>:0 <cls>:2",
        pair="$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2",
        special_tokens=[("<sep>", vocabulary["<sep>"]), ("<cls>", vocabulary["<cls>"])],
    )


def _image_settings(family: str) -> dict[str, Any]:
    """``preprocessor_config.json`` as published for the family: three ways to fit a picture."""
    fit: dict[str, Any] = {
        "vit": {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 2},
        "mobilenet_v2": {
            "image_processor_type": "MobileNetV2ImageProcessor",
            "size": {"shortest_edge": 36},
            "do_center_crop": True,
            "crop_size": {"height": 32, "width": 32},
            "resample": 2,
        },
        "resnet": {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_pct": 0.875,
            "resample": 3,
        },
    }[family]
    mean, std = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]
    return fit | {"do_resize": True, "do_normalize": True, "image_mean": mean, "image_std": std}
