"""What a build has on the table: the original model and the data, loaded when first needed.

A build with nothing changed finds all its stages in the store and loads neither.
"""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgekit.artifact import STATIC, Scheme
from edgekit.data import Data, Rows, identify_data, label_ids, load_data
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import DataError
from edgekit.events import Event, Sink
from edgekit.preprocess import Encoded, ImagePreprocessor, TextReader
from edgekit.project import Settings
from edgekit.store import Store

if TYPE_CHECKING:
    from edgekit.filemodel import FileModel
    from edgekit.model import Model, Source

# Sentences to run a file on when there is no data: enough to compare it with the original and
# to make golden vectors, not to say how accurate it is.
_PROBES = (
    "Hello!",
    "What time is it?",
    "Please cancel my order.",
    "I lost my card on the train this morning.",
    "The delivery was two days late and the box was damaged.",
    "Great service, friendly staff, and the food arrived hot.",
    "How do I change the address on my account before the next bill goes out?",
    "Paris is the capital of France, and Berlin is the capital of Germany.",
    "My transfer has been pending since last Friday; can somebody tell me what is going on?",
    "It was neither good nor bad, but for the price that we paid we had expected a little more.",
)
# How many eval rows the model is scored on after each step.
_SCORED = 256


@dataclass(frozen=True)
class Workbench:
    """The inputs of one build."""

    settings: Settings
    source: "Source"
    store: Store
    on_event: Sink

    @cached_property
    def data_paths(self) -> tuple[str | None, str | None]:
        """Training and eval data: as set, or the sample's own."""
        if self.source.kind == "sample" and self.settings.data is None:
            from edgekit import sample

            train, evaluation = sample.data(self.source.reference.removeprefix("sample:"))
            return str(train), self.settings.eval or str(evaluation)
        return self.settings.data, self.settings.eval

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the original model and its rows, for the keys of stages."""
        train, evaluation = self.data_paths
        settings = self.settings
        return {
            "model": self.source.digest,
            "task": settings.task,
            "train": identify_data(train),
            "eval": identify_data(evaluation),
            "unlabeled": [identify_data(each) for each in settings.unlabeled],
            "columns": vars(settings.columns),
            "seed": settings.seed,
        }

    @cached_property
    def original(self) -> "Model | FileModel":
        """The fp32 model as it came."""
        if self.source.kind == "file":
            return self.outline
        started = time.perf_counter()
        title = f"loading {self.source.reference}"
        self.on_event(Event("stage-start", "load", title))
        model = self._load(pair=self.paired, meta=False)
        seconds = time.perf_counter() - started
        self.on_event(Event("stage-end", "load", title, seconds=seconds))
        return model

    @cached_property
    def outline(self) -> "Model | FileModel":
        """The original's shapes on the meta device: what plans are made with."""
        return self._load(pair=True, meta=True) if self.paired else self._single

    @cached_property
    def _single(self) -> "Model | FileModel":
        """The outline of a model that reads one text: enough to know how to read the data."""
        return self._load(pair=False, meta=True)

    def _load(self, *, pair: bool, meta: bool) -> "Model | FileModel":
        if self.source.kind == "file":
            from edgekit.filemodel import read_file_model

            assert self.source.path is not None
            return read_file_model(self.source.path, self.settings.task)
        from edgekit.model import load_model

        return load_model(self.checkpoint, task=self.settings.task, pair=pair, meta=meta)

    @property
    def paired(self) -> bool:
        """Whether a row holds two texts: asked for, or seen in the data."""
        return self.settings.columns.text_pair is not None or "text_pair" in self.data.columns

    @cached_property
    def checkpoint(self) -> "Source":
        """The source itself, or for the sample the checkpoint that is made of it."""
        if self.source.kind != "sample":
            return self.source
        from edgekit import sample
        from edgekit.model import identify

        name = self.source.reference.removeprefix("sample:")
        return identify(str(sample.checkpoint(name, self.store, self.on_event)))

    @cached_property
    def data(self) -> Data:
        """Training and eval rows. Raises DataError when a label is not the model's."""
        train, evaluation = self.data_paths
        data = load_data(
            train,
            evaluation,
            task=self._single.task,
            problem=self._single.problem,
            columns=self.settings.columns,
            seed=self.settings.seed,
            unlabeled=self.settings.unlabeled,
        )
        if train is not None and data.train is not None:
            self._label_ids(self._single, data.train, train)
        return data

    @cached_property
    def eval_rows(self) -> Rows:
        """Rows to prove a file on: the eval rows, or probes when there is no data."""
        if self.data.eval is not None:
            return self.data.eval
        return probe_rows(self.outline)

    def eval_labels(self) -> Any | None:
        """Gold labels of the eval rows as ids or numbers, or ``None`` when there are none."""
        train, evaluation = self.data_paths
        if self.data.eval is None:
            return None
        return self._label_ids(self.original, self.data.eval, str(evaluation or train))

    @cached_property
    def scored(self) -> tuple[int, ...]:
        """The eval rows on which the model is scored after each step, evenly picked."""
        if self.data.eval is None or self.data.eval.labels is None:
            return ()
        count = len(self.data.eval)
        places = np.linspace(0, count - 1, min(count, _SCORED)).round().astype(int)
        return tuple(int(place) for place in np.unique(places))

    def score_some(self, model: "Model | FileModel") -> float | None:
        """The model's primary metric on the ``scored`` rows, or ``None`` without any."""
        from edgekit.filemodel import FileModel
        from edgekit.measure import accuracy

        rows = self.eval_rows.take(self.scored)
        labels = self._label_ids(model, rows, str(self.data_paths[1] or self.data_paths[0]))
        if labels is None or not self.scored:
            return None
        encoded = encode(model, rows)
        quantized = None if isinstance(model, FileModel) else model.quantized
        scores = accuracy.score(
            answers_of(model, encoded, "fp32" if quantized is None else quantized.scheme),
            labels,
            task=model.task,
            problem=model.problem,
            labels=model.labels,
            encoded=encoded,
        )
        return scores[accuracy.primary_metric(model.task, model.problem)]

    @staticmethod
    def _label_ids(model: "Model | FileModel", rows: Rows, source: str) -> Any | None:
        if rows.labels is None:
            return None
        return label_ids(rows, model.labels, task=model.task, problem=model.problem, source=source)


def open_workbench(settings: Settings, store: Store, on_event: Sink) -> Workbench:
    """Identify the model; raises ModelError before anything is read or written."""
    from edgekit.model import identify

    return Workbench(settings, identify(settings.model), store, on_event)


def answers_of(
    model: "Model | FileModel", encoded: Encoded, scheme: Scheme = "fp32"
) -> npt.NDArray[np.float32]:
    """The model's outputs for each row, in float32; an exported file is run by the agent.

    With a static scheme every number is rounded as a file of that scheme rounds it.
    """
    from edgekit.filemodel import FileModel

    if isinstance(model, FileModel):
        result = run_agent(model.artifact, encoded, [Pass("all", "outputs")], threads=2)
        outputs: npt.NDArray[np.float32] = result["passes"]["all"]["outputs"]
        return outputs
    if scheme in STATIC:
        from edgekit.steps.quantize.static import fake_outputs

        return fake_outputs(model, encoded)
    from edgekit.model import reference_outputs

    return reference_outputs(model, encoded)


def encode(model: "Model | FileModel", rows: Rows, *, max_length: int | None = None) -> Encoded:
    """Rows as the model's inputs. Raises DataError when they do not fit the model's kind."""
    if isinstance(model.preprocessor, TextReader):
        if rows.texts is None and rows.words is None:
            raise DataError("this model reads text, and the data hold none; give text rows")
        return model.preprocessor.encode(rows, max_length=max_length)
    if isinstance(model.preprocessor, ImagePreprocessor):
        if rows.images is None:
            raise DataError("this model reads images, and the data hold none; give an image folder")
        return model.preprocessor.encode(rows)
    assert model.example is not None
    if rows.arrays is None or set(model.example) - set(rows.arrays):
        needed = ", ".join(model.example)
        raise DataError(f"this module takes {needed}; give an .npz with an array of each name")
    arrays = {
        name: np.asarray(rows.arrays[name]).astype(np.asarray(example).dtype)
        for name, example in model.example.items()
    }
    return Encoded(arrays, None)


def probe_rows(model: "Model | FileModel") -> Rows:
    """Rows for a model without data: sentences, smooth pictures, or the module's example."""
    if isinstance(model.preprocessor, TextReader):
        if model.task == "token-classification":
            return Rows(words=tuple(tuple(text.split()) for text in _PROBES))
        pairs = _PROBES[::-1] if "token_type_ids" in model.preprocessor.inputs else None
        return Rows(texts=_PROBES, pairs=pairs)
    if isinstance(model.preprocessor, ImagePreprocessor):
        return Rows(images=_pictures(model.preprocessor))
    assert model.example is not None
    return Rows(arrays={name: np.asarray(value) for name, value in model.example.items()})


def random_rows(model: "Model | FileModel", count: int, seed: int) -> Rows:
    """Rows of nothing real: random tokens, pixels, or numbers spread as the module's example."""
    chance = np.random.default_rng(seed)
    if isinstance(model.preprocessor, TextReader):
        texts = tuple(model.preprocessor.random_texts(count, chance))
        if model.task == "token-classification":
            return Rows(words=tuple(tuple(text.split()) or ("a",) for text in texts))
        pairs = texts[::-1] if "token_type_ids" in model.preprocessor.inputs else None
        return Rows(texts=texts, pairs=pairs)
    if isinstance(model.preprocessor, ImagePreprocessor):
        p = model.preprocessor
        return Rows(
            images=chance.integers(0, 256, (count, p.height, p.width, p.channels), np.uint8)
        )
    assert model.example is not None
    examples = {name: np.asarray(value) for name, value in model.example.items()}
    return Rows(arrays={name: _like(value, count, chance) for name, value in examples.items()})


def _like(example: npt.NDArray[Any], count: int, chance: np.random.Generator) -> npt.NDArray[Any]:
    """Random rows with the mean and spread of an example; integers are drawn from it."""
    shape = (count, *example.shape[1:])
    if example.dtype.kind != "f":
        return chance.choice(example.reshape(-1), shape)
    return chance.normal(example.mean(), example.std() or 1.0, shape).astype(example.dtype)


def _pictures(preprocessor: ImagePreprocessor, count: int = 8) -> np.ndarray[Any, Any]:
    """Waves of different direction and colour, uint8 [count, H, W, C]."""
    height, width = preprocessor.height, preprocessor.width
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = [
        [
            np.sin((k + 2) * (x * np.cos(k) + y * np.sin(k)) * 3 + c)
            for c in range(preprocessor.channels)
        ]
        for k in range(count)
    ]
    waves = np.asarray(channels).transpose(0, 2, 3, 1)
    return np.clip((waves + 1) * 127.5, 0, 255).astype(np.uint8)
