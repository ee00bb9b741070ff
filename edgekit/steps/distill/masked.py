"""Masked words: a teacher that guesses them, and a student that learns to. Devlin et al. 2018,
arXiv 1810.04805, section 3.1.

Rules:

1. Of a text's tokens (special ones and padding aside) 15 % are chosen, drawn anew for each batch
   from torch's generator. Of these 80 % become the mask, 10 % a random token, 10 % stay.
2. Student and teacher read the same masked text, so both need the same vocabulary.
3. The teacher is a checkpoint that was saved with its masked-language-model head. The student's
   head begins as the teacher's where shapes are equal, otherwise at random; its words are the
   student's own table. It learns along, and is left behind.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgekit.checkpoint import check_finite, quiet
from edgekit.errors import ModelError, RecipeError
from edgekit.examples import IGNORED
from edgekit.model import Model, identify, load_model
from edgekit.steps.distill.teachers import common_rows
from edgekit.steps.finetune.mlm_head import tie_decoder

_SHARE = 0.15
_MASKS = ("[MASK]", "<mask>")


class Guessing(nn.Module):
    """A masked language model, called as the clean forward is: inputs in order, words [B, L, V]."""

    def __init__(self, module: Any, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self.inputs = inputs

    def forward(self, *inputs: Tensor) -> Tensor:
        words: Tensor = self.module(**dict(zip(self.inputs, inputs, strict=True))).logits
        return words


def load_guesser(path: Path) -> Model:
    """A checkpoint with its head (rule 3), as a model whose module answers words [B, L, V].

    Raises RecipeError.
    """
    if not path.exists():
        raise RecipeError(f"distill: there is no teacher at {path}; mend the path")
    try:
        source = identify(str(path))
        if source.kind == "file" or source.path is None:
            raise ModelError(f"{path} is an exported file; name a checkpoint folder")
        encoder = load_model(source, task="sentence-embedding")
    except ModelError as error:
        raise RecipeError(f"distill: teachers: {error}") from None
    with quiet():
        import transformers

        try:
            module, report = transformers.AutoModelForMaskedLM.from_pretrained(
                source.path,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # transformers raises many kinds
            raise RecipeError(
                f"distill: {path} cannot be loaded with a head for masked words "
                f"({str(error).splitlines()[0]}); name a checkpoint of a masked language model"
            ) from None
    missing = sorted(report["missing_keys"])
    if missing:
        raise RecipeError(
            f"distill: {path} has no head for masked words (it lacks {missing[0]}); name a "
            "checkpoint that was saved with one, or leave the masked losses out"
        )
    check_finite(module)
    return replace(encoder, module=module.eval())


def guessing(student: Model, teacher: Model, seed: int) -> Guessing:
    """The student's encoder, shared, under a head for masked words (rule 3).

    Raises RecipeError where the family has none.
    """
    whole: Any = student.module
    encoder: Any = whole.base_model
    with quiet():
        import transformers

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            try:
                made: Any = transformers.AutoModelForMaskedLM.from_config(
                    encoder.config, attn_implementation="eager"
                )
            except ValueError:
                raise RecipeError(
                    f"distill: a {encoder.config.model_type} has no head for masked words; leave "
                    "the masked losses out"
                ) from None
        own = made.state_dict()
        prefix = made.base_model_prefix
        for name, tensor in teacher.module.state_dict().items():
            if (
                name in own
                and not name.startswith(prefix + ".")
                and own[name].shape == tensor.shape
            ):
                own[name].copy_(tensor)
        setattr(made, prefix, encoder)
        tie_decoder(made)
    return Guessing(made.eval(), student.inputs)


class Mask:
    """Rule 1 for one tokenizer. ``special`` are ids that are never chosen."""

    def __init__(self, model: Model) -> None:
        from tokenizers import Tokenizer

        preprocessor: Any = model.preprocessor
        tokenizer = Tokenizer.from_str(preprocessor.tokenizer_json)
        added = tokenizer.get_added_tokens_decoder()
        self.special = sorted(number for number, token in added.items() if token.special)
        masks = [number for number, token in added.items() if token.content in _MASKS]
        if not masks:
            raise RecipeError(
                "distill: this tokenizer has no mask token ([MASK] or <mask>); leave the masked "
                "losses out"
            )
        self.mask = masks[0]
        self.size = tokenizer.get_vocab_size()

    def __call__(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Masked ids, and the ids to be guessed, -100 elsewhere; both int64 [B, L]."""
        special = torch.tensor(self.special, device=ids.device)
        may = (attention_mask != 0) & ~torch.isin(ids, special)
        chosen = may & (torch.rand(ids.shape) < _SHARE).to(ids.device)
        how = torch.rand(ids.shape).to(ids.device)
        random = torch.randint(self.size, ids.shape).to(ids.device)
        masked = torch.where(chosen & (how < 0.8), self.mask, ids)
        masked = torch.where(chosen & (how >= 0.9), random, masked)
        return masked, torch.where(chosen, ids, IGNORED)


def need_same_words(student: Model, teacher: Model) -> None:
    """Raise RecipeError unless both have the same tokens under the same numbers (rule 2)."""
    mine, theirs = common_rows(student, teacher)
    rows = [
        each.architecture.word_embeddings(each.module).weight.shape[0]
        for each in (student, teacher)
        if each.architecture is not None
    ]
    if len(set(rows)) > 1 or not np.array_equal(mine, theirs):
        raise RecipeError(
            "distill: masked losses compare guesses over all words, and student and teacher have "
            "other vocabularies; put trim-vocabulary behind distill, or give the student the "
            "teacher's tokenizer"
        )
