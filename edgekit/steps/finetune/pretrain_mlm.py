"""Train the encoder on plain text of the domain: masked language modelling.

Devlin et al. 2018, arXiv 1810.04805; for domains Rohanian et al. 2022, On the effectiveness of
compact biomedical transformers, arXiv 2209.03182, section 3 (continual learning).

Rules:

1. 15 % of the tokens are hidden as in ``masking``. The loss is the cross entropy of what stood
   there, the mean over hidden places; no other place has a gradient.
2. The head is the family's own. Its matrix to the vocabulary is the word table, which learns with
   the encoder; the rest comes from the checkpoint where it has one (it was saved from a
   …ForMaskedLM or …ForPreTraining), or begins at random. It is not kept.
3. The model's own head, and a pooler, stay as they are: fine-tune or distil afterwards.
4. A line of the text is a text, cut at the model's longest. The tenth of the lines (at most 512)
   that is set aside is not learned from; the loss on it, before and after, is in the lineage, and
   is what ``patience`` watches after each epoch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from edgekit.errors import DataError, RecipeError
from edgekit.steps.needs import need_encoder, need_float

if TYPE_CHECKING:
    from torch import Tensor

    from edgekit.data import Rows
    from edgekit.examples import Batch
    from edgekit.model import Model
    from edgekit.preprocess import TextPreprocessor
    from edgekit.step import Context

_STEP = "pretrain-mlm"
_LEAST = 32
_BATCH = 32


@dataclass(frozen=True)
class PretrainMlm:
    """Trains the encoder to fill gaps in plain text of the domain; the classifier stays.

    text: a UTF-8 file with a text a line; without it, the texts of the training rows. share: of
    the tokens that are hidden. epochs, batch, learning_rate, precision, max_minutes: as usual.
    patience: epochs without a lower loss on lines set aside, after which to stop with the best.
    """

    text: Path | None = None
    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch: int = 32
    share: float = 0.15
    precision: Literal["fp32", "bf16"] = "fp32"
    patience: int | None = None
    max_minutes: float | None = None

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.finetune.mlm_head import HEADS

        need_float(_STEP, model)
        need_encoder(_STEP, model)
        family = cast(Any, model.module).config.model_type
        if family not in HEADS:
            raise RecipeError(f"{_STEP}: {family} was not made to fill gaps; leave the step out")
        if not 0 < self.share < 1:
            raise RecipeError(f"{_STEP}: share is above 0 and below 1, is {self.share:g}")
        self._training(0).check()
        count = len(_texts(self.text, context.rows))
        if count < _LEAST:
            raise RecipeError(f"{_STEP}: {count} texts are too few; give at least {_LEAST}")
        self._masking(model, 0)

    def apply(self, model: Model, context: Context) -> Model:
        if context.folder is None:
            return replace(model, sparsity=0.0)
        from edgekit.data import Rows
        from edgekit.examples import Examples
        from edgekit.steps.finetune.finetune import learning_mode
        from edgekit.steps.finetune.mlm_head import gap_filler
        from edgekit.steps.heldout import set_aside
        from edgekit.train import train

        made = replace(model, module=copy.deepcopy(model.module))
        preprocessor = cast("TextPreprocessor", made.preprocessor)
        rows, judged = set_aside(Rows(texts=_texts(self.text, context.rows)), context.seed)
        masking = self._masking(made, context.seed)
        filler, begun = gap_filler(made, context.seed)
        test = Examples(preprocessor.encode(judged))

        def loss(module: Any, batch: Batch) -> Tensor:
            import torch

            ids, mask = batch.inputs["input_ids"], batch.mask
            assert mask is not None
            arrays = (each.cpu().numpy() for each in (ids, mask, batch.rows))
            found = masking.apply(*arrays, batch.place)
            hidden, chosen = (torch.from_numpy(each).to(ids.device) for each in found)
            logits = module(batch.inputs | {"input_ids": hidden}, chosen)
            # A sum, since the mean of nothing is not a number.
            total = torch.nn.functional.cross_entropy(logits, ids[chosen], reduction="sum")
            return total / max(1, int(chosen.sum()))

        def lost() -> float:
            """The loss on the lines set aside, hidden in the same places each time."""
            import torch

            learning_mode(filler, False)
            with torch.inference_mode():
                found = [(float(loss(filler, batch)), len(batch.rows)) for batch in _batches(test)]
            learning_mode(filler, True)
            return sum(value * count for value, count in found) / len(judged)

        before = lost()
        report = train(
            filler,
            Examples(preprocessor.encode(rows)),
            loss,
            self._training(context.seed),
            folder=context.folder / "training",
            on_progress=context.on_progress,
            evaluate=None if self.patience is None else lambda: {"minus the loss": -lost()},
        )
        after = lost()
        made.module.eval().requires_grad_(True)
        told = (
            f"masked language modelling on {len(rows):,} texts ({begun}): {report.steps} steps, "
            f"{report.epochs:.2f} epochs; loss on {len(judged)} texts set aside {before:.3f} "
            f"before, {after:.3f} after"
        )
        notes = (told,) if report.note is None else (told, report.note)
        # What learns here fills zeros.
        return replace(made, lineage=(*model.lineage, *notes), sparsity=0.0)

    def ensures(self, before: Model, after: Model) -> None:
        module: Any = before.module
        inside = {id(each) for each in module.base_model.parameters()}
        kept = after.module.state_dict()
        for name, each in module.named_parameters():
            if id(each) not in inside and not each.is_meta and not each.equal(kept[name]):
                raise RecipeError(f"{_STEP}: changed {name}; this is a bug of edgekit")

    def _masking(self, model: Model, seed: int) -> Any:
        from edgekit.steps.finetune.masking import masking_of

        assert model.architecture is not None
        tokens = model.architecture.word_embeddings(model.module).weight.shape[0]
        preprocessor = cast("TextPreprocessor", model.preprocessor)
        return masking_of(preprocessor, tokens, self.share, seed, _STEP)

    def _training(self, seed: int) -> Any:
        from edgekit.train import Training

        return Training(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch=self.batch,
            precision=self.precision,
            patience=self.patience,
            max_minutes=self.max_minutes,
            seed=seed,
        )


def _texts(path: Path | None, rows: Rows | None) -> tuple[str, ...]:
    """The lines of the file, or the texts of the rows. Raises DataError or RecipeError."""
    if path is not None:
        from edgekit.data.table import read_text

        if not path.is_file():
            raise DataError(f"{_STEP}: no file {path}; give text=FILE with a text a line")
        lines = (line.strip() for line in read_text(path, str(path)).splitlines())
        return tuple(line for line in lines if line)
    if rows is None:
        raise RecipeError(f"{_STEP}: needs text; give text=FILE, or training rows with --data")
    if rows.words is not None:
        return tuple(" ".join(words) for words in rows.words)
    return (*(rows.texts or ()), *(rows.pairs or ()))


def _batches(examples: Any) -> Any:
    """Batches of similar length, the same ones each time."""
    from edgekit.examples import Batch, collate

    order = np.argsort(examples.encoded.lengths, kind="stable")
    for start in range(0, len(order), _BATCH):
        fields: Any = collate(examples, order[start : start + _BATCH])
        yield Batch(**fields)
