"""What steps ask of a model and its rows before they begin; each raises RecipeError by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.architectures import Architecture
    from edgekit.model import Model
    from edgekit.step import Context

# Fewer rows say too little about a model.
ENOUGH = 32


def need_float(step: str, model: Model) -> None:
    """The model is on no grid of integers yet: its weights may change, and may be put on one."""
    if model.quantized is not None:
        raise RecipeError(
            f"{step}: this model is on a grid of integers already ({model.quantized.scheme}); put "
            "the step before the one that quantizes, or give the checkpoint that it was made of"
        )


def family_of(model: Model) -> str:
    """What a person calls the model's family."""
    kind = getattr(getattr(model.module, "config", None), "model_type", None)
    if not isinstance(kind, str) or not kind:
        return "this model"
    return f"an {kind}" if kind[0] in "aeioux" else f"a {kind}"


def need_encoder(step: str, model: Model) -> Architecture:
    """The model is of a family whose layers are known, and its matrices are whole."""
    from edgekit.factored import is_factored

    if model.architecture is None or model.architecture.layers is None:
        raise RecipeError(f"{step}: {family_of(model)} has no encoder layers that are known here")
    if model.architecture.branches:
        raise RecipeError(
            f"{step}: this model's layers stand side by side (cerberus made them); put the step "
            "before that one"
        )
    if is_factored(model.module):
        raise RecipeError(
            f"{step}: this model's matrices are factored already; put the step before factorize"
        )
    return model.architecture


def need_rows(step: str, context: Context, least: int = ENOUGH) -> None:
    """There are training rows, and enough of them."""
    if context.rows is None:
        raise RecipeError(f"{step}: needs training rows; give --data")
    if len(context.rows) < least:
        raise RecipeError(
            f"{step}: {len(context.rows)} training rows are too few; give at least {least}"
        )


def need_labels(step: str, context: Context) -> None:
    """The training rows have gold labels."""
    if context.rows is None or context.rows.labels is None:
        raise RecipeError(
            f"{step}: needs training rows with labels; give --data, and --label to name the column"
        )
