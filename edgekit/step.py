"""The contract of a step: one thing that changes a model.

A step is a frozen dataclass whose fields are its options. It says what it needs (``requires``)
and what it promises (``ensures``), and both are checked around ``apply``. A step that only
looks at shapes works on the meta device too: that is how sizes are predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit.data import Rows
from edgekit.events import OnProgress, unwatched

if TYPE_CHECKING:
    from edgekit.model import Model


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model.

    rows: training rows, never eval rows. folder: scratch of these very steps on this model and
    data, which is still there when a killed build is run again and goes when the steps are done;
    ``None`` where only shapes are looked at. on_progress: told how far a long step is. original:
    the model before the first step. unlabeled: more rows to learn from, without labels; neither
    eval nor training rows.
    """

    rows: Rows | None
    seed: int
    folder: Path | None = None
    on_progress: OnProgress = unwatched
    original: "Model | None" = None
    unlabeled: Rows | None = None


class Step(Protocol):
    """See the module. ``apply`` returns a new model and leaves the old one as it was."""

    def requires(self, model: "Model", context: Context) -> None:
        """Raise RecipeError when the step cannot be applied; nothing is written before."""

    def apply(self, model: "Model", context: Context) -> "Model": ...

    def ensures(self, before: "Model", after: "Model") -> None:
        """Raise RecipeError when the outcome breaks the step's promise; cheap."""


def apply_steps(steps: Sequence[Step], model: "Model", context: Context) -> "Model":
    """All steps in order, each held to its contract."""
    context = replace(context, original=model)
    for number, step in enumerate(steps):
        step.requires(model, context)
        changed = step.apply(model, _own_folder(context, number))
        step.ensures(model, changed)
        model = changed
    return model


def _own_folder(context: Context, number: int) -> Context:
    """The context with a folder that no other step uses."""
    if context.folder is None:
        return context
    folder = context.folder / f"step-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    return replace(context, folder=folder)
