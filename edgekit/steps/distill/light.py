"""What the steps share that teach a small model of another kind: a light student.

Tang et al. 2019, arXiv 1903.12136; Wibowo et al. 2022, arXiv 2201.00558. Rules:

1. The student replaces the model. Its vocabulary is that of the training text (with ``pieces`` the
   model's own, cut down); eval rows are never looked at. Its first word vectors are the teacher's
   (``words``), the rest is random by the seed.
2. The teacher is the model as it was before the first step. It answers the training rows, any
   ``copies`` variations (``variations``), and unlabelled rows where there are any.
3. The loss is T²·KL to the teacher's outputs, with ``labels`` above 0 and gold labels at hand
   that share of their cross entropy, which rows without a label leave out. Regression: the mean
   squared error. In tagging both count at each word, where the teacher's answer is that at the
   word's first token; a word that one of the two cut off counts for nothing.
4. In training each word is unknown with the chance ``word_dropout`` (an n-gram is left out).
5. The tenth of the training rows (at most 512) that ``heldout`` sets aside is not learned from; the
   metric on it is told in the lineage.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from edgekit.errors import RecipeError
from edgekit.steps.needs import need_float, need_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from edgekit.data import Rows
    from edgekit.examples import Batch, Examples
    from edgekit.model import Model
    from edgekit.preprocess import Array, Encoded
    from edgekit.step import Context

    Tensors = dict[str, torch.Tensor]

TAGS_TOO = ("text-classification", "token-classification")


@dataclass(frozen=True)
class LightStudent:
    """What all of them can be asked for; each adds its sizes.

    epochs, batch, learning_rate: as usual; max_minutes: stop by then. temperature: of the
    distillation. labels: the share of the loss that is for gold labels. copies: variations of
    each training text. dropout: in front of each of the last two layers. word_dropout: rule 4.
    """

    epochs: float = 20.0
    learning_rate: float = 2e-3
    batch: int = 64
    temperature: float = 2.0
    labels: float = 0.0
    copies: int = 0
    dropout: float = 0.2
    word_dropout: float = 0.1
    max_minutes: float | None = None

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("text-classification",)

    def requires(self, model: Model, context: Context) -> None:
        from edgekit.steps.distill.teaching import check_labels

        step = self.name
        need_float(step, model)
        need_rows(step, context)
        if model.task not in self.tasks or model.architecture is None:
            known = " and ".join(self.tasks)
            raise RecipeError(f"{step}: is for {known}, and this model does {model.task}")
        for option, value in self._sizes().items():
            if not value > 0:
                raise RecipeError(f"{step}: {option} must be above 0, is {value:g}")
        for option, value in (("dropout", self.dropout), ("word-dropout", self.word_dropout)):
            if not 0 <= value < 1:
                raise RecipeError(f"{step}: {option} is a chance from 0 to below 1, is {value:g}")
        if self.copies < 0:
            raise RecipeError(f"{step}: copies must not be negative, is {self.copies}")
        check_labels(step, self.labels, model, context.rows)

    def apply(self, model: Model, context: Context) -> Model:
        assert context.rows is not None
        family, sizes, preprocessor = self.outline(model, context.rows)
        made = build(family, model, sizes | {"dropout": self.dropout}, preprocessor, context.seed)
        if context.folder is None:
            return made
        teacher = context.original or model
        self.begin(made, teacher)
        notes = self._teach(made, teacher, context)
        parameters = sum(each.numel() for each in made.module.parameters())
        size = f"{parameters:,} parameters, a vocabulary of {len(self.words(made)):,}"
        told = f"{self.name}: {size}; {notes[0]}"
        return replace(made, lineage=(*model.lineage, told, *notes[1:]))

    def ensures(self, before: Model, after: Model) -> None:
        assert after.architecture is not None
        rows = after.architecture.word_embeddings(after.module).num_embeddings
        if rows != len(self.words(after)):
            raise RecipeError(f"{self.name}: {rows} rows for {len(self.words(after))} words; a bug")

    # What each student says of itself

    def outline(self, model: Model, rows: Rows) -> tuple[str, dict[str, Any], Any]:
        """Its family, the sizes for its config, and its preprocessor."""
        raise NotImplementedError

    def of_words(
        self,
        family: str,
        model: Model,
        rows: Rows,
        sizes: dict[str, Any],
        pieces: bool | None = False,
    ) -> tuple[str, dict[str, Any], Any]:
        """The outline of a student that reads words; it has the options that are used here."""
        from edgekit.steps.distill.words import piece_preprocessor, word_preprocessor, words_of

        made: Any = self
        types = bool(sizes.get("pair"))
        size, longest = made.vocabulary, made.max_length
        # Names that a tagger looks for are mostly words that no training text has.
        wanted = model.task == "token-classification" if pieces is None else pieces
        reader = piece_preprocessor if wanted else word_preprocessor
        preprocessor = reader(model, rows, size, longest, types=types)
        if preprocessor is None and pieces:
            raise RecipeError(
                f"{self.name}: pieces: this model reads whole words itself; leave it out"
            )
        preprocessor = preprocessor or word_preprocessor(model, rows, size, longest, types=types)
        every = {
            "vocab_size": len(words_of(preprocessor)),
            "embedding_size": made.embedding,
            "hidden_size": made.hidden,
        }
        return family, every | sizes, preprocessor

    def begin(self, student: Model, teacher: Model) -> None:
        """Put what the teacher knows into a student that has learned nothing yet."""
        import torch

        from edgekit.steps.distill.words import first_vectors

        made: Any = self
        module: Any = student.module
        reader: Any = student.preprocessor
        vectors = first_vectors(teacher, reader, made.embedding)
        with torch.no_grad():
            if vectors is not None:
                module.words.weight[:, -made.embedding :] = torch.from_numpy(vectors)
            module.words.weight[reader.pad_id] = 0

    def words(self, student: Model) -> list[str]:
        """The vocabulary, by id."""
        from edgekit.steps.distill.words import words_of

        preprocessor: Any = student.preprocessor
        return words_of(preprocessor)

    def _sizes(self) -> dict[str, float]:
        """Options that must be above zero, by their dashed names."""
        own = ("vocabulary", "embedding", "hidden", "max_length")
        return {
            each.replace("_", "-"): getattr(self, each) for each in own if hasattr(self, each)
        } | {
            "epochs": self.epochs,
            "learning-rate": self.learning_rate,
            "batch": self.batch,
            "temperature": self.temperature,
        }

    # Learning

    def _teach(self, student: Model, teacher: Model, context: Context) -> list[str]:
        from edgekit.model import export_forward
        from edgekit.steps.heldout import metric_of, quality, set_aside
        from edgekit.train import Training, train

        assert context.rows is not None and context.folder is not None
        rows, judged = set_aside(context.rows, context.seed)
        more = self._more(rows, context)
        context.on_progress(0.0, f"running the teacher on {len(rows) + len(more)} rows")
        examples = taught(student, teacher, rows, more, context.folder, labels=self.labels > 0)
        report = train(
            export_forward(student, learning=True).train(),
            examples,
            answer_loss(student, self.temperature, self.labels, self.word_dropout),
            Training(
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                batch=self.batch,
                max_minutes=self.max_minutes,
                seed=context.seed,
            ),
            folder=context.folder / "training",
            on_progress=context.on_progress,
        )
        student.module.eval()
        metric = metric_of(student) if judged.labels is not None else "agreement with the teacher"
        told = (
            f"{report.steps} steps on {len(examples):,} rows; on {len(judged)} training rows set "
            f"aside, {metric} {quality(student, judged, teacher):.2%}"
        )
        return [told] if report.note is None else [told, report.note]

    def _more(self, rows: Rows, context: Context) -> Rows:
        """Rows without labels: variations, then those that the caller gave."""
        from edgekit.data import Rows
        from edgekit.steps.distill.variations import variations

        given = context.unlabeled
        if rows.words is not None:
            varied = variations(rows.words, self.copies, context.seed)
            return Rows(words=(*varied, *((given.words if given else None) or ())))
        if rows.pairs is not None:
            # The second texts stay: what a pair says depends on both.
            pairs = given.pairs if given else None
            return Rows(texts=(given.texts if given else None) or (), pairs=pairs or ())
        split = [tuple(text.split()) for text in rows.texts or ()]
        varied_texts = [" ".join(v) for v in variations(split, self.copies, context.seed)]
        return Rows(texts=(*varied_texts, *((given.texts if given else None) or ())))


def build(family: str, model: Model, sizes: dict[str, Any], preprocessor: Any, seed: int) -> Model:
    """An untrained student in the model's place; on the meta device where the model is."""
    import torch
    import transformers

    from edgekit.architectures import architecture
    from edgekit.train_state import chance_kept

    described = architecture(family)

    old: Any = model.module.config
    tagging = model.task == "token-classification"
    auto: Any = (
        transformers.AutoModelForTokenClassification
        if tagging
        else transformers.AutoModelForSequenceClassification
    )
    config = transformers.AutoConfig.for_model(
        family,
        id2label=dict(old.id2label),
        label2id=dict(old.label2id),
        problem_type=None if tagging else old.problem_type,
        **sizes,
    )
    meta = next(model.module.parameters()).is_meta
    with chance_kept(), torch.device("meta" if meta else "cpu"):
        torch.manual_seed(seed)
        module = auto.from_config(config).eval()
    return replace(
        model, module=module, architecture=described, preprocessor=preprocessor, sparsity=0.0
    )


def taught(
    student: Model, teacher: Model, rows: Rows, more: Rows, folder: Any, *, labels: bool
) -> Examples:
    """All rows as the student reads them, with the teacher's outputs, kept in ``folder``.

    labels: gold labels of ``rows``; ``more`` has none.
    """
    from edgekit.examples import Examples, teacher_outputs
    from edgekit.steps.distill.rows import gold_ids
    from edgekit.workbench import encode

    every = _joined(rows, more)
    read = encode(student, every)
    theirs = encode(teacher, every)
    outputs: Array = teacher_outputs(teacher, theirs, folder / "teacher.npy")
    tagging = student.task == "token-classification"
    if tagging:
        outputs = at_words(outputs, theirs, read)
    gold: Array | None = None
    if labels:
        labelled = replace(every, labels=(*(rows.labels or ()), *(None,) * len(more)))
        gold = gold_ids(student, labelled, read)
    return Examples(read, labels=gold, teacher=outputs, per_token=tagging)


def at_words(outputs: Array, theirs: Encoded, ours: Encoded) -> Array:
    """The teacher's outputs [N, L', C] at its words' first tokens, at the student's: [N, L, C].

    NaN where the student has no word's first token, or the teacher cut the word off.
    """
    assert theirs.word_starts is not None and ours.word_starts is not None
    shape = (*next(iter(ours.arrays.values())).shape, outputs.shape[-1])
    moved = np.full(shape, np.nan, np.float32)
    pairs = zip(theirs.word_starts, ours.word_starts, strict=True)
    for row, (there, here) in enumerate(pairs):
        both = (there >= 0) & (here >= 0)
        moved[row, here[both]] = outputs[row, there[both]]
    return moved


def answer_loss(student: Model, temperature: float, labels: float, word_dropout: float) -> Any:
    """Rules 3 and 4, as ``train`` takes a loss."""
    import torch.nn.functional as F

    from edgekit.steps.distill.losses import label_cross_entropy, soft_cross_entropy

    tagging = student.task == "token-classification"
    thinned = _thinning(student, word_dropout)

    def loss(module: Any, batch: Batch) -> torch.Tensor:
        answer = module(*thinned(batch.inputs).values())
        assert batch.teacher is not None
        if student.problem != "single-label" and not tagging:
            return F.mse_loss(answer, batch.teacher)
        mask = ~batch.teacher[..., 0].isnan() if tagging else None
        soft = soft_cross_entropy(answer, batch.teacher, temperature, mask)
        if not labels:
            return soft
        assert batch.labels is not None
        return (1 - labels) * soft + labels * label_cross_entropy(answer, batch.labels)

    return loss


def _thinning(student: Model, chance: float) -> Callable[[Tensors], Tensors]:
    """Makes some words of the inputs unknown, or leaves some n-grams out (never all of a row's)."""
    import torch

    from edgekit.preprocess import TextPreprocessor
    from edgekit.steps.vocabulary.rewrite import special_ids, unknown_id

    reader = student.preprocessor
    if not chance:
        return lambda inputs: inputs
    if not isinstance(reader, TextPreprocessor):

        def left_out(inputs: Tensors) -> Tensors:
            mask = inputs["attention_mask"]
            drawn = torch.rand(mask.shape, device=mask.device) < chance
            kept = mask.masked_fill(drawn, 0)
            return inputs | {"attention_mask": kept.where(kept.sum(1, keepdim=True) > 0, mask)}

        return left_out

    fields = json.loads(reader.tokenizer_json)
    special = torch.tensor(sorted({*special_ids(fields), reader.pad_id}))
    # A tokenizer that spells everything has no unknown token; the padding says nothing too.
    found = unknown_id(fields)
    unknown = reader.pad_id if found is None else found

    def unknown_words(inputs: Tensors) -> Tensors:
        ids = inputs["input_ids"]
        drawn = torch.rand(ids.shape, device=ids.device) < chance
        words = drawn & ~torch.isin(ids, special.to(ids.device))
        return inputs | {"input_ids": ids.masked_fill(words, unknown)}

    return unknown_words


def _joined(rows: Rows, more: Rows) -> Rows:
    """Both, without labels."""
    from edgekit.data import Rows

    if rows.words is not None:
        return Rows(words=(*rows.words, *(more.words or ())))
    pairs = None if rows.pairs is None else (*rows.pairs, *(more.pairs or ()))
    return Rows(texts=(*(rows.texts or ()), *(more.texts or ())), pairs=pairs)
