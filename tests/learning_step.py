"""A step that learns, as a user's package may have it: soft labels of the model itself."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from edgekit.examples import Batch, Examples, teacher_outputs
from edgekit.model import Model
from edgekit.step import Context
from edgekit.steps.distill.losses import soft_cross_entropy
from edgekit.train import Training, train
from edgekit.workbench import encode


@dataclass(frozen=True)
class Relearn:
    """Trains the model on its own answers."""

    epochs: float = 2

    def requires(self, model: Model, context: Context) -> None: ...

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            return model
        assert context.rows is not None
        encoded = encode(model, context.rows)
        teacher = teacher_outputs(model, encoded, context.folder / "teacher.npy")
        module: Any = copy.deepcopy(model.module)

        def loss(module: Any, batch: Batch) -> torch.Tensor:
            assert batch.teacher is not None
            return soft_cross_entropy(module(**batch.inputs).logits, batch.teacher, 2.0)

        report = train(
            module,
            Examples(encoded, teacher=teacher),
            loss,
            Training(epochs=self.epochs, batch=8, seed=context.seed),
            folder=context.folder / "training",
            on_progress=context.on_progress,
            checkpoint_seconds=0,
        )
        return model.with_module(module, f"relearn: {report.steps} steps, {report.resumed_from}")

    def ensures(self, before: Model, after: Model) -> None: ...
