"""Train a model with its arithmetic rounded as the file will round it.

Jacob et al. 2018, arXiv 1712.05877; learned ranges as in LSQ (Esser et al. 2020, arXiv
1902.08153); the recipe of Q8BERT (Zafrir et al. 2019, arXiv 1910.06188) with the float model for
a teacher, as in Prune Once For All (Zafrir et al. 2021, arXiv 2111.05754).

Rules:

1. Ranges start from a calibration (``calibrate``) and learn with the weights, as a share of
   themselves; ``ranges=frozen`` keeps them.
2. Every point, product weight and table is rounded, and nothing else: a tensor that the runtime
   keeps in float is left alone (see ``points``).
3. The loss is T²·KL to the outputs of the model as it came, in float32. With ``labels`` above 0
   and gold labels at hand, that share of it is their cross entropy. Regression and embeddings:
   the mean squared error to the model as it came.
4. Word and position tables do not learn: few of their rows would, and they are half of the model.
5. What weights are zero stays zero with ``keep-zeros``: a pruned model stays pruned.
6. In the end the weights are put on their grids.
7. Schemes that are not static have no ranges: activations stay float in training, and weights
   alone are rounded. Weights of 4 and 2 bits have a scale for each output channel, as in TFLite
   files, or with ``block=32`` one for each 32 weights, as in ONNX files. Tables are left alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edgekit.artifact import MATRIX_BITS, STATIC
from edgekit.errors import RecipeError
from edgekit.steps.quantize.calibrate import Method

if TYPE_CHECKING:
    from edgekit.model import Model
    from edgekit.step import Context
    from edgekit.steps.quantize.points import Traced

Trained = Literal[
    "int8-static", "int16x8", "int8-dynamic", "int4-weights", "int4-all", "int2-weights"
]

_CALIBRATION = 512


@dataclass(frozen=True)
class QuantizeAwareTrain:
    """Trains the model with its arithmetic rounded to integers, taught by itself in float.

    scheme: the file's. epochs, batch, learning_rate: as usual; max_minutes: stop by then.
    temperature: of the distillation. labels: the share of the loss that is for gold labels.
    ranges: learned with the weights, or frozen as calibrated. calibration: how they begin.
    keep_zeros: weights that are zero stay zero. block: weights to a scale, below 8 bits.
    """

    scheme: Trained = "int8-static"
    epochs: float = 2.0
    learning_rate: float = 2e-5
    batch: int = 32
    temperature: float = 2.0
    labels: float = 0.0
    ranges: Literal["learned", "frozen"] = "learned"
    calibration: Method = "min-max"
    keep_zeros: bool = False
    block: int | None = None
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.factored import is_factored
        from edgekit.steps.distill.teaching import check_labels
        from edgekit.steps.quantize.static import require_block, require_rows

        require_rows("quantize-aware-train", model, context)
        if is_factored(model.module):
            raise RecipeError(
                "quantize-aware-train: this model's matrices are products of shared ones, which a "
                "file holds multiplied out; put calibrate in its place"
            )
        for name, value in (
            ("epochs", self.epochs),
            ("learning-rate", self.learning_rate),
            ("batch", self.batch),
            ("temperature", self.temperature),
        ):
            if not value > 0:
                raise RecipeError(f"quantize-aware-train: {name} must be above 0, is {value:g}")
        require_block("quantize-aware-train", self.block, self.scheme)
        check_labels("quantize-aware-train", self.labels, model, context.rows)

    def apply(self, model: Model, context: Context) -> Model:
        from edgekit.model import Quantized

        sparsity = model.sparsity if self.keep_zeros else 0.0
        if context.folder is None:
            quantized = Quantized(self.scheme, {}, block=self.block)
            return replace(model, quantized=quantized, sparsity=sparsity)
        from edgekit.data import together
        from edgekit.steps.distill.teaching import answer_loss, taught_examples
        from edgekit.steps.prune.zeros import kept_zero
        from edgekit.steps.quantize.calibrate import draw, observed_ranges
        from edgekit.steps.quantize.fake import Weight
        from edgekit.steps.quantize.static import snap, traced
        from edgekit.train import Training, train

        made = replace(model, module=copy.deepcopy(model.module), sparsity=sparsity)
        found = traced(made, self.scheme)
        static = self.scheme in STATIC
        if static:
            context.on_progress(0.0, "calibrating")
            encoded = draw(model, context, _CALIBRATION)
            found.set_ranges(observed_ranges(made, found, encoded, self.calibration))
            found.set_mode("fake")
        else:
            self._round_weights(found)
        self._choose_parameters(found)
        context.on_progress(0.0, "running the float model on the training rows")
        assert context.rows is not None
        rows = context.rows
        if context.unlabeled is not None:
            rows = together(rows, context.unlabeled)
        examples = taught_examples(model, model, rows, context.folder, labels=self.labels > 0)
        products = [
            found.module.get_parameter(name)
            for name, part in found.weights.items()
            if isinstance(part, Weight)
        ]
        with kept_zero(products if self.keep_zeros else ()):
            report = train(
                found.module,
                examples,
                answer_loss(model, self.temperature, self.labels),
                Training(
                    epochs=self.epochs,
                    learning_rate=self.learning_rate,
                    batch=self.batch,
                    weight_decay=0.0,
                    max_minutes=self.max_minutes,
                    seed=context.seed,
                ),
                folder=context.folder / "training",
                on_progress=context.on_progress,
            )
        snap(found)
        for parameter in made.module.parameters():
            parameter.requires_grad_(True)
        note = (
            f"trained on the grid of {self.scheme}: {report.steps} steps, "
            f"{report.epochs:.2f} epochs"
        )
        notes = (note,) if report.note is None else (note, report.note)
        return replace(
            made,
            quantized=Quantized(self.scheme, found.ranges() if static else {}, block=self.block),
            lineage=(*model.lineage, *notes),
        )

    def ensures(self, before: Model, after: Model) -> None:
        if after.quantized is None:
            raise RecipeError("quantize-aware-train: left no ranges behind; a bug of edgekit")

    def _round_weights(self, found: Traced) -> None:
        """Rule 7."""
        from edgekit.steps.quantize.fake import Weight

        for name, part in found.weights.items():
            if isinstance(part, Weight):
                matrix = found.module.get_parameter(name).ndim == 2
                part.mode = "fake"
                part.bits = MATRIX_BITS.get(self.scheme, 8) if matrix else 8
                part.block = self.block if matrix else None

    def _choose_parameters(self, found: Traced) -> None:
        """Rules 1 and 4."""
        from edgekit.steps.quantize.fake import Table

        tables = {name for name, part in found.weights.items() if isinstance(part, Table)}
        for name, parameter in found.module.named_parameters():
            parameter.requires_grad_(name not in tables)
        for point in found.points.values():
            point.learn(self.ranges == "learned")
