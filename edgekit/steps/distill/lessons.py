"""What is taught, in which order: losses with their weights, the layers they compare, presets.

Rules:

1. Losses are written as the papers write them: ``5*mlm-kl+2*mlm+cosine``; a name alone counts 1.
2. A map says from which teacher layer each of M student layers learns, of N; both are numbered
   from 1 (Jiao et al. 2020, arXiv 1909.10351, section 4.4): ``uniform`` m to m·N/M, which asks
   that M divides N; ``top`` m to N - M + m; ``bottom`` m to m; ``last`` the last from the last
   alone; or listed, a teacher layer for each: ``3-6-9-12``.
3. Presets have the losses, maps and numbers of their publications.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.errors import RecipeError

# A kind and a layer from 1; see ``inside``.
View = tuple[str, int]

# Losses by name, and what of an encoder each looks at.
_LOOKS_AT: Mapping[str, tuple[str, ...]] = {
    "kl": (),
    "labels": (),
    "logits": (),
    "embeddings": ("embeddings",),
    "hidden": ("hidden",),
    "cosine": ("hidden",),
    "attention": ("query", "key"),
    "probabilities": ("query", "key"),
    "values": ("value",),
    "relations": ("query", "key", "value"),
    "mlm": (),
    "mlm-kl": (),
    "masked-kl": (),
}
LOSSES = tuple(_LOOKS_AT)
# Losses of what is inside an encoder.
INSIDE = tuple(name for name, kinds in _LOOKS_AT.items() if kinds)
# Losses that mask words and ask for them.
MASKED = ("mlm", "mlm-kl", "masked-kl")
# Losses in which heads are compared one by one.
BY_HEAD = ("attention", "probabilities")
MAPS = ("uniform", "top", "bottom", "last")


@dataclass(frozen=True)
class Lesson:
    """One training: what is compared, and how long and fast.

    losses: weights by name. map: rule 2. temperature: of kl, mlm-kl and masked-kl. epochs, batch,
    learning_rate, warmup: as ``train.Training`` takes them.
    """

    losses: dict[str, float]
    map: str = "uniform"
    temperature: float = 1.0
    epochs: float = 3.0
    learning_rate: float = 5e-5
    batch: int = 32
    warmup: float = 0.1

    def with_labels(self, share: float) -> Lesson:
        """The same, where gold labels take that share of ``kl``, if it has one."""
        if "kl" not in self.losses:
            return self
        weight = self.losses["kl"]
        answers = {"kl": (1 - share) * weight, "labels": share * weight}
        losses = {name: each for name, each in (self.losses | answers).items() if each}
        return replace(self, losses=losses)

    @property
    def looks_inside(self) -> bool:
        """Whether it compares more than answers."""
        return any(_LOOKS_AT[name] for name in self.losses)

    @property
    def compares_states(self) -> bool:
        """Whether it compares states, whose widths may differ."""
        return any(name in ("embeddings", "hidden", "cosine") for name in self.losses)

    @property
    def masks(self) -> bool:
        """Whether words are masked, and the answers are words."""
        return any(name in MASKED for name in self.losses)

    @property
    def answers(self) -> bool:
        """Whether the task's own answers are compared."""
        return any(name in ("kl", "labels", "logits") for name in self.losses)

    def views(self, pairs: tuple[tuple[int, int], ...]) -> tuple[set[View], set[View]]:
        """What it looks at in the student and in the teacher: a kind and a layer each."""
        kinds = {kind for name in self.losses for kind in _LOOKS_AT[name]}
        student, teacher = set(), set()
        for kind in kinds:
            for mine, theirs in ((0, 0),) if kind == "embeddings" else pairs:
                student.add((kind, mine))
                teacher.add((kind, theirs))
        return student, teacher

    def __str__(self) -> str:
        """The losses as rule 1 writes them."""
        return "+".join(
            name if weight == 1 else f"{weight:g}*{name}" for name, weight in self.losses.items()
        )


Preset = Literal[
    "answers",
    "distilbert",
    "tinybert",
    "minilm",
    "minilm-v2",
    "xcompression",
    "biomedical",
    "compact-biomedical",
]


def parse_losses(text: str) -> dict[str, float]:
    """Rule 1. Raises RecipeError."""
    found: dict[str, float] = {}
    for part in text.split("+"):
        weight, star, name = part.rpartition("*")
        name = name.strip()
        if name not in _LOOKS_AT:
            raise RecipeError(
                f"distill: there is no loss '{name}'; known are {', '.join(_LOOKS_AT)}, written as "
                "in losses=kl+0.5*hidden"
            )
        if name in found:
            raise RecipeError(f"distill: the loss '{name}' is given twice")
        try:
            found[name] = float(weight) if star else 1.0
        except ValueError:
            raise RecipeError(f"distill: '{weight}' is no weight; write 0.5*{name}") from None
        if not 0 < found[name] < float("inf"):
            raise RecipeError(f"distill: the weight of {name} must be above 0, is {weight}")
    return found


def layer_pairs(how: str, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Rule 2: each student layer that learns with its teacher layer, from 1. Raises RecipeError."""
    if how == "last":
        return ((student, teacher),)
    mine = range(1, student + 1)
    if how in ("uniform", "top", "bottom"):
        if student > teacher:
            raise RecipeError(
                f"distill: the student has {student} layers and its teacher {teacher}; take "
                "map=last, or list a teacher layer for each"
            )
        if how == "top":
            return tuple((m, teacher - student + m) for m in mine)
        if how == "bottom":
            return tuple((m, m) for m in mine)
        if teacher % student:
            raise RecipeError(
                f"distill: map=uniform wants a number of student layers that divides the "
                f"teacher's, and {student} does not divide {teacher}; list the teacher's layers, "
                f"as in map={'-'.join(str(-(-m * teacher // student)) for m in mine)}"
            )
        return tuple((m, m * teacher // student) for m in mine)
    theirs = listed_layers("distill: map", how, teacher)
    if len(theirs) != student:
        raise RecipeError(
            f"distill: map lists {len(theirs)} teacher layers for the student's {student}; list "
            "one for each"
        )
    return tuple(zip(mine, theirs, strict=True))


def listed_layers(option: str, text: str, depth: int) -> list[int]:
    """``3-6-9`` as numbers from 1 to ``depth``. Raises RecipeError."""
    parts = [part.strip() for part in text.split("-")]
    if not all(part.isdecimal() for part in parts):
        raise RecipeError(
            f"{option} is {', '.join(MAPS)} or a list of layers such as 2-4-6, not '{text}'"
        )
    found = [int(part) if len(part) < 9 else 10**9 for part in parts]
    beyond = [layer for layer in found if not 1 <= layer <= depth]
    if beyond:
        raise RecipeError(f"{option}: there is no layer {beyond[0]}; they are 1 to {depth}")
    return found


# Jiao et al. 2020, TinyBERT, arXiv 1909.10351, and its code: first what is inside, then answers.
# The code's soft cross entropy is also a mean over classes: a factor that AdamW does not feel.
_TINYBERT = (
    Lesson({"embeddings": 1, "hidden": 1, "attention": 1}, epochs=10),
    Lesson({"kl": 1}, epochs=3, learning_rate=3e-5),
)
PRESETS: Mapping[str, tuple[Lesson, ...]] = {
    # Hinton et al. 2015, arXiv 1503.02531: the answers alone.
    "answers": (Lesson({"kl": 1}, temperature=2.0, learning_rate=1e-4),),
    # Sanh et al. 2019, arXiv 1910.01108.
    "distilbert": (
        Lesson(
            {"mlm-kl": 5, "mlm": 2, "cosine": 1},
            "last",
            temperature=2.0,
            learning_rate=5e-4,
            warmup=0.05,
        ),
    ),
    "tinybert": _TINYBERT,
    # Wang et al. 2020, arXiv 2002.10957: the last layer's attention and value relation.
    "minilm": (
        Lesson(
            {"probabilities": 1, "values": 1}, "last", epochs=10, learning_rate=5e-4, warmup=0.01
        ),
        Lesson({"kl": 1}, epochs=3, learning_rate=3e-5),
    ),
    # Wang et al. 2021, arXiv 2012.15828: relations of queries, keys and values, any heads.
    "minilm-v2": (
        Lesson({"relations": 1}, "last", epochs=10, learning_rate=6e-4, warmup=0.01),
        Lesson({"kl": 1}, epochs=3, learning_rate=3e-5),
    ),
    # Wang et al. 2022, arXiv 2205.10036, and its code: the last layer, then answers (as on SST-2).
    # The code sums over a batch's rows, where we take the mean: a factor of the batch's size.
    "xcompression": (
        Lesson({"attention": 1, "hidden": 1}, "last", epochs=5),
        Lesson({"kl": 1}, epochs=5),
    ),
    # Rohanian et al. 2023, arXiv 2209.03182: DistilBioBERT and CompactBioBERT.
    "biomedical": (
        Lesson(
            {"masked-kl": 5, "mlm": 2, "cosine": 1},
            "last",
            temperature=2.0,
            learning_rate=5e-4,
            batch=192,
            warmup=0.05,
        ),
    ),
    "compact-biomedical": (
        Lesson(
            {"masked-kl": 5, "mlm": 1, "probabilities": 3, "cosine": 3},
            learning_rate=5e-4,
            batch=192,
            warmup=0.05,
        ),
    ),
}
