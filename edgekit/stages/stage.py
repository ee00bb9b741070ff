"""What all stages share: a run with its events, records, and a step in a key."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgekit.data import identify_data
from edgekit.events import Event
from edgekit.recipe import StepSpec, paths_in
from edgekit.store import Entry
from edgekit.workbench import Workbench


def run_stage(
    work: Workbench,
    name: str,
    title: str,
    inputs: Mapping[str, Any],
    produce: Callable[[Path], None],
) -> Entry:
    """A stage with its events."""
    started = time.perf_counter()
    work.on_event(Event("stage-start", name, title))
    entry = work.store.stage(name, inputs, produce)
    seconds = time.perf_counter() - started
    work.on_event(Event("stage-end", name, title, seconds=seconds, reused=entry.reused))
    return entry


def read_record(path: Path) -> dict[str, Any]:
    """What a stage wrote as JSON."""
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return fields


def step_fields(spec: StepSpec) -> dict[str, Any]:
    """What decides a step's outcome: its options, and the content of what they name."""
    files = {
        name: [identify_data(str(path)) for path in paths_in(value) if path.exists()]
        for name, value in spec.options().items()
        if paths_in(value)
    }
    return {**spec.to_json(), "files": files}
