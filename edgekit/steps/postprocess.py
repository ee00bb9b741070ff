"""Standardise the final representation, and fold that into what is there. arXiv 2104.07456.

Sajjad et al. 2022, Effect of post-processing on contextualized word representations.

Rules:

1. The representation is the one of ``probe`` (rule 1); statistics are of training rows alone.
2. ``z-score`` is (x - mean) / spread for each neuron, ``min-max`` (x - min) / (max - min). A
   neuron that hardly changes, by less than a hundredth of its size, is left unscaled.
3. ``all-but-the-top`` is x - mean without its part along the first ``components`` principal
   directions, a hundredth of the width unless said (Mu and Viswanath 2017, arXiv 1702.01417).
4. These are affine, and so they cost nothing. A classifier is fitted anew on the changed
   representation, W (M (x - m)) + b, and ships as one layer: W M and b - W M m. A sentence
   embedding has z-score and min-max folded into the gain and bias of its last norm: the mean of
   changed states is the changed mean.
5. ``all-but-the-top`` of a sentence embedding is a Linear more, behind the mean of its states
   (``structure``): no norm can hold it. Whatever is standardised must come before it.
6. ``unit-length`` is x / |x|, which is no affine map: the classifier divides by the length itself
   (``edgekit.unit_length``), and is fitted to x / |x| times the root of the width, which makes
   neurons of about unit spread. Nothing can be standardised behind it. A sentence embedding has
   it already.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.needs import family_of, need_float, need_labels, need_rows
from edgekit.structure import project, projection, sharing_copy

if TYPE_CHECKING:
    from edgekit.architectures import Head
    from edgekit.model import Model
    from edgekit.preprocess import Array
    from edgekit.step import Context
    from edgekit.steps.probe import Linear

Kind = Literal["z-score", "min-max", "unit-length", "all-but-the-top"]


@dataclass(frozen=True)
class Affine:
    """x to matrix (x - shift): [K, K] and [K], float64; ``matrix`` [K] stands for a diagonal."""

    matrix: Array
    shift: Array

    def of(self, states: Array) -> Array:
        """float64 [N, K] of [N, K]."""
        centred = states.astype(np.float64) - self.shift
        changed: Array = centred * self.matrix if self.matrix.ndim == 1 else centred @ self.matrix.T
        return changed


@dataclass(frozen=True)
class Postprocess:
    """Standardises what the classifier reads and refits it, or the vectors of an embedding.

    kind: how. components: for all-but-the-top, how many directions go.
    """

    kind: Kind = "z-score"
    components: int | None = None

    def requires(self, model: Model, context: Context) -> None:
        need_float("postprocess", model)
        if model.architecture is None or not model.architecture.reads_text:
            raise RecipeError("postprocess: this model reads no text; leave the step out")
        if self.components is not None and self.kind != "all-but-the-top":
            raise RecipeError("postprocess: components go with kind=all-but-the-top")
        head = model.architecture.task_head(model.module, model.task)
        need_rows("postprocess", context)
        if head is None and model.task != "sentence-embedding":
            raise RecipeError(
                f"postprocess: the classifier of {family_of(model)} is not known here; leave the "
                "step out"
            )
        if head is None:
            if projection(model.module) is not None:
                raise RecipeError(
                    "postprocess: all-but-the-top was done to this embedding already, and is the "
                    "last that can be; leave the step out"
                )
            if self.kind == "all-but-the-top":
                self._check_components(_width(model))
            else:
                _last_norm(model)
            return
        need_plain("postprocess", head)
        self._check_components(head.classifier.weight.shape[1])
        need_labels("postprocess", context)

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            return self._outline(model)
        assert model.architecture is not None and context.rows is not None
        if model.architecture.task_head(model.module, model.task) is not None:
            return self._classifier(model, context)
        if self.kind == "unit-length":
            note = "postprocess: the vectors have length 1 already"
            return replace(model, lineage=(*model.lineage, note))
        return self._embedding(model, context)

    def ensures(self, before: Model, after: Model) -> None:
        shapes = {name: t.shape for name, t in self._outline(before).module.state_dict().items()}
        if shapes != {name: t.shape for name, t in after.module.state_dict().items()}:
            raise RecipeError("postprocess: changed a shape; this is a bug of edgekit")

    def _check_components(self, width: int) -> None:
        if self.components is not None and not 1 <= self.components < width:
            raise RecipeError(
                f"postprocess: components must be from 1 to {width - 1}, is {self.components}"
            )

    def _outline(self, model: Model) -> Model:
        """A copy with the shapes that come of it."""
        assert model.architecture is not None
        head = model.architecture.task_head(model.module, model.task)
        changed = replace(model, module=sharing_copy(model.module))
        if head is not None and self.kind == "unit-length":
            _read_at_unit_length(changed)
        elif head is None and self.kind == "all-but-the-top":
            project(changed.module, _width(model), _width(model))
        return changed

    def _embedding(self, model: Model, context: Context) -> Model:
        from edgekit.steps.probe import representation
        from edgekit.workbench import encode

        assert context.rows is not None
        states = representation(model, encode(model, context.rows))
        map_ = self._map(states)
        if self.kind == "all-but-the-top":
            changed = self._outline(model)
            put(map_, projection(changed.module))
            note = f"postprocess: {self.kind} of {len(states)} training rows, behind the mean"
            return model.with_module(changed.module, note)
        changed = replace(model, module=sharing_copy(model.module))
        norm = _last_norm(changed)
        gain, bias = (t.detach().double().numpy() for t in (norm.weight, norm.bias))
        norm.weight, norm.bias = _parameter(gain * map_.matrix), _parameter(map_.of(bias))
        note = f"postprocess: {self.kind} of {len(states)} training rows, in the last norm"
        return model.with_module(changed.module, note)

    def _classifier(self, model: Model, context: Context) -> Model:
        from edgekit.steps.heldout import metric_of, quality, set_aside
        from edgekit.steps.probe import fit_classifier, gold, representation
        from edgekit.workbench import encode

        assert context.rows is not None and model.architecture is not None
        rows, judged = set_aside(context.rows, context.seed)
        encoded = encode(model, rows)
        states, labels = representation(model, encoded), gold(model, rows, encoded)
        if self.kind == "unit-length":
            wide = states.astype(np.float64)
            states = wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(1e-12)
        map_ = self._map(states)
        changed = self._outline(model)
        head = model.architecture.task_head(changed.module, model.task)
        assert head is not None
        fitted = fit_classifier(map_.of(states), labels, len(head.classifier.weight))
        fold(map_, fitted, head.classifier)
        before, after = (quality(each, judged, model) for each in (model, changed))
        note = (
            f"postprocess: {self.kind} and a classifier fitted to it; {metric_of(model)} on "
            f"{len(judged)} training rows set aside {before:.2%} before, {after:.2%} after"
        )
        return model.with_module(changed.module, note)

    def _map(self, states: Array) -> Affine:
        if self.kind == "z-score":
            return z_score(states)
        if self.kind == "min-max":
            return min_max(states)
        if self.kind == "unit-length":
            width = states.shape[1]
            return Affine(np.full(width, width**0.5), np.zeros(width))
        return all_but_the_top(states, self.components or max(1, round(states.shape[1] / 100)))


def z_score(states: Array) -> Affine:
    """Rule 2, of states [N, K]."""
    from edgekit.steps.probe import spreads

    return Affine(1 / spreads(states), states.astype(np.float64).mean(0))


def min_max(states: Array) -> Affine:
    """Rule 2, of states [N, K]."""
    from edgekit.steps.probe import changing

    wide = states.astype(np.float64)
    low, high = wide.min(0), wide.max(0)
    return Affine(1 / np.where(changing(wide), high - low, 1.0), low)


def all_but_the_top(states: Array, components: int) -> Affine:
    """Rule 3, of states [N, K]."""
    wide = states.astype(np.float64)
    mean = wide.mean(0)
    top = np.linalg.svd(wide - mean, full_matrices=False)[2][:components]
    return Affine(np.eye(wide.shape[1]) - top.T @ top, mean)


def fold(map_: Affine, fitted: Linear, classifier: Any) -> None:
    """Rule 4: give ``classifier`` [C, K] the fitted layer behind the map, as one layer."""
    weight = fitted.weight * map_.matrix if map_.matrix.ndim == 1 else fitted.weight @ map_.matrix
    classifier.weight = _parameter(weight)
    classifier.bias = _parameter(fitted.bias - weight @ map_.shift)


def need_plain(step: str, head: Head) -> None:
    """Rule 6: refuse what stands behind a division by the length. Raises RecipeError."""
    from edgekit.unit_length import UnitLength

    if isinstance(head.classifier, UnitLength):
        raise RecipeError(
            f"{step}: the classifier reads vectors of length 1, which postprocess:kind=unit-length "
            "made; put that last"
        )


def _read_at_unit_length(model: Model) -> None:
    from edgekit.unit_length import install

    assert model.architecture is not None
    head = model.architecture.task_head(model.module, model.task)
    assert head is not None
    name = next(n for n, part in model.module.named_modules() if part is head.classifier)
    install(model.module, name)


def put(map_: Affine, linear: Any) -> None:
    """Make ``linear`` [K, K] the map."""
    linear.weight = _parameter(map_.matrix)
    linear.bias = _parameter(-map_.matrix @ map_.shift)


def _width(model: Model) -> int:
    """Of the states that an encoder gives."""
    return int(_module(model).config.hidden_size)


def _last_norm(model: Model) -> Any:
    described, module = model.architecture, _module(model)
    assert described is not None
    if described.stack is None or described.layers is None:
        raise RecipeError(
            "postprocess: the last norm of this family is every layer's, and cannot change alone; "
            "leave the step out"
        )
    if described.last_norm is not None:
        return described.last_norm(module.base_model)
    return described.layers(module.base_model)[-1].output_norm


def _module(model: Model) -> Any:
    return model.module


def _parameter(values: Array) -> Any:
    import torch

    return torch.nn.Parameter(torch.from_numpy(np.asarray(values)).float())
