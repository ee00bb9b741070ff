"""What is asked of a training, where it stands, and what it did.

Everything here is arithmetic on numbers: how many steps fit the time, the learning rate of each,
whether a loss is sound, which state was best. ``train.py`` has the rules.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import UsageError
from edgekit.events import OnProgress

if TYPE_CHECKING:
    import torch

    Tensors = dict[str, torch.Tensor]

# Steps whose mean loss is shown and judged.
_RECENT = 10


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    epochs: passes over the examples; may be a fraction. batch: rows of one pass through the
    module, of all processes together; ``gradient_accumulation`` of them make one step. warmup:
    share of the steps in which the learning rate rises. weight_decay: as in AdamW. max_minutes:
    wall-clock time, rule 5. precision: of products in forward and backward; weights, their
    gradients and the optimizer are float32 always. patience: evaluations without a better score
    after which to stop, rule 7.
    """

    epochs: float = 3.0
    learning_rate: float = 5e-5
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    gradient_accumulation: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    patience: int | None = None
    max_minutes: float | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for a setting that cannot be."""
        least = {"batch": 1, "gradient_accumulation": 1, "weight_decay": 0, "patience": 1}
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and value < limit:
                raise UsageError(f"{_flag(name)} must be at least {limit}")
        for name in ("epochs", "learning_rate", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{_flag(name)} must be above zero, is {value}")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"warmup is a share of the steps, below 1, and not {self.warmup}")


def _flag(name: str) -> str:
    return name.replace("_", "-")


@dataclass(frozen=True)
class Report:
    """What a training did.

    steps: that made the state at the end, of ``planned`` that were asked for. loss: the mean of
    the last ten. losses: of each step that was done. scores: what ``evaluate`` returned, by step.
    seconds: of all runs together. resumed_from: the step of the checkpoint that this call went on
    from. diverged_at: the step (from 1) whose loss was beyond use, with the rows of its batch;
    restored: the step whose state was put back. note: a sentence when it did not go as asked.
    """

    steps: int
    planned: int
    epochs: float
    seconds: float
    loss: float
    losses: tuple[float, ...]
    scores: tuple[tuple[int, dict[str, float]], ...] = ()
    resumed_from: int | None = None
    diverged_at: int | None = None
    diverged_rows: tuple[int, ...] = ()
    restored: int | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Every field but the loss of each step."""
        return {name: value for name, value in asdict(self).items() if name != "losses"}


class Diverged(Exception):
    """The loss or the gradient of these rows is beyond use."""

    def __init__(self, rows: list[int], why: str) -> None:
        super().__init__(why)
        self.rows = rows
        self.why = why


@dataclass
class Course:
    """Where a training stands. ``steps`` is how many fit the time; ``step`` how many are done.

    good: the last state with a sound loss; best: that with the best score, where there is
    patience. Each with the step that it is of.
    """

    training: Training
    rows: int
    on_progress: OnProgress
    planned: int = 0
    steps: int = 0
    step: int = 0
    before: float = 0.0
    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    good: "Tensors" = field(default_factory=dict)
    good_step: int = 0
    best: "Tensors" = field(default_factory=dict)
    best_step: int = 0
    finished: bool = False
    resumed_from: int | None = None
    diverged: tuple[int, list[int], str] | None = None
    started: float | None = None
    first_step_ended: float = 0.0

    def __post_init__(self) -> None:
        batches = -(-self.rows // self.training.batch)
        self.planned = math.ceil(
            self.training.epochs * batches / self.training.gradient_accumulation
        )
        self.steps = self.planned

    # A checkpoint's record

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "scores": self.scores,
            "good_step": self.good_step,
            "best_step": self.best_step,
            "finished": self.finished,
            "diverged": self.diverged,
        }

    def resume(self, record: Mapping[str, Any]) -> None:
        self.step = self.resumed_from = record["step"]
        self.steps = record["steps"]
        self.before = record["seconds"]
        self.losses = list(record["losses"])
        self.scores = [(step, found) for step, found in record["scores"]]
        self.good_step = record["good_step"]
        self.best_step = record["best_step"]
        self.finished = record["finished"]
        self.diverged = record["diverged"]

    @property
    def begun(self) -> int:
        """Steps that were done before this process."""
        return self.resumed_from or 0

    def end_step(self) -> None:
        self.step += 1
        if self.step == self.begun + 1:
            self.first_step_ended = time.perf_counter()

    # Time

    def start(self) -> None:
        self.started = time.perf_counter()

    def finish(self) -> None:
        self.before, self.started = self.seconds, None
        self.finished = True

    @property
    def seconds(self) -> float:
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.before + running

    def fitting(self) -> int:
        """The steps that fit the time (rule 5), a step being nearly done; 0 if not even that."""
        assert self.training.max_minutes is not None and self.started is not None
        limit = 60 * self.training.max_minutes
        now = time.perf_counter()
        if self.step == 0 and self.seconds > limit:
            return 0
        done = self.step - self.begun
        # The first step of a process is slow: memory is found and caches are filled.
        each = (now - self.started) if done == 0 else (now - self.first_step_ended) / done
        more = max(0, math.floor((limit - self.seconds) / each))
        return min(self.planned, self.step + 1 + more)

    def fit(self, steps: int) -> None:
        """Take over what ``fitting`` returned. Raises UsageError for 0."""
        if steps == 0:
            raise UsageError(
                f"max-minutes {self.training.max_minutes:g} is too short: one step takes "
                f"{self.seconds:.3g} s; give more, or a smaller batch"
            )
        self.steps = steps

    def rate(self, step: int) -> float:
        """The factor on the learning rate of a step, counted from 0 (rule 2)."""
        rising = round(self.training.warmup * self.steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        left = max(0.0, (self.steps - step) / max(1, self.steps - rising))
        return left if self.training.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2

    # Loss

    @property
    def recent(self) -> float:
        """Mean loss of the last ten steps; NaN before the first."""
        last = self.losses[-_RECENT:]
        return sum(last) / len(last) if last else math.nan

    def exploded(self) -> bool:
        return self.recent > 10 * (1 + abs(self.losses[0]))

    def sound(self) -> bool:
        return self.recent <= 2 * (1 + abs(self.losses[0]))

    def worth_keeping(self) -> bool:
        return self.step % max(_RECENT, -(-self.planned // 50)) == 0 and self.sound()

    # Score (rule 7)

    @property
    def watched(self) -> str:
        """The name of the score that decides: the first that ``evaluate`` returned."""
        return next(iter(self.scores[-1][1]))

    @property
    def improved(self) -> bool:
        """Whether the last score is above all others."""
        *others, last = (found[self.watched] for _, found in self.scores)
        return all(last > other for other in others)

    @property
    def out_of_patience(self) -> bool:
        patience = self.training.patience
        if patience is None or not self.scores:
            return False
        return sum(step > self.best_step for step, _ in self.scores) >= patience

    # Words

    def tell(self) -> None:
        """Say how far it is."""
        text = f"step {self.step} of {self.steps}, loss {self.recent:.4g}"
        if self.scores:
            text += f", {self.watched} {self.scores[-1][1][self.watched]:.4g}"
        self.on_progress(self.step / self.steps, text)

    def report(self) -> Report:
        per_epoch = -(-self.rows // self.training.batch) / self.training.gradient_accumulation
        restored = self.good_step if self.diverged else None
        if self.best_step:
            restored = None if self.best_step == self.step else self.best_step
        steps = self.step if restored is None else restored
        notes = []
        if self.diverged:
            notes.append(self.divergence())
        elif self.step < self.planned and self.out_of_patience:
            notes.append(
                f"stopped after step {self.step} of {self.planned}, since {self.watched} was not "
                f"rising any more (patience {self.training.patience})"
            )
        elif self.step < self.planned:
            notes.append(
                f"{self.step} of {self.planned} steps were done in the "
                f"{self.training.max_minutes:g} minutes that max-minutes leaves"
            )
        if restored is not None:
            notes.append(f"the state after step {restored} was put back")
        return Report(
            steps=steps,
            planned=self.planned,
            epochs=steps / per_epoch,
            seconds=self.seconds,
            loss=self.recent,
            losses=tuple(self.losses),
            scores=tuple(self.scores),
            resumed_from=self.resumed_from,
            diverged_at=self.diverged[0] if self.diverged else None,
            diverged_rows=tuple(self.diverged[1]) if self.diverged else (),
            restored=restored,
            note="; ".join(notes) or None,
        )

    def divergence(self) -> str:
        """Where and how it diverged, as the beginning of a sentence."""
        assert self.diverged is not None
        step, rows, why = self.diverged
        named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        return f"the training diverged at step {step} of {self.planned}: {why} on rows {named}"
