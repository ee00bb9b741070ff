"""The one training loop: every step that learns supplies a loss and calls ``train``.

It runs on transformers' ``Trainer``, for what that brings: accumulation, clipping, mixed
precision, devices and several processes. What the Trainer only approximates is kept here: its
checkpoints hold pickles and are written in place, and its sampler by length draws from a global
generator, so that a resumed run sees other batches (transformers 5.23).

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
7. With ``patience`` the training ends when the first of the scores that ``evaluate`` returns
   (higher is better) has not risen for that many evaluations. The state with the best score is
   put back, also when the training ran to its end.
8. Started by torchrun or accelerate, the processes share each batch (``train_processes.py``): the
   losses are those of one process but for rounding, as long as a loss is a mean over rows and no
   layer looks at the whole batch. The first process writes; the folder must be one that all see.
   Another number of processes may go on from a checkpoint.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.checkpoint import quiet
from edgekit.errors import DataError, TrainingError, UsageError
from edgekit.events import OnProgress, unwatched
from edgekit.examples import Batch, Examples, collate, order_of
from edgekit.train_course import Course, Diverged, Report, Training
from edgekit.train_curves import Curves
from edgekit.train_processes import Processes, join
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

__all__ = ["Report", "Training", "train"]

_CLIP = 1.0


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
    with the module where it came from, within the time limit but for the last call. after_step:
    called after each step with the share of the training that is done; whatever it changes or
    remembers must be parameters that learn or buffers of the module, which are what a checkpoint
    keeps. checkpoint_seconds: the least time between two checkpoints; 0 is after every step.
    Threads are torch's own number, as found.
    Raises UsageError for settings that cannot be, DataError without rows, and TrainingError when
    nothing can learn, or when it diverged before any state was worth keeping.
    """
    training.check()
    if training.patience is not None and evaluate is None:
        raise UsageError("patience needs a score to watch; leave it out, or give evaluate")
    if len(examples) == 0:
        raise DataError("there are no rows to train on; give training data with --data")
    if not any(each.requires_grad for each in module.parameters()):
        raise TrainingError("every parameter is frozen, so nothing can learn; unfreeze some")
    _check_precision(training)
    processes = join()
    course = Course(training, len(examples), on_progress if processes.first else unwatched)
    folder = Path(processes.agree_text(str(folder.absolute())))
    folder.mkdir(parents=True, exist_ok=True)
    which = identity(module, examples, asdict(training))
    checkpoints = Checkpoints(folder, which, checkpoint_seconds)
    found = _last(checkpoints, processes)
    if found is not None:
        course.resume(found.record)
        course.good = found.part("good")
        course.best = found.part("best")
        put(module, found.part("model"))
    if not course.finished:
        with chance_kept():
            _run(
                module, examples, loss, course, checkpoints, found, processes, evaluate, after_step
            )
    return course.report()


def _check_precision(training: Training) -> None:
    """Raise UsageError where the device has no such numbers; a CPU has."""
    import torch

    gpu = torch.cuda.is_available()
    if training.precision == "bf16" and gpu and not torch.cuda.is_bf16_supported():
        raise UsageError("this GPU has no bf16; leave precision at fp32")


def _last(checkpoints: Checkpoints, processes: Processes) -> Checkpoint | None:
    """The last checkpoint; the first process says which, since it clears the folder up."""
    found = checkpoints.last() if processes.first else None
    step = int(processes.agree(-1 if found is None else found.record["step"]))
    return checkpoints.read(step) if step >= 0 and not processes.first else found


def _run(
    module: "nn.Module",
    examples: Examples,
    loss: "Loss",
    course: Course,
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    processes: Processes,
    evaluate: Callable[[], Mapping[str, float]] | None,
    after_step: Callable[[float], None] | None,
) -> None:
    """Train from where the course stands to its end, or to where it diverges."""
    device = next(module.parameters()).device

    def score(step: int) -> None:
        if evaluate is None or (course.scores and course.scores[-1][0] == step):
            return
        trained_on = next(module.parameters()).device
        module.to(device)
        with chance_kept():
            scores = {name: processes.agree(value) for name, value in evaluate().items()}
        module.to(trained_on)
        course.scores.append((step, scores))
        if course.training.patience is not None and course.improved:
            course.best, course.best_step = take(module), step

    try:
        _fit(module, examples, loss, course, checkpoints, found, processes, score, after_step)
    except Diverged as error:
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
    if course.best:
        put(module, course.best)
    course.finish()
    if processes.first:
        checkpoints.save(course.step, course.to_json(), {"model": take(module)})


def _fit(
    module: "nn.Module",
    examples: Examples,
    loss: "Loss",
    course: Course,
    checkpoints: Checkpoints,
    found: Checkpoint | None,
    processes: Processes,
    score: Callable[[int], None],
    after_step: Callable[[float], None] | None,
) -> None:
    """A Trainer run of the batches that are left. Raises Diverged."""
    import torch
    from torch import nn

    with quiet():
        from transformers import PrinterCallback, Trainer, TrainerCallback

    training = course.training
    accumulated = training.gradient_accumulation
    rows_at = order_of(examples, training.batch, training.seed)
    per_epoch = -(-len(examples) // training.batch)
    # Of each batch of the step that is being done, over all processes once they all know it.
    losses: list[float] = []

    class Learner(nn.Module):
        """The module with its loss, as the Trainer wants a model."""

        accepts_loss_kwargs = False

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def train(self, mode: bool = True) -> "Learner":
            """The Trainer asks for it at each step; the module stays as it came (rule 1)."""
            return self

        def forward(self, weight: float, **fields: Any) -> dict[str, torch.Tensor]:
            found = loss(self.module, Batch(**fields)) * weight
            losses.append(float(found.detach()))
            return {"loss": found}

    class Steering(TrainerCallback):
        """What happens around each step."""

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            course.start()

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            losses.clear()
            if course.step == course.begun:
                # Not earlier, since making the data loader draws a number too.
                put_chance({} if found is None else found.part("chance"), training.seed, processes)

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            losses[:] = processes.mean(losses)
            place = course.step * accumulated
            batches = [rows_at(place + number).tolist() for number in range(accumulated)]
            for batch, value in zip(batches, losses, strict=True):
                if not math.isfinite(value):
                    raise Diverged(batch, f"a loss of {value}")
            rows = [row for batch in batches for row in batch]
            gradients = [each.grad for each in learning if each.grad is not None]
            if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
                raise Diverged(rows, "a gradient that is not finite")
            course.losses.append(sum(losses) / len(losses))
            if course.exploded():
                raise Diverged(rows, f"a mean loss of {course.recent:.4g}")
            if training.max_minutes is not None:
                course.fit(int(processes.agree(course.fitting())))

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            course.end_step()
            if after_step is not None:
                after_step(course.step / course.steps)
            if course.worth_keeping():
                course.good, course.good_step = take(module), course.step
            if course.step * accumulated % per_epoch < accumulated:
                score(course.step)
            course.tell()
            curves.write(course)
            if course.step >= course.steps or course.out_of_patience:
                control.should_training_stop = True
            elif processes.agree(checkpoints.due()):
                save()

    def save() -> None:
        chance = take_chance(processes)
        if processes.first:
            parts = {
                "model": take(module),
                "good": course.good,
                "best": course.best,
                "optimizer": take_optimizer(optimizer),
                "chance": chance,
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

    def collated(chosen: list[int]) -> dict[str, Any]:
        (place,) = chosen
        rows, weight = processes.share(rows_at(place))
        return {**collate(examples, rows), "place": place, "weight": weight}

    # Each process takes one of every ``count`` items that follow one another.
    places: Any = [
        place
        for place in range(course.step * accumulated, course.planned * accumulated)
        for _ in range(processes.count)
    ]
    trainer = Trainer(
        model=learner,
        args=_arguments(course, checkpoints.folder),
        train_dataset=places,
        data_collator=collated,
        optimizers=(optimizer, schedule),
        callbacks=[Steering()],
    )
    trainer.remove_callback(PrinterCallback)
    with quiet(), Curves(course, checkpoints.folder, processes) as curves:
        trainer.train()


def _arguments(course: Course, folder: Path) -> Any:
    """The Trainer's settings for the batches that are left; all that it would write is off."""
    import torch
    from transformers import TrainingArguments

    training = course.training
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=course.planned - course.step,
        # One item of the data is a whole batch already.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=training.gradient_accumulation,
        train_sampling_strategy="sequential",
        max_grad_norm=_CLIP,
        seed=training.seed,
        bf16=training.precision == "bf16",
        use_cpu=not torch.accelerator.is_available(),
        # A student may hold parts that a loss does not reach.
        ddp_find_unused_parameters=True,
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
    return arguments


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
