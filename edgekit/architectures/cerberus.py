"""CERBERUS: one body with several heads, each taught by its own teacher. Matsubara et al. 2022,
Ensemble Transformer for Efficient and Accurate Ranking Tasks, arXiv 2201.05767.

It is an encoder of another family with more layers than run in a row: the first ``body_layers``
are shared, and of the others each head has ``head_layers``, head after head. So all that is known
of the family's layers and tables holds for these.

``config.json`` is the family's own, with ``family`` for its ``model_type`` and the fields of
``CerberusConfig`` beside. Importing this makes transformers' Auto classes know the model.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from edgekit.architectures import Architecture, Embeddings, Layer, architecture
from edgekit.architectures.blocks import Encoder, run_layer
from edgekit.structure import sharing_copy

if TYPE_CHECKING:
    from edgekit.model import Model

# Families whose layers run one after the other, and know of nothing but states and mask.
BODIES = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "relu": torch.relu,
}


class CerberusConfig(PretrainedConfig):
    """The family's own fields, and these.

    family: its ``model_type``. body_layers: shared. heads: how many. head_layers: of each.
    combine: "probabilities" answers the logarithm of the mean of the heads' probabilities, so
    that a softmax of it is that mean; "logits" the mean of their logits. head_activation: before
    a head's classifier: tanh, gelu or relu.
    """

    model_type = "edgekit-cerberus"
    family: str = "bert"
    body_layers: int = 1
    heads: int = 1
    head_layers: int = 1
    combine: str = "probabilities"
    head_activation: str = "tanh"

    def of_family(self) -> PretrainedConfig:
        """As the family's own encoder has it, with all layers."""
        fields = self.to_dict()
        for name in ("model_type", "architectures", "transformers_version"):
            fields.pop(name, None)
        return AutoConfig.for_model(self.family, **fields)


class CerberusHead(nn.Module):
    """What a head has behind its layers: the summary token's state [B, D] to logits [B, C]."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, width)
        self.classifier = nn.Linear(width, labels)


class CerberusForSequenceClassification(PreTrainedModel):
    """``logits`` is ``combined`` of what the heads say."""

    config_class = CerberusConfig
    base_model_prefix = "encoder"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        family = config.of_family()
        self.encoder = AutoModel.from_config(family, attn_implementation="eager")
        if hasattr(self.encoder, "pooler"):
            self.encoder.pooler = None  # the heads have their own
        self.heads = nn.ModuleList(
            CerberusHead(family.hidden_size, config.num_labels) for _ in range(config.heads)
        )
        self.post_init()  # type: ignore[no-untyped-call]

    def head_logits(self, **inputs: Any) -> Tensor:
        """[B, k, C]: each head by transformers' own forward, body and all."""
        each = []
        heads: Any = self.heads
        for number, head in enumerate(heads):
            encoder: Any = sharing_copy(self.encoder)
            stack = _family(encoder).stack
            assert stack is not None
            layers: Any = stack(encoder)
            chosen = [layers[place] for place in head_places(self.config, number)]
            del layers[:]
            layers.extend(chosen)
            state = encoder(**inputs).last_hidden_state[:, 0]
            each.append(_answer(self, head, state))
        return torch.stack(each, 1)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> SequenceClassifierOutput:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        taken = {name: inputs[name] for name in ("token_type_ids",) if name in inputs}
        each = self.head_logits(input_ids=input_ids, attention_mask=attention_mask, **taken)
        return SequenceClassifierOutput(logits=combined(each.unbind(1), self.config.combine))


class CerberusForward(nn.Module):
    """The clean forward: ids, mask and perhaps types [B, L] to [B, C]; the body runs once."""

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__()
        self.module = model.module
        self.encoder = Encoder(model, decomposed_norm)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        config: Any = self.module.config
        return combined(self.each(input_ids, attention_mask, token_type_ids), config.combine)

    def each(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> list[Tensor]:
        """Logits [B, C] of every head."""
        module: Any = self.module
        encoder = self.encoder
        states, bias = encoder.enter(input_ids, attention_mask, token_type_ids)
        for place in range(module.config.body_layers):
            layer = encoder.layers[place]
            states = run_layer(layer, states, states, bias, encoder.norm)
        found = []
        for number, head in enumerate(module.heads):
            *before, last = head_places(module.config, number)[module.config.body_layers :]
            own = states
            for place in before:
                own = run_layer(encoder.layers[place], own, own, bias, encoder.norm)
            # Only the summary token's state is read.
            own = run_layer(encoder.layers[last], own[:, :1], own, bias[:, :, :1], encoder.norm)
            found.append(_answer(module, head, own[:, 0]))
        return found


class EachHead(nn.Module):
    """The clean forward without its end: logits [B, k, C], as the heads learn."""

    def __init__(self, forward: CerberusForward) -> None:
        super().__init__()
        self.whole = forward

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack(self.whole.each(*inputs), 1)


def head_places(config: Any, number: int) -> list[int]:
    """The layers that run for one head: the body's and its own."""
    first = config.body_layers + number * config.head_layers
    return [*range(config.body_layers), *range(first, first + config.head_layers)]


def combined(logits: Sequence[Tensor], combine: str) -> Tensor:
    """[B, C] from the heads' [B, C] each; see ``CerberusConfig``."""
    if combine == "logits":
        return torch.stack(list(logits)).mean(0)
    each = [F.log_softmax(one, dim=-1) for one in logits]
    top = each[0]
    for one in each[1:]:
        top = torch.maximum(top, one)
    total = (each[0] - top).exp()
    for one in each[1:]:
        total = total + (one - top).exp()
    return top + (total / len(each)).log()


def cerberus(model: "Model", body_layers: int, head_layers: int, heads: int, combine: str) -> Any:
    """The module made of a text classifier's: its first layers, and its last ones for each head.

    Nothing is shared with the model's own weights.
    """
    import copy

    described = model.architecture
    module: Any = model.module
    assert described is not None and described.stack is not None and described.head is not None
    head = described.head(module)
    fields: dict[str, Any] = module.config.to_dict()
    family = fields.pop("model_type")
    (activation,) = (n for n, each in _ACTIVATIONS.items() if each is head.activation)
    config = CerberusConfig(
        **{name: value for name, value in fields.items() if name != "architectures"},
        family=family,
        body_layers=body_layers,
        heads=heads,
        head_layers=head_layers,
        combine=combine,
        head_activation=activation,
    )
    depth = body_layers + heads * head_layers
    setattr(config, _depth_name(config), depth)
    with torch.device("meta"):
        made: Any = CerberusForSequenceClassification(config)
    encoder: Any = copy.deepcopy(module.base_model)
    layers = described.stack(encoder)
    kept, last = list(layers[:body_layers]), list(layers)[-head_layers:]
    del layers[:]
    layers.extend([*kept, *(copy.deepcopy(layer) for _ in range(heads) for layer in last)])
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    made.encoder = encoder
    for each in made.heads:
        each.hidden, each.classifier = copy.deepcopy(head.hidden), copy.deepcopy(head.classifier)
    return made.eval()


def _depth_name(config: Any) -> str:
    """What the family calls the number of its layers."""
    names = AutoConfig.for_model(config.family).attribute_map
    return str(names.get("num_hidden_layers", "num_hidden_layers"))


def _answer(module: Any, head: Any, state: Tensor) -> Tensor:
    logits: Tensor = head.classifier(
        _ACTIVATIONS[module.config.head_activation](head.hidden(state))
    )
    return logits


def _family(encoder: Any) -> Architecture:
    return architecture(encoder.config.model_type)


def _embeddings(encoder: Any) -> Embeddings:
    described = _family(encoder).embeddings
    assert described is not None
    return described(encoder)


def _layers(encoder: Any) -> tuple[Layer, ...]:
    described = _family(encoder).layers
    assert described is not None
    return described(encoder)


AutoConfig.register(CerberusConfig.model_type, CerberusConfig)
AutoModelForSequenceClassification.register(CerberusConfig, CerberusForSequenceClassification)

ARCHITECTURE = Architecture(
    forward=CerberusForward,
    embeddings=_embeddings,
    layers=_layers,
    token_types="pairs",
    branches=True,
)
