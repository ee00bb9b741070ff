"""Breaking a program's operators up one by one: as torch does it, or left to torch."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram, default_decompositions, export

from edgekit.export.decompose import decompose

EXAMPLE = torch.randn(3, 5, 8)


class Layers(nn.Module):
    """Two alike, side by side and one after the other, with outputs that are one of several, and a
    view that is what it is of.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linears = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, other = (linear(x) for linear in self.linears)
        x = torch.stack([one, other, one])[1:].mean(0)
        for linear in self.linears:
            first, second = linear(self.norm(x)).expand(3, 5, 8).chunk(2, dim=-1)
            x = x + torch.cat([torch.nn.functional.gelu(first), second @ second.mT @ second], -1)
        return torch.nn.functional.dropout(x, 0.5, training=False)


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] += 1
        return y


def never(*_: Any) -> ExportedProgram:
    raise AssertionError("torch broke it up")


def called(program: ExportedProgram) -> list[tuple[str, Any]]:
    values = (
        (str(n.target), n.meta.get("val")) for n in program.graph.nodes if n.op == "call_function"
    )
    return [(name, getattr(value, "shape", None)) for name, value in values]


@pytest.mark.slow
def test_it_is_what_torch_makes_of_it() -> None:
    module = Layers().eval()
    table = default_decompositions().materialize()
    torchs = export(module, (EXAMPLE,)).run_decompositions(dict(table))
    ours = decompose(export(module, (EXAMPLE,)), table, never)
    assert called(ours) == called(torchs)
    torch.testing.assert_close(ours.module()(EXAMPLE), module(EXAMPLE))


@pytest.mark.slow
def test_what_is_alike_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.fx.experimental import proxy_tensor

    made, traces = proxy_tensor.make_fx, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        traces.append(args)
        return made(*args, **kwargs)

    monkeypatch.setattr(proxy_tensor, "make_fx", counted)
    program = export(Layers().eval(), (EXAMPLE,))
    before = len(called(program))
    decompose(program, default_decompositions().materialize(), never)
    assert 0 < len(traces) < 0.7 * before


@pytest.mark.parametrize("kind", ["in place", "any length"])
def test_what_takes_more_is_left_to_torch(kind: str) -> None:
    if kind == "in place":
        module, shapes = InPlace(), None
    else:
        module, shapes = Layers().eval().norm, ({1: Dim("length")},)
    program = export(module, (EXAMPLE,), dynamic_shapes=shapes)
    made = decompose(program, {}, lambda program, _: program.run_decompositions())
    assert made is not program
    torch.testing.assert_close(made.module()(EXAMPLE), module(EXAMPLE))
