"""One of the processes that ``launch.py`` started: ``python -m edgekit.launched JOB``.

Every process applies all steps; those that learn share the work (``train_processes.py``), and in
a folder of its own each keeps what else a step writes. The first one says how far it is, one
event as JSON a line on stdout, and leaves the checkpoint.
"""

import json
import os
import shutil
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.errors import EdgekitError
from edgekit.events import Event, silent
from edgekit.launch import CHECKPOINT, ERROR, LIFELINE

if TYPE_CHECKING:
    from edgekit.model import Model


def main(path: Path) -> None:
    """Do the job in the file ``path``.

    What a person can mend ends in a file beside it and with exit code 0, since a launcher would
    only start it again.
    """
    if os.environ.get(LIFELINE):
        threading.Thread(target=_end_with_the_launcher, daemon=True).start()
    job = json.loads(path.read_text(encoding="utf-8"))
    scratch = Path(job["scratch"])
    try:
        _apply(job, scratch)
    except EdgekitError as error:
        text = json.dumps({"kind": type(error).__name__, "text": str(error)})
        partial = scratch / f"{ERROR}.{os.getpid()}"
        partial.write_text(text, encoding="utf-8")
        partial.replace(scratch / ERROR)


def _apply(job: dict[str, Any], scratch: Path) -> None:
    from edgekit.data import Columns
    from edgekit.model import identify, save_model
    from edgekit.project import Settings
    from edgekit.recipe import parse_table
    from edgekit.step import Context, apply_steps
    from edgekit.store import Store
    from edgekit.train_curves import curves_in
    from edgekit.train_processes import join
    from edgekit.workbench import Workbench

    processes = join()
    said = job["settings"]
    settings = Settings(
        model=said["model"],
        targets=(),
        task=said["task"],
        data=said["data"],
        eval=said["eval"],
        columns=Columns(**said["columns"]),
        seed=said["seed"],
        unlabeled=tuple(said["unlabeled"]),
    )
    on_event = _tell if processes.first else silent
    work = Workbench(settings, identify(settings.model), Store(), silent)
    folder = scratch if processes.first else scratch / f"process-{processes.rank}"
    context = Context(
        work.data.train,
        settings.seed,
        folder=folder,
        on_progress=lambda fraction, text: on_event(
            Event("progress", "compress", text, fraction=fraction)
        ),
        unlabeled=work.data.unlabeled,
    )
    steps = [parse_table(table).step for table in job["steps"]]
    with curves_in(None if job["tensorboard"] is None else Path(job["tensorboard"])):
        model = apply_steps(steps, cast("Model", work.original), context)
    if processes.first:
        partial = scratch / f"{CHECKPOINT}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(scratch / CHECKPOINT, ignore_errors=True)
        save_model(model, partial)
        partial.rename(scratch / CHECKPOINT)


def _tell(event: Event) -> None:
    print(json.dumps(asdict(event)), flush=True)  # noqa: T201


def _end_with_the_launcher() -> None:
    """Whoever launched holds the other end of our standard input, and it closes when he dies."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
