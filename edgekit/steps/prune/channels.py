"""Take channels out of a convolutional network. Fang et al. 2023, DepGraph, arXiv 2301.12900.

The library torch-pruning (MIT) finds which layers must lose the same channels, and removes them.

Rules:

1. Channels that depend on one another (along a residual connection, through a norm or a depthwise
   convolution) are one group, and go together.
2. Of each group the share ``ratio`` goes, those of the least importance; what stays is a multiple
   of ``round_to``, and at least that many. ``magnitude``: the mean of the norms (L2) of what
   belongs to the channel. ``taylor``: of |weight * gradient|, over training rows, of the loss to
   the model's own answers (Molchanov et al. 2019, arXiv 1906.10771).
3. The layer that gives the answer, and those that ``keep`` names, keep their outputs.
4. What stays is byte for byte as it was. Rows and columns are really gone: the file is smaller
   and faster. Follow it with distill.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import RecipeError
from edgekit.steps.needs import family_of, need_float, need_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.model import Model
    from edgekit.step import Context

Importance = Literal["magnitude", "taylor"]

# Rows whose gradients an importance is of, and how many at once.
_ROWS, _BATCH = 512, 32


@dataclass(frozen=True)
class PruneChannels:
    """Takes the least important channels out of a convolutional network.

    ratio: the share of channels that goes. importance: by magnitude, or by the loss's gradients
    (taylor). round_to: channels left are a multiple of it. keep: names of layers, separated by
    spaces, that keep all their outputs.
    """

    ratio: float = 0.5
    importance: Importance = "magnitude"
    round_to: int = 8
    keep: str = ""

    def requires(self, model: Model, context: Context) -> None:
        from torch import nn

        need_float("prune-channels", model)
        module = model.module
        parts = dict(module.named_modules())
        if not any(isinstance(part, nn.Conv2d) for part in parts.values()):
            raise RecipeError("prune-channels: this model has no convolutions; leave the step out")
        if model.architecture is not None and model.architecture.layers is not None:
            raise RecipeError(
                f"prune-channels: {family_of(model)} is made of attention, whose widths go "
                "together; use prune-heads and prune-ffn"
            )
        if not 0 < self.ratio < 1:
            raise RecipeError(
                f"prune-channels: ratio is a share between 0 and 1, is {self.ratio:g}"
            )
        if self.round_to < 1:
            raise RecipeError(f"prune-channels: round-to must be at least 1, is {self.round_to}")
        for name, part in parts.items():
            if isinstance(part, nn.Conv2d) and 1 < part.groups < part.in_channels:
                raise RecipeError(
                    f"prune-channels: {name} convolves in {part.groups} groups of channels, which "
                    "would have to stay of one size; only plain and depthwise ones are known"
                )
        for name in self.keep.split():
            if name not in parts:
                raise RecipeError(f"prune-channels: keep names {name}, which the model has not")
            if not hasattr(parts[name], "weight"):
                raise RecipeError(
                    f"prune-channels: keep names {name}, which holds layers and is none; name "
                    "those in it"
                )
        if self.importance == "taylor":
            need_rows("prune-channels", context)
            if model.preprocessor is None:
                raise RecipeError(
                    "prune-channels: taylor needs a loss, and a plain module has none; choose "
                    "magnitude"
                )
        if importlib.util.find_spec("torch_pruning") is None:
            raise RecipeError(
                "prune-channels: needs the library torch-pruning; install edgekit[channels]"
            )

    def apply(self, model: Model, context: Context) -> Model:
        module = copy.deepcopy(model.module)
        meta = any(parameter.is_meta for parameter in module.parameters())
        if meta:
            module = module.to_empty(device="cpu")
        inputs = _example(model)
        before = _channels(module)
        gradients = self.importance == "taylor" and context.folder is not None
        if gradients:
            _add_gradients(model, module, context)
        _prune(
            module,
            inputs,
            ratio=self.ratio,
            round_to=self.round_to,
            gradients=gradients,
            kept=[module.get_submodule(name) for name in self.keep.split()],
        )
        module.zero_grad(set_to_none=True)
        after = _channels(module)
        if after == before:
            raise RecipeError(
                f"prune-channels: ratio {self.ratio:g} in multiples of {self.round_to} takes no "
                "channel out; give a larger ratio or a smaller round-to"
            )
        if meta:
            module = module.to("meta")
        note = f"prune-channels ({self.importance}): {after} of {before} channels left"
        return model.with_module(module.eval(), note)

    def ensures(self, before: Model, after: Model) -> None:
        import torch

        if any(parameter.is_meta for parameter in after.module.parameters()):
            return
        with torch.no_grad():
            try:
                shapes = [_run(each.module, _example(each)).shape for each in (before, after)]
            except RuntimeError as error:
                raise RecipeError(
                    "prune-channels: the model does not run with fewer channels "
                    f"({str(error).splitlines()[0]}); name the layer that may lose none with keep"
                ) from None
        if shapes[0] != shapes[1]:
            raise RecipeError(
                f"prune-channels: the answer's shape was {list(shapes[0])} and would be "
                f"{list(shapes[1])}; name the layer that gives it with keep"
            )


def _prune(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    ratio: float,
    round_to: int,
    gradients: bool,
    kept: list[nn.Module],
) -> None:
    """Rules 1 to 3, in place."""
    import torch_pruning as pruning
    from torch import nn

    kinds = pruning.importance
    rank = kinds.GroupTaylorImportance() if gradients else kinds.GroupMagnitudeImportance(p=2)
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    graph = pruning.DependencyGraph().build_dependency(module, inputs, forward_fn=_run)
    ignored = [_answering(module, inputs), *kept]
    # All ranks are of the whole network, so that the order of the groups does not matter.
    chosen = []
    for group in graph.get_all_groups(
        ignored_layers=ignored, root_module_types=[nn.Conv2d, nn.Linear]
    ):
        importance = rank(group)
        gone = 0 if importance is None else len(importance) - left(len(importance), ratio, round_to)
        if gone > 0:
            root = group[0].dep
            least = importance.argsort(stable=True)[:gone].sort().values
            chosen.append((root.target.module, root.handler, least.tolist()))
    for part, handler, channels in chosen:
        graph.get_pruning_group(part, handler, channels).prune()


def left(channels: int, ratio: float, round_to: int) -> int:
    """How many of a group's channels stay: the nearest multiple, at least one (rule 2)."""
    multiple = int((1 - ratio) * channels / round_to + 0.5)
    return min(channels, max(1, multiple) * round_to)


def _answering(module: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The layer with weights that runs last."""
    import torch
    from torch import nn

    ran: list[nn.Module] = []
    hooks = [
        part.register_forward_hook(lambda part, *_: ran.append(part))
        for part in module.modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        _run(module, inputs)
    for hook in hooks:
        hook.remove()
    return ran[-1]


def _run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    answer: Any = module(*inputs)
    found: Tensor = getattr(answer, "logits", answer)
    return found


def _example(model: Model) -> tuple[Tensor, ...]:
    """Inputs of one row, on the CPU."""
    import torch

    from edgekit.preprocess import ImagePreprocessor

    if isinstance(model.preprocessor, ImagePreprocessor):
        p = model.preprocessor
        return (torch.zeros(1, p.channels, p.height, p.width),)
    return tuple((model.example or {}).values())


def _add_gradients(model: Model, module: nn.Module, context: Context) -> None:
    """Gradients, over training rows, of the cross entropy to what the model itself answers."""
    import torch
    import torch.nn.functional as F

    from edgekit.steps.quantize.calibrate import draw

    encoded = draw(model, context, _ROWS)
    assert context.rows is not None
    pixels = torch.from_numpy(encoded.arrays["pixel_values"])
    for start in range(0, len(pixels), _BATCH):
        logits = _run(module, (pixels[start : start + _BATCH],))
        loss = F.cross_entropy(logits, logits.detach().argmax(-1), reduction="sum")
        (loss / len(pixels)).backward()


def _channels(module: nn.Module) -> int:
    from torch import nn

    return sum(part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d))
