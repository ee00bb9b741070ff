"""Matrices kept as products of smaller ones: how they run, learn, are saved, and enter a file.

M [g D, D] is the g slices L K_h R below one another, and stands for a Linear's weight or, where
``transposed``, for its transpose. L [D, d1] and R [d2, D] may be shared by all matrices, or be of
each slice [g, D, d]; K [g, d1, d2] is the matrix's own ``core``, or ``mix`` [g, l] of a shared
``bank`` [l, d1, d2], or left out. The word table is a table [V, E] and a Linear from E to D.

``config.json`` names them (see ``structure``) under ``factored``: the module that has what is
``shared``; ``matrices`` and whether each is transposed; ``tables``. torch and transformers alone
multiply them out; the lines there then go on with ``tensors``:

    factored, tensors = config.edgekit["factored"], load_file(folder + "/model.safetensors")
    shared = {n: tensors.pop(f"{factored['shared']}.{n}", None) for n in ("left", "right", "bank")}
    for name, transposed in factored["matrices"].items():
        part = shared | {n: tensors.pop(f"{name}.{n}") for n in ("left", "right", "core", "mix")
                         if f"{name}.{n}" in tensors}
        left = part["left"]
        if "mix" in part:
            part["core"] = torch.einsum("xi,ikl->xkl", part["mix"], part["bank"])
        if "core" in part:
            left = left @ part["core"]
        weight = (left @ part["right"]).flatten(0, 1)
        tensors[f"{name}.weight"] = weight.T if transposed else weight
    for name in factored["tables"]:
        right = tensors.pop(f"{name}.right.weight")
        tensors[f"{name}.weight"] = tensors.pop(f"{name}.left.weight") @ right.T

A file for a runtime holds plain matrices (``merge``). Of the ways to multiply, each matrix takes
the one with the fewest weights among those that take no more multiplications than the dense one:

1. three products, L K R, cores mixed: D d2 + g d1 d2 + g d1 D multiplications a token;
2. two, with L K multiplied out: D d2 + g D d2;
3. the dense matrix: g D D.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Form = Literal["three", "two", "dense"]

SHARED = "factors"  # the submodule of the base model that has what its matrices share


class Factors(nn.Module):
    """What a model's matrices share: left [D, d1], right [d2, D], bank [l, d1, d2]."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.left: Tensor
        self.right: Tensor
        self.bank: Tensor
        for name in ("left", "right", "bank"):
            self.register_parameter(name, _parameter(tensors.get(name)))


class Factored(nn.Module):
    """Stands in for a Linear. ``tensors``: its own, by name (see the module), and the bias."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shared: Factors | None, transposed: bool
    ) -> None:
        super().__init__()
        self.left: Tensor
        self.right: Tensor
        self.core: Tensor | None
        self.mix: Tensor
        self.bias: Tensor | None
        for name in ("left", "right", "core", "mix", "bias"):
            self.register_parameter(name, _parameter(tensors.get(name)))
        self.transposed = transposed
        # In a tuple: it is a submodule of the base model alone, and has one name.
        self.shared = () if shared is None else (shared,)

    def parts(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """L [D, d1] or [g, D, d1], K [g, d1, d2] or ``None``, R [d2, D] or [g, d2, D]."""
        if not self.shared:
            return self.left, None, self.right
        (shared,) = self.shared
        core = self.core
        if core is None:
            core = torch.einsum("xi,ikl->xkl", self.mix, shared.bank)
        return shared.left, core, shared.right

    def forward(self, states: Tensor) -> Tensor:
        left, core, right = self.parts()
        if core is not None:
            inner = (left @ core).flatten(0, 1)
            if self.transposed:
                return F.linear(F.linear(states, inner.T), right.T, self.bias)
            return F.linear(F.linear(states, right), inner, self.bias)
        # Each slice has its own factors.
        across = right.flatten(0, 1)
        if self.transposed:
            narrow = torch.einsum("...hd,hdk->...hk", _cut(states, len(left)), left)
            return F.linear(narrow.flatten(-2), across.T, self.bias)
        narrow = _cut(F.linear(states, across), len(left))
        wide = torch.einsum("...hk,hdk->...hd", narrow, left).flatten(-2)
        return wide if self.bias is None else wide + self.bias

    def product(self) -> Tensor:
        """The weight [out, in] that this stands for."""
        left, core, right = self.parts()
        inner = left if core is None else left @ core
        matrix = (inner @ right).flatten(0, 1)
        return matrix.T if self.transposed else matrix


class Repeated(nn.Module):
    """One Linear for each of ``slices`` shares of the last axis; and a bias [slices * out]."""

    def __init__(self, linear: nn.Linear, slices: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.linear, self.slices = linear, slices
        self.bias: Tensor | None
        self.register_parameter("bias", _parameter(bias))

    def forward(self, states: Tensor) -> Tensor:
        shares: Tensor = self.linear(_cut(states, self.slices)).flatten(-2)
        return shares if self.bias is None else shares + self.bias


def _cut(states: Tensor, slices: int) -> Tensor:
    """[..., g D] to [..., g, D]; by a reshape, which writers of static int8 know."""
    return states.reshape(*states.shape[:-1], slices, -1)


class SideBySide(nn.Module):
    """Linears of one size, each for its own share of the last axis."""

    def __init__(self, parts: list[nn.Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.width = parts[0].in_features

    def forward(self, states: Tensor) -> Tensor:
        shares = (
            part(states[..., place * self.width : (place + 1) * self.width])
            for place, part in enumerate(self.parts)
        )
        return torch.cat(list(shares), -1)


def factored_table(left: Tensor, right: Tensor, padding: int | None) -> nn.Sequential:
    """The table left [V, E] @ right [E, D], of which rows are looked up by number."""
    rows, width = left.shape
    table = nn.Embedding(rows, width, padding_idx=padding, _weight=left)
    return nn.Sequential(OrderedDict(left=table, right=_linear(right.T.contiguous())))


def is_table(module: Any) -> bool:
    """Whether ``module`` is a ``factored_table``."""
    return (
        isinstance(module, nn.Sequential)
        and len(module) > 0
        and isinstance(module[0], nn.Embedding)
    )


class Decoder(nn.Module):
    """Scores [..., V] of all words, by a ``factored_table``: its weights are the table's own."""

    def __init__(self, table: Any, bias: Tensor | None) -> None:
        super().__init__()
        self.table = (table,)  # in a tuple: it is a submodule of the embeddings alone
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The table [V, D], multiplied out."""
        (table,) = self.table
        product: Tensor = table.right(table.left.weight)
        return product

    def forward(self, states: Tensor) -> Tensor:
        (table,) = self.table
        return F.linear(states @ table.right.weight, table.left.weight, self.bias)


def is_factored(module: nn.Module) -> bool:
    """Whether matrices of ``module`` are factored (its word table aside)."""
    return any(isinstance(part, Factored) for part in module.modules())


def form(size: int, slices: int, left: int, right: int, cored: bool = True) -> Form:
    """How a file multiplies with a matrix of ``slices`` slices [size, size] of these ranks.

    cored: there is a K; without, there are two products or one.
    """
    dense = slices * size * size
    if cored and size * right + slices * left * (right + size) <= dense:
        return "three"
    two = size * right * (slices + 1) if cored else 2 * slices * size * right
    return "two" if two <= dense else "dense"


def merge(changed: Any) -> Any:
    """Make a factored module what files hold, in place: plain Linears.

    Their weights are copies, equal ones the same.
    """
    with torch.no_grad():
        wide: dict[str, nn.Parameter] = {}
        for part in changed.modules():
            if isinstance(part, Factors):
                for name, tensor in (("left", part.left), ("right", part.right)):
                    wide[name] = nn.Parameter(tensor.detach().clone())
                    wide[f"{name}.T"] = nn.Parameter(tensor.detach().T.contiguous())
        found = [(n, p) for n, p in changed.named_modules() if isinstance(p, Factored)]
        for name, part in found:
            changed.set_submodule(name, _plain(part, wide))
    base = changed.base_model
    if hasattr(base, SHARED):
        delattr(base, SHARED)
    return changed.eval()


def _plain(matrix: Factored, wide: Mapping[str, nn.Parameter]) -> nn.Module:
    left, core, right = matrix.parts()
    size, slices = left.shape[-2], len(left if core is None else core)
    chosen = form(size, slices, left.shape[-1], right.shape[-2], core is not None)
    bias = None if matrix.bias is None else matrix.bias.detach()
    if chosen == "dense":
        return _linear(matrix.product(), bias)
    parts: list[nn.Module]
    if core is None:
        across = right.flatten(0, 1)
        biases = [None] * slices if bias is None else list(bias.chunk(slices))
        if matrix.transposed:
            narrow = [_linear(each.T) for each in left]
            parts = [_side_by_side(narrow), _linear(across.T, bias)]
        else:
            parts = [_linear(across), _side_by_side(list(map(_linear, left, biases)))]
    elif chosen == "two":
        mixed = (left @ core).flatten(0, 1)
        if matrix.transposed:
            parts = [_linear(mixed.T), _linear(wide["right.T"], bias)]
        else:
            parts = [_linear(wide["right"]), _linear(mixed, bias)]
    elif matrix.transposed:
        inner = _linear(wide["left.T"])
        first = inner if slices == 1 else Repeated(inner, slices)
        parts = [first, _linear(core.flatten(0, 1).T), _linear(wide["right.T"], bias)]
    else:
        last = Repeated(_linear(wide["left"]), slices, None if bias is None else bias.clone())
        parts = [_linear(wide["right"]), _linear(core.flatten(0, 1)), last]
    return nn.Sequential(*parts)


def _side_by_side(parts: list[nn.Linear]) -> nn.Module:
    return parts[0] if len(parts) == 1 else SideBySide(parts)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    outputs, inputs = weight.shape
    made = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    # Contiguous: litert-torch 0.10 takes every weight to be.
    same = isinstance(weight, nn.Parameter)
    made.weight = weight if same else nn.Parameter(weight.detach().contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def _parameter(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor)


def describe(module: nn.Module) -> dict[str, Any] | None:
    """What ``config.json`` says of the factored parts; ``None`` when there are none."""
    parts = dict(module.named_modules())
    matrices = {n: p.transposed for n, p in parts.items() if isinstance(p, Factored)}
    tables = [name for name, part in parts.items() if is_table(part)]
    if not matrices and not tables:
        return None
    shared = next((n for n, part in parts.items() if isinstance(part, Factors)), None)
    return {"shared": shared, "matrices": matrices, "tables": tables}


def inside(name: str, described: Mapping[str, Any] | None) -> bool:
    """Whether the tensor ``name`` belongs to a factored part."""
    if described is None:
        return False
    parts = [described["shared"], *described["matrices"], *described["tables"]]
    return any(part is not None and name.startswith(f"{part}.") for part in parts)


def install(module: nn.Module, described: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    """Put the factored parts into ``module`` as its config builds it, on the meta device."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, shape in shapes.items():
        owner, _, last = name.rpartition(".")
        found.setdefault(owner, {})[last] = torch.empty(shape, device="meta")
    shared = None
    if described["shared"] is not None:
        shared = Factors(found[described["shared"]])
        owner, _, last = described["shared"].rpartition(".")
        module.get_submodule(owner).add_module(last, shared)
    for name, transposed in described["matrices"].items():
        module.set_submodule(name, Factored(found[name], shared, transposed))
    for name in described["tables"]:
        table: Any = module.get_submodule(name)
        left = found[f"{name}.left"]["weight"]
        right = found[f"{name}.right"]["weight"]
        module.set_submodule(name, factored_table(left, right.T, table.padding_idx))
