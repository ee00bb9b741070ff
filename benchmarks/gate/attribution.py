"""Attribute every byte of model files, and write the sums beside this script.

    python benchmarks/gate/attribution.py FILE…

Each file's parts must sum to its size exactly; the script fails on the first that does not. A
name is kept as it was given, so give paths that say what the files are.
"""

import json
import sys
import time
from pathlib import Path

from edgekit.contents.attribution import attribute

RESULT = Path(__file__).with_name("attribution.json")


def measure(path: Path) -> dict[str, object]:
    started = time.process_time()
    found = attribute(path)
    seconds = time.process_time() - started
    total = sum(part.bytes for part in found.parts)
    assert total == found.bytes == path.stat().st_size, path
    unplaced = sum(part.bytes for part in found.parts if part.path[0] == "operators")
    return {
        "format": found.format,
        "bytes": found.bytes,
        "sum": total,
        "parts": len(found.parts),
        "by_kind": found.by_kind(),
        "by_dtype": found.by_dtype(),
        "placed_by_operator_kind_only": unplaced,
        "cpu_seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    figures = {}
    for name in sys.argv[1:]:
        path = Path(name)
        figures["/".join(path.parts[-3:])] = measure(path)
        print(name, figures["/".join(path.parts[-3:])])
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
