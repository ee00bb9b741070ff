"""What a report costs: seconds and bytes of the page about some bundles.

    python benchmarks/gate/report.py dist/linux-x86_64 dist/android-arm64 dist/torchscript-cpu

Each run is `edgekit report` in a process of its own, as a person starts it. Wall time is that of
the machine with whatever else runs on it, so the processor's seconds are recorded beside it.
Writes `report.json` beside this file, and prints it.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    found: dict[str, Any] = {
        "bundles": [Path(bundle).name for bundle in options.bundles],
        "bundle_bytes": [_bytes(Path(bundle)) for bundle in options.bundles],
        "rounds": options.rounds,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
    for kind in ("html", "markdown"):
        runs = [_run(options.bundles, kind) for _ in range(options.rounds)]
        found[kind] = {
            "bytes": runs[0][0],
            "processor_seconds": sorted(round(run[1], 2) for run in runs),
            "wall_seconds": sorted(round(run[2], 2) for run in runs),
            "load_average": os.getloadavg()[0],
        }
    text = json.dumps(found, indent=1) + "\n"
    Path(__file__).with_name("report.json").write_text(text)
    print(text)


def _bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.iterdir())


def _run(bundles: list[str], kind: str) -> tuple[int, float, float]:
    """Bytes of the report, seconds of the processor and of the wall clock."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "report")
        command = [sys.executable, "-m", "edgekit", "report", *bundles]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([*command, "--output", str(place), "--format", kind], check=True)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return place.stat().st_size, spent, wall


if __name__ == "__main__":
    main()
