"""The BiLSTM student: one LSTM over the words from each side, and the largest answer of each cell.

Hochreiter and Schmidhuber 1997; as a student of BERT: Tang et al. 2019, arXiv 1903.12136. For
tagging the states stay with their words.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture
from edgekit.architectures.light import (
    Light,
    LightConfig,
    LightForward,
    LightHead,
    embeddings,
    register,
)

if TYPE_CHECKING:
    from edgekit.model import Model

# torch keeps the gates as input, forget, cell, output; ONNX wants input, output, forget, cell.
_ONNX_GATES = (0, 3, 1, 2)


class BilstmConfig(LightConfig):
    """cells: of each direction."""

    model_type = "edgekit-bilstm"

    cells: int = 8


class _Bilstm(Light):
    config_class = BilstmConfig

    def __init__(self, config: BilstmConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.ahead = nn.LSTM(config.embedding_size, config.cells, batch_first=True)
        self.back = nn.LSTM(config.embedding_size, config.cells, batch_first=True)
        self.head = LightHead(2 * config.cells, config)
        self.ready()

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L, 2 cells]; what stands in the padding means nothing."""
        rows = self.dropout(self.words(input_ids))
        lengths = attention_mask.sum(1)
        ahead, _ = self.ahead(rows)
        back, _ = self.back(_turned(rows, lengths))
        return torch.cat([ahead, _turned(back, lengths)], -1)

    def finish(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """The logits of the states."""
        raise NotImplementedError

    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        return self.finish(self.states(input_ids, attention_mask), attention_mask)


class BilstmForSequenceClassification(_Bilstm):
    def finish(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        # A cell's answer is above -1, so that the padding never is the largest.
        mask = attention_mask.to(states.dtype)[:, :, None]
        logits: Tensor = self.head((states * mask + (mask - 1.0) * 2.0).amax(1))
        return logits


class BilstmForTokenClassification(_Bilstm):
    def finish(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(states)
        return logits


class BilstmForward(LightForward):
    """The clean forward; in ONNX the one operator for both directions, which knows of lengths."""

    inputs: Tensor
    states: Tensor
    biases: Tensor

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__(model, decomposed_norm)
        module: Any = model.module
        both = (module.ahead, module.back)
        made = {
            "inputs": torch.stack([_gates(each.weight_ih_l0) for each in both]),
            "states": torch.stack([_gates(each.weight_hh_l0) for each in both]),
            "biases": torch.stack(
                [torch.cat([_gates(each.bias_ih_l0), _gates(each.bias_hh_l0)]) for each in both]
            ),
        }
        for name, weight in made.items():
            self.register_buffer(name, weight.detach(), persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        module: Any = self.module
        if not torch.onnx.is_in_onnx_export():
            logits: Tensor = module.logits(input_ids, attention_mask, token_type_ids)
            return logits
        rows = module.words(input_ids)
        lengths = attention_mask.sum(1).to(torch.int32)
        shape = rows.shape[1], 2, rows.shape[0], module.config.cells
        states = torch.onnx.ops.symbolic(
            "LSTM",
            [rows.transpose(0, 1), self.inputs, self.states, self.biases, lengths],
            {"direction": "bidirectional", "hidden_size": module.config.cells},
            dtype=rows.dtype,
            shape=shape,
        )
        finished: Tensor = module.finish(states.permute(2, 0, 1, 3).flatten(2), attention_mask)
        return finished


def _turned(states: Tensor, lengths: Tensor) -> Tensor:
    """[B, L, D] with the first ``lengths`` [B] of each row from last to first."""
    place = torch.arange(states.shape[1], device=states.device)
    places = (lengths[:, None] - 1 - place[None, :]).clamp_min(0)
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))


def _gates(weight: Tensor) -> Tensor:
    """The rows of the four gates in ONNX's order."""
    parts = weight.chunk(4)
    return torch.cat([parts[gate] for gate in _ONNX_GATES])


register(BilstmConfig, BilstmForSequenceClassification, BilstmForTokenClassification)
ARCHITECTURE = Architecture(forward=BilstmForward, embeddings=embeddings)
