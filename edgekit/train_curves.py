"""The curves of a training for TensorBoard, where somebody asked for them.

Nothing depends on them, so they are no option of a step: ``curves_in(folder)`` around any training
has it write there, in a folder that is named for the step.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import UsageError

if TYPE_CHECKING:
    from edgekit.train_course import Course
    from edgekit.train_processes import Processes

_FOLDER: ContextVar[Path | None] = ContextVar("curves", default=None)


@contextlib.contextmanager
def curves_in(folder: Path | None) -> Iterator[None]:
    """Trainings inside write their curves there. Raises UsageError without TensorBoard."""
    if folder is not None:
        _writer_class()
    token = _FOLDER.set(folder)
    try:
        yield
    finally:
        _FOLDER.reset(token)


class Curves:
    """Of one training: loss, learning rate and scores by step; nothing where nobody asked.

    A training that goes on writes on, and what an earlier run wrote beyond its checkpoint is
    taken back.
    """

    def __init__(self, course: "Course", folder: Path, processes: "Processes") -> None:
        self.writer: Any = None
        home = _FOLDER.get()
        if home is not None and processes.first:
            # A step's folder holds the folder of its training.
            name = home / folder.parent.name
            self.writer = _writer_class()(str(name), purge_step=course.step + 1)

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *error: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, course: "Course") -> None:
        """The step that was just done."""
        if self.writer is None:
            return
        rate = course.training.learning_rate * course.rate(course.step - 1)
        self.writer.add_scalar("loss", course.losses[-1], course.step)
        self.writer.add_scalar("learning rate", rate, course.step)
        if course.scores and course.scores[-1][0] == course.step:
            for name, value in course.scores[-1][1].items():
                self.writer.add_scalar(name, value, course.step)


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "--tensorboard needs TensorBoard; pip install 'edgekit[tensorboard]'"
        ) from None
    return SummaryWriter
