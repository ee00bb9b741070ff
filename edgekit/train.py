"""The one training loop: every step that learns supplies a loss and calls ``train``.

It runs on transformers' ``Trainer``, for what that brings: accumulation, clipping, devices and
several processes. What the Trainer only approximates is kept here: its checkpoints hold pickles
and are written in place, and its sampler by length draws from a global generator, so that a
resumed run sees other batches (transformers 5.23).

Rules:

1. Parameters with ``requires_grad`` learn in place; everything else stays. The module stays in
   the mode it came in: in eval mode there is no dropout.
2. AdamW; matrices decay, biases and norms do not. Gradients are clipped to a norm of 1. The
   learning rate rises over the share ``warmup`` of the steps and falls to zero at the last.
3. The outcome depends on the arguments and the number of threads alone. Batches depend on the
   seed and the place in the training (``examples.py``); a loss that needs chance takes it from
   torch's generators, which a checkpoint keeps. The caller's generators are left as they were.
4. A checkpoint is one safetensors file and one JSON in a folder that appears by one rename. The
   same call with the same ``folder`` goes on from the last one and ends in the same weights,
   however often it was killed; a checkpoint of other arguments is removed.
5. With ``max_minutes`` the number of steps is fitted to the measured time of a step, again at
   each step, and never above what was asked: the learning rate still ends at zero. Time spent
   before a kill counts. A training that fits the time is not changed by the limit.
6. A loss or gradient that is not finite is found before it touches a weight. That, or a mean
   loss of ten steps that is ten times the first loss (plus one), ends the training; the last
   state whose loss was sound is put back. Such a state is kept every 2 % of the steps.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.errors import DataError, TrainingError, UsageError
from edgekit.events import OnProgress, unwatched
from edgekit.examples import Batch, Examples, collate, order_of
from edgekit.model import quiet
from edgekit.train_state import (
    Checkpoint,
    Checkpoints,
    chance_kept,
    identity,
    put,
    put_chance,
    put_optimizer,
    take,
    take_chance,
    take_optimizer,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    Loss = Callable[[nn.Module, Batch], torch.Tensor]
    Tensors = dict[str, torch.Tensor]

# Steps whose mean loss is shown and judged.
_RECENT = 10
_CLIP = 1.0


@dataclass(frozen=True)
class Training:
    """How long and how fast.

    epochs: passes over the examples; may be a fraction. batch: rows of one pass through the
    module; ``gradient_accumulation`` of them make one step. warmup: share of the steps in which
    the learning rate rises. weight_decay: as in AdamW. max_minutes: wall-clock time, rule 5.
    """

    epochs: float = 3.0
    learning_rate: float = 5e-5
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine"] = "linear"
    gradient_accumulation: int = 1
    max_minutes: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """What a training did.

    steps: done, of which ``planned`` were asked for. loss: the mean of the last ten steps.
    losses: of each step. scores: what ``evaluate`` returned, by step. seconds: of all runs
    together. resumed_from: the step of the checkpoint that this call went on from.
    diverged_at: the step (from 1) whose loss was beyond use, with the rows of its batch;
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


def train(
    module: "nn.Module",
    examples: Examples,
    loss: "Loss",
    training: Training,
    *,
    folder: Path,
    on_progress: OnProgress = unwatched,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    after_step: Callable[[float], None] | None = None,
    checkpoint_seconds: float = 60.0,
) -> Report:
    """Train ``module`` in place; see the module's rules.

    loss: of one batch, a scalar that is a mean over its rows; ``batch.run(module)`` is the
    module's answer. folder: of this training with this loss alone, since a checkpoint cannot tell
    losses apart; nothing is written elsewhere. evaluate: called after each epoch and at the end,
    within the time limit but for the last call. after_step: called after each step with the share
    of the training that is done; whatever it changes or remembers must be parameters that learn
    or buffers of the module, which are what a checkpoint keeps. checkpoint_seconds: the least time
    between two checkpoints; 0 is after every step. Threads are torch's own number, as found.
    Raises UsageError for settings that cannot be, DataError without rows, and TrainingError when
    nothing can learn, or when it diverged before any state was worth keeping.
    """
    _check(training)
    if len(examples) == 0:
        raise DataError("there are no rows to train on; give training data with --data")
    if not any(each.requires_grad for each in module.parameters()):
        raise TrainingError("every parameter is frozen, so nothing can learn; unfreeze some")
    course = _Course(training, len(examples), on_progress)
    folder.mkdir(parents=True, exist_ok=True)
    which = identity(module, examples, asdict(training))
    checkpoints = Checkpoints(folder, which, checkpoint_seconds)
    found = checkpoints.last()
    if found is not None:
        course.resume(found.record)
        course.good = found.part("good")
        put(module, found.part("model"))
    if not course.finished:
        with chance_kept():
            _run(module, examples, loss, course, checkpoints, found, evaluate, after_step)
    return course.report()


def _check(training: Training) -> None:
    """Raise UsageError for a setting that cannot be."""
    least: dict[str, float] = {"batch": 1, "gradient_accumulation": 1, "weight_decay": 0}
    for name, limit in least.items():
        if getattr(training, name) < limit:
            raise UsageError(f"{_flag(name)} must be at least {limit}")
    for name in ("epochs", "learning_rate", "max_minutes"):
        value = getattr(training, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{_flag(name)} must be above zero, is {value}")
    if not 0 <= training.warmup < 1:
        raise UsageError(f"warmup is a share of the steps, below 1, and not {training.warmup}")


def _flag(name: str) -> str:
    return name.replace("_", "-")


class _Diverged(Exception):
    """The loss or the gradient of these rows is beyond use."""

    def __init__(self, rows: list[int], why: str) -> None:
        super().__init__(why)
        self.rows = rows
        self.why = why


@dataclass
class _Course:
    """Where a training stands. ``steps`` is how many fit the time; ``step`` how many are done."""

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

    def fit(self) -> None:
        """Fit the number of steps to the time that is left (rule 5), a step being nearly done."""
        if self.training.max_minutes is None or self.started is None:
            return
        limit = 60 * self.training.max_minutes
        now = time.perf_counter()
        if self.step == 0 and self.seconds > limit:
            raise UsageError(
                f"max-minutes {self.training.max_minutes:g} is too short: one step takes "
                f"{self.seconds:.3g} s; give more, or a smaller batch"
            )
        done = self.step - self.begun
        # The first step of a process is slow: memory is found and caches are filled.
        each = (now - self.started) if done == 0 else (now - self.first_step_ended) / done
        more = max(0, math.floor((limit - self.seconds) / each))
        self.steps = min(self.planned, self.step + 1 + more)

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

    def tell(self) -> None:
        """Say how far it is."""
        text = f"step {self.step} of {self.steps}, loss {self.recent:.4g}"
        self.on_progress(self.step / self.steps, text)

    def report(self) -> Report:
        per_epoch = -(-self.rows // self.training.batch) / self.training.gradient_accumulation
        steps = self.good_step if self.diverged else self.step
        note = None
        if self.diverged:
            note = self.divergence() + f"; the state after step {self.good_step} was put back"
        elif self.step < self.planned:
            note = (
                f"{self.step} of {self.planned} steps were done in the "
                f"{self.training.max_minutes:g} minutes that max-minutes leaves"
            )
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
            restored=self.good_step if self.diverged else None,
            note=note,
        )

    def divergence(self) -> str:
        """Where and how it diverged, as the beginning of a sentence."""
        assert self.diverged is not None
        step, rows, why = self.diverged
        named = ", ".join(map(str, rows[:5])) + (", …" if len(rows) > 5 else "")
        return f"the training diverged at step {step} of {self.planned}: {why} on rows {named}"


def _run(
    module: "nn.Module",
    examples: Examples,
    loss: "Loss",
    course: _Course,
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    evaluate: Callable[[], Mapping[str, float]] | None,
    after_step: Callable[[float], None] | None,
) -> None:
    """Train from where the course stands to its end, or to where it diverges."""

    def score(step: int) -> None:
        if evaluate is not None and (not course.scores or course.scores[-1][0] != step):
            with chance_kept():
                course.scores.append((step, dict(evaluate())))

    device = next(module.parameters()).device
    try:
        _fit(module, examples, loss, course, checkpoints, found, score, after_step)
    except _Diverged as error:
        course.diverged = (course.step + 1, error.rows, error.why)
        if not course.good:
            raise TrainingError(
                f"{course.divergence()}, before any state was worth keeping; lower the learning "
                "rate, or look at these rows"
            ) from None
        put(module, course.good)
    finally:
        module.to(device)
        module.zero_grad()
    score(course.good_step if course.diverged else course.step)
    course.finish()
    checkpoints.save(course.step, course.to_json(), {"model": take(module)})


def _fit(
    module: "nn.Module",
    examples: Examples,
    loss: "Loss",
    course: _Course,
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    score: Callable[[int], None],
    after_step: Callable[[float], None] | None,
) -> None:
    """A Trainer run of the batches that are left. Raises _Diverged."""
    import torch
    from torch import nn

    with quiet():
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    training = course.training
    accumulated = training.gradient_accumulation
    rows_at = order_of(examples, training.batch, training.seed)
    per_epoch = -(-len(examples) // training.batch)
    # Of the step that is being done: the loss and the rows of each of its batches.
    losses: list[float] = []
    rows_seen: list[int] = []

    class Learner(nn.Module):
        """The module with its loss, as the Trainer wants a model."""

        accepts_loss_kwargs = False

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def train(self, mode: bool = True) -> "Learner":
            """The Trainer asks for it at each step; the module stays as it came (rule 1)."""
            return self

        def forward(
            self,
            inputs: dict[str, torch.Tensor],
            rows: torch.Tensor,
            labels: torch.Tensor | None = None,
            teacher: torch.Tensor | None = None,
        ) -> dict[str, torch.Tensor]:
            found = loss(self.module, Batch(inputs, rows, labels, teacher))
            value = float(found.detach())
            losses.append(value)
            rows_seen.extend(rows.tolist())
            if not math.isfinite(value):
                raise _Diverged(rows.tolist(), f"a loss of {value}")
            return {"loss": found}

    class Steering(TrainerCallback):
        """What happens around each step."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            course.start()

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            losses.clear()
            rows_seen.clear()
            if found is not None and course.step == course.resumed_from:
                # Not earlier, since making the data loader draws a number too.
                put_chance(found.part("chance"))

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            gradients = [each.grad for each in learning if each.grad is not None]
            if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
                raise _Diverged([*rows_seen], "a gradient that is not finite")
            course.fit()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            course.losses.append(sum(losses) / len(losses))
            if course.exploded():
                raise _Diverged([*rows_seen], f"a mean loss of {course.recent:.4g}")
            course.end_step()
            if after_step is not None:
                after_step(course.step / course.steps)
            if course.worth_keeping():
                course.good, course.good_step = take(module), course.step
            if course.step * accumulated % per_epoch < accumulated:
                score(course.step)
            course.tell()
            if course.step >= course.steps:
                control.should_training_stop = True
            elif checkpoints.due():
                parts = {
                    "model": take(module),
                    "good": course.good,
                    "optimizer": take_optimizer(optimizer),
                    "chance": take_chance(),
                }
                checkpoints.save(course.step, course.to_json(), parts)

    learner = Learner()
    learning = [each for each in module.parameters() if each.requires_grad]
    optimizer = _optimizer(learning, training)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: course.rate(course.begun + done)
    )
    if found is not None:
        put_optimizer(optimizer, found.part("optimizer"))
    arguments = TrainingArguments(
        output_dir=str(checkpoints.folder),
        max_steps=course.planned - course.step,
        # One item of the data is a whole batch already.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulated,
        train_sampling_strategy="sequential",
        max_grad_norm=_CLIP,
        seed=training.seed,
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    # Several GPUs are several processes (torchrun), never threads of one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    places: Any = range(course.step * accumulated, course.planned * accumulated)
    trainer = Trainer(
        model=learner,
        args=arguments,
        train_dataset=places,
        data_collator=lambda chosen: collate(examples, rows_at(chosen[0])),
        optimizers=(optimizer, schedule),
        callbacks=[Steering()],
    )
    trainer.remove_callback(PrinterCallback)
    with quiet():
        trainer.train()


def _optimizer(learning: "list[nn.Parameter]", training: Training) -> "torch.optim.Optimizer":
    """AdamW of rule 2."""
    import torch

    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=training.learning_rate, fused=True
    )
