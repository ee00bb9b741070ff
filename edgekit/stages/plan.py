"""What a build will do: which steps, which lengths, and the bytes to expect."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.plan.propose import Plan
from edgekit.stages.stage import read_record, run_stage, step_fields
from edgekit.target import Target
from edgekit.workbench import Workbench


def make_plan(work: Workbench, targets: Sequence[Target]) -> Plan:
    """Which steps, which lengths, and the bytes to expect."""
    settings = work.settings
    inputs = {
        **work.identity,
        "targets": [_outcome_fields(target) for target in targets],
        "formats": list(settings.formats),
        "scheme": settings.scheme,
        "random": settings.allow_random_calibration,
        "size": settings.budget.size,
        "lengths": list(settings.lengths),
        "steps": [step_fields(spec) for spec in settings.steps],
    }

    def produce(folder: Path) -> None:
        from edgekit.plan.search import search

        (folder / "plan.json").write_text(json.dumps(search(work, targets).to_json(), indent=1))

    entry = run_stage(work, "plan", "planning", inputs, produce)
    return Plan.from_json(read_record(entry.path / "plan.json"))


def _outcome_fields(target: Target) -> dict[str, Any]:
    """What of a target decides a plan; not where its folder is."""
    return {
        "name": target.name,
        "formats": list(target.formats),
        "on_request": list(target.on_request),
        "scheme": target.scheme,
    }
