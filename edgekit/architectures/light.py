"""What the light students share: small models of our own, saved and loaded as transformers does it.

Each is a ``PreTrainedModel`` whose ``config.json`` has a ``model_type`` of ours; importing its file
makes transformers' Auto classes know it. It reads ids [B, L] with a mask [B, L] of ones, then
zeros, and gives the same for a row whatever its padding, so that the module itself is the clean
forward. Id 0 is the padding.

A text model of two texts has ``config.pair``: each text is read alone, by the same weights, and
the head sees ``[a; b; |a - b|]`` (DiffCat; Galke et al. 2022); ``token_type_ids`` say which is
which.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from edgekit.architectures import Embeddings

if TYPE_CHECKING:
    from edgekit.model import Model


class LightConfig(PretrainedConfig):
    """Sizes that all of them have.

    vocab_size: rows of the word table. embedding_size: numbers of a row. hidden_size: of the layer
    in front of the classifier. dropout: of what that layer and the classifier read, in training.
    """

    vocab_size: int = 8
    embedding_size: int = 8
    hidden_size: int = 8
    dropout: float = 0.0
    pair: bool = False
    pad_token_id: int | None = 0


class Light(PreTrainedModel):
    """``logits`` is what a student is; the rest is transformers' way of calling it."""

    base_model_prefix = ""
    word_table = "words"

    def ready(self) -> None:
        """What transformers wants at the end of making a model."""
        self.post_init()  # type: ignore[no-untyped-call]

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        """[B, C], or for tagging [B, L, C]."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SequenceClassifierOutput(logits=self.logits(input_ids, mask, token_type_ids))

    def _init_weights(self, module: nn.Module) -> None:
        """As each module makes its own."""


class LightForward(nn.Module):
    """The clean forward: the model's inputs in order, the logits out."""

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__()
        self.module = model.module

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        module: Any = self.module
        logits: Tensor = module.logits(input_ids, attention_mask, token_type_ids)
        return logits


class LightHead(nn.Module):
    """dropout → Linear → tanh → dropout → Linear, of what a student makes of a text."""

    def __init__(self, width: int, config: Any) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.hidden = nn.Linear(width, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, state: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.dropout(state)))
        logits: Tensor = self.classifier(self.dropout(hidden))
        return logits


def embeddings(module: Any) -> Embeddings:
    """The word table, for whoever asks how many tokens the model knows."""
    return Embeddings(words=getattr(module, module.word_table))


def masks(mask: Tensor, types: Tensor | None, pair: bool) -> list[Tensor]:
    """float [B, L] for each text of a row: 1 where it has a token."""
    whole = mask.to(torch.float32)
    if not pair:
        return [whole]
    assert types is not None
    second = whole * types.to(torch.float32)
    return [whole - second, second]


def compared(states: list[Tensor]) -> Tensor:
    """The one state, or DiffCat of two."""
    if len(states) == 1:
        return states[0]
    first, second = states
    return torch.cat([first, second, (first - second).abs()], -1)


def register(
    config: type[PretrainedConfig], texts: type[Light], words: type[Light] | None = None
) -> None:
    """Make transformers' Auto classes know a student."""
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForSequenceClassification.register(config, texts, exist_ok=True)
    if words is not None:
        AutoModelForTokenClassification.register(config, words, exist_ok=True)
