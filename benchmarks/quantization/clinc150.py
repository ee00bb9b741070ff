"""CLINC150's rows as CSV files: its 150 intents, without those that are out of scope.

    python benchmarks/quantization/clinc150.py data_full.json FOLDER

``data_full.json`` is that of Larson et al. 2019 (clinc/oos-eval, CC BY 3.0). Writes ``train.csv``
(15,000 rows) and ``test.csv`` (4,500), with the columns ``text`` and ``intent``.
"""

import argparse
import csv
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    splits = json.loads(options.json.read_text("utf-8"))
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        with (options.folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(("text", "intent"))
            writer.writerows(splits[name])


if __name__ == "__main__":
    main()
