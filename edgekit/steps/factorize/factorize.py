"""Replace the encoder's matrices by products of smaller ones. Ren et al. 2022, Exploring Extreme
Parameter Compression for Pre-trained Language Models, arXiv 2205.10036.

Rules, for layers of width D whose feed-forward part is g D wide:

1. A layer is 4 + 2 g slices D x D: query, key, value and attention output as they multiply
   (input by output), and g of each feed-forward matrix, cut along its inner axis, which is the
   left one in both: up[h] is inner by outer as stored, down[h] transposed.
2. ``II``: each slice by itself, W = U V of rank d, by its singular values, which go into both
   alike. N slices take N 2 D d weights.
3. ``III``: W_x = U C_x V with U [D, d1] and V [d2, D] for all: N d1 d2 + D d1 + d2 D.
4. ``IV``: W_x = U (sum_i P_xi C_i) V with l matrices in the bank: N l + l d1 d2 + D d1 + d2 D.
5. U, V and P begin as the leading singular vectors of the three unfoldings (HOSVD; De Lathauwer
   et al. 2000), and are then worked out in turn while that lowers the error (HOOI): no random
   numbers, and never worse than HOSVD. The core is the projection of the matrices.
6. Biases, norms, embeddings and head stay as they are. Layers that share weights are one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import RecipeError
from edgekit.steps.needs import family_of, need_encoder, need_float
from edgekit.structure import is_absent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgekit.architectures import Layer
    from edgekit.model import Model
    from edgekit.step import Context

Method = Literal["II", "III", "IV"]

_ROUNDS = 20  # of HOOI at most; it stops when a round lowers the error by less than a millionth
_ENOUGH = 1e-6


@dataclass(frozen=True)
class Factorize:
    """Replaces the encoder's matrices by products of smaller ones; follow it with distill.

    method: II each by itself, III with shared outer factors, IV with a bank of shared cores as
    well. rank: of the factors; left_rank and right_rank instead where they differ. bank: how many
    cores IV has.
    """

    method: Method = "III"
    rank: int | None = None
    left_rank: int | None = None
    right_rank: int | None = None
    bank: int | None = None

    def requires(self, model: Model, context: Context) -> None:
        need_float("factorize", model)
        described = need_encoder("factorize", model)
        if not described.learns:
            raise RecipeError(
                f"factorize: {family_of(model)} runs on copies of its weights, which cannot be "
                "replaced; leave the step out"
            )
        left, right = self._ranks()
        if self.method == "II" and left != right:
            raise RecipeError("factorize: method II has one rank; give rank alone")
        if (self.method == "IV") != (self.bank is not None):
            raise RecipeError("factorize: bank is how many cores method IV has, and for it alone")
        size, slices = _shape_of(model)
        for name, rank in (("left-rank", left), ("right-rank", right)):
            if not 1 <= rank <= size:
                option = "rank" if self.rank is not None else name
                raise RecipeError(f"factorize: {option} must be from 1 to {size}, is {rank}")
        if self.bank is not None and not 1 <= self.bank <= slices:
            raise RecipeError(
                f"factorize: bank must be from 1 to {slices} (the slices of all layers), is "
                f"{self.bank}"
            )

    def apply(self, model: Model, context: Context) -> Model:
        import torch

        from edgekit.factored import SHARED, Factored, Factors
        from edgekit.structure import sharing_copy

        changed: Any = sharing_copy(model.module)
        matrices = _matrices(model, changed)
        left, right = self._ranks()
        context.on_progress(0.0, "factorizing")
        with torch.no_grad():
            stacks = [_slices(weight.weight, up) for _, weight, up in matrices]
            shared, own, error = factors(self.method, stacks, left, right, self.bank)
            common = Factors(shared) if shared else None
            for (name, linear, up), parts in zip(matrices, own, strict=True):
                if linear.bias is not None:
                    parts["bias"] = linear.bias
                changed.set_submodule(name, Factored(parts, common, transposed=not up))
        if common is not None:
            changed.base_model.add_module(SHARED, common)
        before = sum(linear.weight.numel() for _, linear, _ in matrices)
        after = sum(
            t.numel() for part in (shared, *own) for name, t in part.items() if name != "bias"
        )
        ranks = f"rank {left}" if left == right else f"ranks {left} and {right}"
        bank = "" if self.bank is None else f", bank of {self.bank}"
        lost = "" if error is None else f", relative error {error:.3f}"
        note = (
            f"factorize ({self.method}, {ranks}{bank}): {before:,} weights of {len(matrices)} "
            f"matrices became {after:,}{lost}; {self._in_files(stacks, left, right)}"
        )
        # A product of factors has no zeros where the matrix had them.
        return replace(model.with_module(changed.eval(), note), sparsity=0.0)

    def ensures(self, before: Model, after: Model) -> None:
        size, slices = _shape_of(before)
        left, right = self._ranks()
        expected = {
            "II": slices * 2 * size * left,
            "III": slices * left * right + size * (left + right),
            "IV": (self.bank or 0) * (slices + left * right) + size * (left + right),
        }[self.method]
        if _factor_weights(after.module) != expected:
            raise RecipeError("factorize: another number of weights is left; a bug of edgekit")

    def _ranks(self) -> tuple[int, int]:
        """Of the left and the right factor. Raises RecipeError unless both are given, once."""
        sides = (self.left_rank, self.right_rank)
        if self.rank is not None and sides == (None, None):
            return self.rank, self.rank
        if self.rank is None and None not in sides:
            return self.left_rank or 0, self.right_rank or 0
        raise RecipeError("factorize: give either rank, or left-rank and right-rank")

    def _in_files(self, stacks: Sequence[Tensor], left: int, right: int) -> str:
        """What an exported file holds, and why (the rules of ``factored``)."""
        from edgekit.factored import form

        cored = self.method != "II"
        said = {
            "three": "as three products",
            "two": "as two products" + (", the core multiplied out" if cored else ""),
            "dense": "whole again, because its products would take longer",
        }
        forms = {len(each): form(each.shape[-1], len(each), left, right, cored) for each in stacks}
        if len(set(forms.values())) == 1:
            told = f"each matrix {said[forms.popitem()[1]]}"
        else:
            told = " and ".join(
                f"matrices of {count} slice{'s' * (count > 1)} {said[kind]}"
                for count, kind in sorted(forms.items())
            )
        return f"exported files hold {told}{', cores mixed' if self.method == 'IV' else ''}"


def factors(
    method: Method, stacks: Sequence[Tensor], left: int, right: int, bank: int | None
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], float | None]:
    """What all matrices share, what each has, and the relative error of all together.

    stacks: of each matrix its slices [g, D, D]. On the meta device shapes alone are made and the
    error is ``None``.
    """
    import torch

    whole = torch.cat(list(stacks)).double()
    cuts = [len(each) for each in stacks]
    if method == "II":
        inner, outer = truncated_svd(whole, left)
        own = [
            {"left": a, "right": b}
            for a, b in zip(_apart(inner, cuts), _apart(outer, cuts), strict=True)
        ]
        return {}, own, _relative_error(whole, inner @ outer)
    mix, core, u, v = tucker(whole, bank, left, right)
    shared = {"left": u.float().contiguous(), "right": v.T.float().contiguous()}
    cores = core if mix is None else torch.einsum("xi,ikl->xkl", mix, core)
    error = _relative_error(whole, u @ cores @ v.T)
    if mix is None:
        return shared, [{"core": each} for each in _apart(core, cuts)], error
    shared["bank"] = core.float()
    return shared, [{"mix": each} for each in _apart(mix, cuts)], error


def _apart(stacked: Tensor, cuts: list[int]) -> list[Tensor]:
    """Its parts in float32, each with a storage of its own: TorchScript writes storages."""
    return [part.clone() for part in stacked.float().split(cuts)]


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """[..., M, r] and [..., r, N], of all such products the nearest to [..., M, N]."""
    import torch

    if matrix.is_meta:
        *batch, rows, columns = matrix.shape
        return matrix.new_empty(*batch, rows, rank), matrix.new_empty(*batch, rank, columns)
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = values[..., :rank].sqrt()
    return u[..., :rank] * root[..., None, :], root[..., :, None] * vh[..., :rank, :]


def tucker(
    whole: Tensor, bank: int | None, left: int, right: int
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """P [N, l], C [l, d1, d2], U [D, d1], V [D, d2] for slices [N, D, D], by rule 5.

    Without ``bank`` P is ``None`` and C is [N, d1, d2].
    """

    count, size, _ = whole.shape
    if whole.is_meta:
        mix = None if bank is None else whole.new_empty(count, bank)
        core = whole.new_empty(bank or count, left, right)
        return mix, core, whole.new_empty(size, left), whole.new_empty(size, right)
    mix = None if bank is None else _leading(whole.flatten(1), bank)
    u = _leading(whole.permute(1, 0, 2).flatten(1), left)
    v = _leading(whole.permute(2, 0, 1).flatten(1), right)
    core, kept = whole, 0.0

    for _ in range(_ROUNDS):
        core = _mixed(u.T @ whole @ v, mix)
        before, kept = kept, float(core.square().sum())
        lost = max(float(whole.square().sum()) - kept, 0.0)
        if kept - before <= _ENOUGH * lost:
            break
        small = _mixed(whole @ v, mix)
        u = _leading(small.permute(1, 0, 2).flatten(1), left)
        small = _mixed(u.T @ whole, mix)
        v = _leading(small.permute(2, 0, 1).flatten(1), right)
        if mix is not None and bank is not None:
            mix = _leading((u.T @ whole @ v).flatten(1), bank)
    return mix, _mixed(u.T @ whole @ v, mix), u, v


def _mixed(slices: Tensor, mix: Tensor | None) -> Tensor:
    """[N, a, b] projected on the columns of P: [l, a, b]."""
    import torch

    return slices if mix is None else torch.einsum("xi,xkl->ikl", mix, slices)


def _leading(unfolded: Tensor, count: int) -> Tensor:
    """The leading left singular vectors [M, count] of [M, ...], from its Gram matrix."""
    import torch

    vectors: Tensor = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors
    return vectors.flip(-1)[:, :count]


def _relative_error(whole: Tensor, product: Tensor) -> float | None:
    if whole.is_meta:
        return None
    return math.sqrt(float((whole - product).square().sum() / whole.square().sum()))


def _slices(weight: Tensor, up: bool) -> Tensor:
    """Rule 1: [g, D, D] of a weight [out, in]."""
    matrix = weight if up else weight.T
    return matrix.reshape(-1, matrix.shape[1], matrix.shape[1])


def _matrices(model: Model, module: Any) -> list[tuple[str, nn.Linear, bool]]:
    """(name, module, whether it is a layer's ``up``) of each matrix once, in order."""
    described = model.architecture
    assert described is not None and described.layers is not None
    names = {id(part): name for name, part in reversed(list(module.named_modules()))}
    found: dict[int, tuple[str, nn.Linear, bool]] = {}
    for layer in described.layers(module.base_model):
        for part, up in _parts(layer):
            found.setdefault(id(part), (names[id(part)], part, up))
    return list(found.values())


def _parts(layer: Layer) -> list[tuple[Any, bool]]:
    square = (layer.query, layer.key, layer.value, layer.attention_output)
    parts = [*((part, False) for part in square), (layer.up, True), (layer.down, False)]
    return [(part, up) for part, up in parts if not is_absent(part)]


def _shape_of(model: Model) -> tuple[int, int]:
    """D and the number of slices of all layers. Raises RecipeError where there are none such."""
    matrices = _matrices(model, model.module)
    if not matrices:
        raise RecipeError("factorize: no layer has a matrix left; leave the step out")
    # What a layer's first matrix reads is of the layers' width.
    size = matrices[0][1].weight.shape[1]
    slices = 0
    for name, linear, up in matrices:
        shape = tuple(linear.weight.shape)
        inner, outer = shape if up else shape[::-1]
        if outer != size:
            raise RecipeError(
                f"factorize: {name} is {shape[0]} x {shape[1]}, and the method is for layers of "
                f"one width, {size}; leave the step out"
            )
        if inner % size:
            raise RecipeError(
                f"factorize: {name} is {shape[0]} x {shape[1]}, and {inner} is no multiple of the "
                f"width {size}; leave factorize out, or prune-ffn with even=1,multiple={size}"
            )
        slices += inner // size
    return size, slices


def _factor_weights(module: Any) -> int:
    from edgekit.factored import Factored, Factors

    return sum(
        parameter.numel()
        for part in module.modules()
        if isinstance(part, Factored | Factors)
        for name, parameter in part.named_parameters()
        if name != "bias"
    )
