"""The BiLSTM student: one LSTM over the words from each side, and the largest answer of each cell.

Hochreiter and Schmidhuber 1997; as a student of BERT: Tang et al. 2019, arXiv 1903.12136. For
tagging the states stay with their words.
"""

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
        self.post_init()

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L, 2 cells]; what stands in the padding means nothing."""
        rows = self.dropout(self.words(input_ids))
        lengths = attention_mask.sum(1)
        if torch.onnx.is_in_onnx_export():
            return self._as_onnx(rows, lengths)
        ahead, _ = self.ahead(rows)
        back, _ = self.back(_turned(rows, lengths))
        return torch.cat([ahead, _turned(back, lengths)], -1)

    def _as_onnx(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The one operator that ONNX has for both directions, which knows of lengths."""
        both = (self.ahead, self.back)
        arguments = [
            rows.transpose(0, 1),
            torch.stack([_gates(each.weight_ih_l0) for each in both]),
            torch.stack([_gates(each.weight_hh_l0) for each in both]),
            torch.stack(
                [torch.cat([_gates(each.bias_ih_l0), _gates(each.bias_hh_l0)]) for each in both]
            ),
            lengths.to(torch.int32),
        ]
        batch, length = rows.shape[0], rows.shape[1]
        cells = self.config.cells
        states = torch.onnx.ops.symbolic(
            "LSTM",
            arguments,
            {"direction": "bidirectional", "hidden_size": cells},
            dtype=rows.dtype,
            shape=(length, 2, batch, cells),
        )
        return states.permute(2, 0, 1, 3).flatten(2)


class BilstmForSequenceClassification(_Bilstm):
    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        states = self.states(input_ids, attention_mask)
        # A cell's answer is above -1, so that the padding never is the largest.
        padding = (1.0 - attention_mask.to(states.dtype))[:, :, None] * -2.0
        mask = attention_mask.to(states.dtype)[:, :, None]
        logits: Tensor = self.head((states * mask + padding).amax(1))
        return logits


class BilstmForTokenClassification(_Bilstm):
    def logits(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        logits: Tensor = self.head(self.states(input_ids, attention_mask))
        return logits


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
ARCHITECTURE = Architecture(forward=LightForward, embeddings=embeddings)
