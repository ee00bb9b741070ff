"""Conversions are kept by what the program is, and by nothing less."""

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.export.programs import converted, program_of


class Scaled(nn.Module):
    def __init__(self, by: float = 2.0, weight: float = 1.0) -> None:
        super().__init__()
        self.by = by
        self.layer = nn.Linear(4, 4)
        nn.init.constant_(self.layer.weight, weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.by


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def convert(module: nn.Module, made: list[Path], rows: int = 2, converter: str = "any") -> Path:
    def write(path: Path) -> None:
        made.append(path)
        path.write_text("converted")

    return converted(converter, program_of(module.eval(), (torch.ones(rows, 4),)), "file", write)


def test_the_same_program_is_converted_once() -> None:
    made: list[Path] = []
    first, second = convert(Scaled(), made), convert(Scaled(), made)
    assert first == second and first.read_text() == "converted"
    assert len(made) == 1


def test_whatever_differs_is_another_program() -> None:
    made: list[Path] = []
    convert(Scaled(), made)
    convert(Scaled(by=3.0), made)  # a number in the code
    convert(Scaled(weight=1.0 + 1e-7), made)  # the last bit of a weight
    convert(Scaled(), made, rows=3)  # a shape
    convert(Scaled(), made, converter="other")
    assert len(made) == 5


def test_a_damaged_conversion_is_made_again() -> None:
    made: list[Path] = []
    convert(Scaled(), made).write_text("flipped")
    assert convert(Scaled(), made).read_text() == "converted"
    assert len(made) == 2


def test_a_conversion_that_fails_leaves_nothing(own_store: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise ValueError("no such operator")

    program = program_of(Scaled().eval(), (torch.ones(2, 4),))
    with pytest.raises(ValueError, match="no such operator"):
        converted("any", program, "file", fail)
    assert [path for path in own_store.rglob("*") if path.name in ("file", "entry.json")] == []
