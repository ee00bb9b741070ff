"""What a converter makes of a traced module is kept in the store, by what the program is.

A conversion takes seconds a layer, and every scheme begins with the same one: another scheme,
another target or the next try finds it made. The key is the program itself, its operators and
its numbers, so that nothing which decides the outcome can be forgotten in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.store import Store

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def program_of(
    module: nn.Module, inputs: tuple[Any, ...], dynamic_shapes: Any = None
) -> ExportedProgram:
    """The module as one graph of operators. Raises whatever the module's own code raises."""
    import torch

    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes, strict=False)


def converted(
    converter: str, program: ExportedProgram, name: str, convert: Callable[[Path], object]
) -> Path:
    """The file ``name`` that ``convert`` writes of this program, or wrote of it before.

    It is the store's: to be read, not changed. ``convert`` may spoil the program.
    """

    def produce(folder: Path) -> None:
        convert(folder / name)

    inputs = {"converter": converter, "program": _digest(program)}
    return Store().stage("convert", inputs, produce).path / name


def _digest(program: ExportedProgram) -> str:
    """Of all that a converter reads: operators, shapes, how inputs are meant, and every tensor."""
    import torch

    digest = hashlib.sha256()
    for name, module in program.graph_module.named_modules():
        if isinstance(module, torch.fx.GraphModule):
            digest.update(f"{name}\n{module.code}\n".encode())
    for node in program.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            shape, dtype = getattr(value, "shape", value), getattr(value, "dtype", None)
            digest.update(f"{node.name} {shape} {dtype}\n".encode())
    digest.update(f"{program.graph_signature}\n{program.range_constraints}\n".encode())
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().view(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()
