"""An encoder with its family's head for masked language modelling (rule 2 of ``pretrain_mlm``)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import structure

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.model import Model

# By transformers' model_type: the scores [N, tokens] of states [N, D].
HEADS: dict[str, Callable[[Any, Any], Any]] = {
    "albert": lambda lm, states: lm.predictions(states),
    "bert": lambda lm, states: lm.cls(states),
    "distilbert": lambda lm, states: lm.vocab_projector(
        lm.vocab_layer_norm(lm.activation(lm.vocab_transform(states)))
    ),
    "electra": lambda lm, states: lm.generator_lm_head(lm.generator_predictions(states)),
    "mobilebert": lambda lm, states: lm.cls(states),
    "mpnet": lambda lm, states: lm.lm_head(states),
    "roberta": lambda lm, states: lm.lm_head(states),
    "xlm-roberta": lambda lm, states: lm.lm_head(states),
}


def gap_filler(model: Model, seed: int) -> tuple[nn.Module, str]:
    """A module from inputs and chosen places [B, L] to scores [chosen, tokens], around the
    model's own encoder; and where its head comes from, in words. In learning mode, all of it.
    """
    import torch
    from torch import nn

    from edgekit.checkpoint import quiet

    module: Any = model.module
    with quiet(), torch.random.fork_rng(devices=[]):
        import transformers

        torch.manual_seed(seed)
        config = copy.deepcopy(module.config)
        # Layers may differ from what the config builds; they are replaced by the model's own.
        config.__dict__.pop(structure.KEY, None)
        lm: Any = transformers.AutoModelForMaskedLM.from_config(config)
        setattr(lm, lm.base_model_prefix, module.base_model)
        tie_decoder(lm)
        found = _saved_head(module.config, lm)
    if found:
        lm.load_state_dict(found, strict=False)
    head = HEADS[config.model_type]

    class Filler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm = lm

        def forward(self, inputs: dict[str, Tensor], chosen: Tensor) -> Tensor:
            states = self.lm.base_model(**inputs).last_hidden_state
            scores: Tensor = head(self.lm, states[chosen])
            return scores

    pooler = getattr(module.base_model, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
    begun = "with the checkpoint's own head" if found else "with a new head on the word table"
    return Filler().train(), begun


def tie_decoder(lm: Any) -> None:
    """Let the decoder's matrix be the word table; of a factored one, the product of its factors."""
    from edgekit.factored import Decoder, is_table

    table = lm.get_input_embeddings()
    if is_table(table):
        lm.set_output_embeddings(Decoder(table, lm.get_output_embeddings().bias))
    else:
        lm.tie_weights()


def _saved_head(config: Any, lm: Any) -> dict[str, Any]:
    """The head's tensors in the checkpoint that the model was read from: all of them, or none."""
    from safetensors import safe_open

    from edgekit.errors import ModelError
    from edgekit.source import weight_files

    prefix = lm.base_model_prefix + "."
    wanted = {
        name: tensor.shape
        for name, tensor in lm.state_dict().items()
        # What is tied has the shape that the model's own table has now.
        if not name.startswith(prefix) and not name.endswith(_TIED)
    }
    found: dict[str, Any] = {}
    folder = Path(config.name_or_path or "")
    with contextlib.suppress(ModelError, OSError):
        for path in weight_files(folder) if config.name_or_path else ():
            with safe_open(path, framework="pt") as file:
                held = set(file.keys()) & set(wanted)
                found |= {name: file.get_tensor(name) for name in held}
    same = all(name in found and found[name].shape == shape for name, shape in wanted.items())
    return found if wanted and same else {}


# A decoder's matrix is the word table, and has a bias of its own, in some families by two names.
_TIED = ("decoder.weight", "decoder.bias", "vocab_projector.weight", "generator_lm_head.weight")
