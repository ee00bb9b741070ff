"""ViT: an encoder of image patches. Dosovitskiy et al. 2020, arXiv 2010.11929."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgekit.architectures import Architecture, Layer
from edgekit.architectures.blocks import activation, attend, norm_function
from edgekit.structure import is_absent

if TYPE_CHECKING:
    from edgekit.model import Model


def _layers(encoder: Any) -> tuple[Layer, ...]:
    return tuple(map(_layer, encoder.layers))


def _layer(layer: Any) -> Layer:
    attention = layer.attention
    return Layer(
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        attention_output=attention.o_proj,
        attention_norm=layer.layernorm_before,
        up=layer.mlp.fc1,
        down=layer.mlp.fc2,
        output_norm=layer.layernorm_after,
        activation=activation(layer.mlp.activation_fn),
        head_width=attention.head_dim,
    )


class VitForward(nn.Module):
    """``pixel_values`` [B, C, H, W] to logits [B, labels], from the class token's state.

    Without transformers' mask code, which leaves a selection on a constant mask in the graph;
    and the last layer works out the class token alone.
    """

    def __init__(self, model: "Model", decomposed_norm: bool) -> None:
        super().__init__()
        self.module = model.module
        encoder: Any = model.module.base_model
        self.patches = encoder.embeddings.patch_embeddings.projection
        self.layers = _layers(encoder)
        self.norm = norm_function(decomposed_norm)
        tables = encoder.embeddings
        positions = tables.position_embeddings.detach()
        self.first: Tensor
        self.register_buffer("first", tables.cls_token.detach() + positions[:, :1], False)
        self.positions: Tensor
        self.register_buffer("positions", positions[:, 1:].clone(), False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        module: Any = self.module
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.positions
        first = self.first.expand(patches.shape[0], -1, -1)
        states = torch.cat([first, patches], dim=1)
        for layer in self.layers[:-1]:
            states = self._layer(layer, states, first_only=False)
        states = self._layer(self.layers[-1], states, first_only=True)
        summary = self.norm(states, module.base_model.layernorm)[:, 0]
        logits: Tensor = module.classifier(summary)
        return logits

    def _layer(self, layer: Layer, states: Tensor, first_only: bool) -> Tensor:
        """A layer with its norms before its parts, unlike BERT's."""
        normal = self.norm(states, layer.attention_norm)
        rows, wanted = (states[:, :1], normal[:, :1]) if first_only else (states, normal)
        if not is_absent(layer.query):
            context = attend(
                layer.query(wanted), layer.key(normal), layer.value(normal), layer.head_width
            )
            rows = layer.attention_output(context) + rows
        if not is_absent(layer.up):
            inner = layer.activation(layer.up(self.norm(rows, layer.output_norm)))
            rows = layer.down(inner) + rows
        return rows


ARCHITECTURE = Architecture(
    forward=VitForward,
    layers=_layers,
    stack=lambda encoder: encoder.layers,
    norm_first=True,
    cuts=frozenset({"heads", "neurons"}),
)
