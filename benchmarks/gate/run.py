"""How often the gate is wrong: histories of changes whose truth is known. And how quick it is.

    python benchmarks/gate/run.py dist/linux-x86_64

Each history begins with a bundle that was really built, and is a few commits long. Every commit
moves its figures a little, as retraining and rewriting do: some bytes more or less, and some eval
rows won and lost, in the mean as many. In four of five histories one commit is a regression: of
size, 2 to 10 %, or of accuracy, 2.5 to 6 points. The real gate judges every commit, with a real
manifest, real files and their digests; what it lets pass becomes the baseline. Writes
`histories.json` beside this file.
"""

import argparse
import base64
import collections
import json
import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import sha256
from edgekit.bundle.manifest import Manifest, read_manifest, write_manifest
from edgekit.gating.gate import gate, update
from edgekit.measure.size import deflated_bytes

_COMMITS = 4
RULES = """
[gate.shipped-bytes]
growth = "1% and 100kB"

[gate.download-bytes]
growth = "1% and 100kB"

[gate.accuracy]
drop = "1 point"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle with one model file and eval labels")
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--runs", type=int, default=15, help="of the gate on three bundles")
    options = parser.parse_args()
    draw = random.Random(0)
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project, baseline = folder / "edgekit.toml", folder / "edgekit.lock.json"
        project.write_text(RULES)
        shutil.copytree(options.bundle, folder / "dist" / "bundle")
        start = read_manifest(options.bundle)
        for number in range(options.histories):
            kind = ("size", "accuracy", "size", "accuracy", "clean")[number % 5]
            turn = draw.randrange(_COMMITS)
            state = State(folder / "dist" / "bundle", start, draw)
            state.write()
            update([], project=project, baseline=baseline)
            for commit in range(_COMMITS):
                regression = commit == turn and kind != "clean"
                kept = state.copy()
                state.change(kind if regression else "clean")
                state.write()
                result = gate([], project=project, baseline=baseline)
                outcomes[f"{kind} regression" if regression else "clean change"][
                    result.outcome
                ] += 1
                if result.outcome == "pass":
                    update([], project=project, baseline=baseline)
                else:
                    state.restore(kept)
            if number % 10 == 9:
                print(number + 1, {each: dict(count) for each, count in outcomes.items()})
        seconds = timed(options.bundle, folder, options.runs)
    found = {each: dict(count) for each, count in outcomes.items()}
    record = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "bundle": f"{start.target}, {start.shipped_bytes} bytes, "
        f"{start.models[0].proof['rows']} rows",
        "rules": RULES.strip().splitlines(),
        "histories": options.histories,
        "commits_a_history": _COMMITS,
        "outcomes": found,
        "gate_on_three_bundles": seconds,
    }
    path = Path(__file__).with_name("histories.json")
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(path.read_text())


class State:
    """Where a history stands: bytes beside the real file's, and which rows are right."""

    def __init__(self, folder: Path, start: Manifest, draw: random.Random) -> None:
        self.folder, self.start, self.draw = folder, start, draw
        (model,) = start.models
        rows = model.proof["rows"]
        packed = np.frombuffer(base64.b64decode(model.proof["right"]), np.uint8)
        self.right = np.unpackbits(packed, count=rows).astype(bool)
        self.bytes = next(each.bytes for each in start.files if each.path == model.file)
        self.extra = 0

    def copy(self) -> tuple[int, Any]:
        return self.extra, self.right.copy()

    def restore(self, kept: tuple[int, Any]) -> None:
        self.extra, self.right = kept

    def change(self, kind: str) -> None:
        """A commit of that kind."""
        # What any commit does: up to 60 kB either way, and some rows won and lost.
        self.extra = max(0, self.extra + self.draw.randint(-60_000, 60_000))
        lost, won = (sum(self.draw.random() < 0.5 for _ in range(20)) for _ in range(2))
        if kind == "size":
            self.extra += round(self.bytes * self.draw.uniform(0.02, 0.1))
        if kind == "accuracy":
            lost += round(len(self.right) * self.draw.uniform(0.025, 0.06))
        self._flip(True, lost)
        self._flip(False, won)

    def write(self) -> None:
        """The bundle, with its figures and digests."""
        (model,) = self.start.models
        with (self.folder / model.file).open("r+b") as stream:
            stream.truncate(self.bytes)
            stream.seek(self.bytes)
            added = random.Random(1).randbytes(self.extra)
            stream.write(added)
        files = [
            each.model_copy(
                update={"bytes": self.bytes + self.extra, "sha256": sha256(self.folder / each.path)}
            )
            if each.path == model.file
            else each
            for each in self.start.files
        ]
        score = float(self.right.mean())
        metrics = model.proof["metrics"]
        proof = {
            **model.proof,
            "right": base64.b64encode(np.packbits(self.right).tobytes()).decode(),
            "metrics": {**metrics, "file": {**metrics["file"], "accuracy": score}},
        }
        changed = self.start.model_copy(
            update={
                "files": files,
                "models": [model.model_copy(update={"proof": proof})],
                "shipped_bytes": self.start.shipped_bytes + self.extra,
                "download_bytes": (self.start.download_bytes or 0) + deflated_bytes(added),
            }
        )
        write_manifest(changed, self.folder)

    def _flip(self, those: bool, count: int) -> None:
        rows = np.flatnonzero(self.right == those).tolist()
        self.right[self.draw.sample(rows, min(count, len(rows)))] = not those


def timed(bundle: Path, folder: Path, runs: int) -> dict[str, Any]:
    """`edgekit gate` on three bundles, in a process of its own each time."""
    home = folder / "timed"
    manifest = read_manifest(bundle)
    for target in ("one", "two", "three"):
        shutil.copytree(bundle, home / "dist" / target)
        write_manifest(manifest.model_copy(update={"target": target}), home / "dist" / target)
    (home / "edgekit.toml").write_text(RULES)
    command = [sys.executable, "-m", "edgekit", "gate"]
    subprocess.run([*command, "--update"], cwd=home, check=True, capture_output=True)
    wall, cpu = [], []
    for _ in range(runs):
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, cwd=home, check=True, capture_output=True)
        wall.append(time.perf_counter() - started)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {
        "runs": runs,
        "wall_seconds": {"least": min(wall), "median": statistics.median(wall)},
        "processor_seconds": {"least": min(cpu), "median": statistics.median(cpu)},
        "load_average": os.getloadavg()[0],
        "bytes_read": 3 * sum(path.stat().st_size for path in bundle.iterdir()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
