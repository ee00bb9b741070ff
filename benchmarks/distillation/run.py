"""Students of a classifier beside the whole model in int8: bytes, accuracy, time.

    python benchmarks/distillation/run.py CHECKPOINT TRAIN EVAL --text text --label category \\
        --record banking77.json --only layers-3

Each row is an `edgekit build` with these steps, in int8-dynamic, as ``quantization/run.py``
does it: bytes, peak memory and accuracy of the file, and its time beside that of the whole model's
files, one thread, both in turns in one process. Rows replace those of their name in the record;
the machine and versions stay with each. ``--format`` (onnx unless given) and ``--no-times`` as
there.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

_HERE = Path(__file__).parent
_RUN = _HERE.parent / "quantization" / "run.py"
# By name, what --step is given.
ROWS: dict[str, tuple[str, ...]] = {
    "layers-3": (
        "student:layers=3",
        "distill:losses=kl+hidden,epochs=8,learning-rate=0.0002,max-minutes=13",
    ),
    "layers-2": (
        "student:layers=2",
        "distill:losses=kl+hidden,epochs=10,learning-rate=0.0002,max-minutes=13",
    ),
    "narrow-192": (
        "student:layers=4,hidden=192,ffn=512",
        "trim-vocabulary:common=3900",
        "distill:preset=tinybert,map=2-3-5-6,epochs=40,learning-rate=0.001,max-minutes=13",
    ),
    "bilstm": ("student-bilstm:epochs=25",),
    "cmow": ("student-cmow:matrix=12,embedding=128,hidden=256,epochs=25",),
    "cnn": ("student-cnn:epochs=12",),
    "ngram": ("student-ngram:epochs=25",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=ROWS, help="a row; repeatable")
    parser.add_argument("--format", action="append", help="only this; repeatable")
    parser.add_argument("--record", default="results.json", help="a file beside this one")
    options, others = parser.parse_known_args()
    for name in options.only or ROWS:
        formats = [each for form in options.format or ["onnx"] for each in ("--format", form)]
        row = ["--row", "int8-dynamic", *ROWS[name]]
        made = f"row-{name}-of-{options.record}"
        sys.argv = [str(_RUN), *others, *formats, *row, "--record", f"../{_HERE.name}/{made}"]
        runpy.run_path(str(_RUN), run_name="__main__")
        _keep(name, _HERE / made, _HERE / options.record)


def _keep(name: str, row: Path, record: Path) -> None:
    """Move a row into the record, in the order of ``ROWS``."""
    rows = json.loads(record.read_text("utf-8")) if record.is_file() else {}
    rows[name] = json.loads(row.read_text("utf-8"))
    kept = {each: rows[each] for each in ROWS if each in rows}
    record.write_text(json.dumps(kept, indent=1) + "\n")
    row.unlink()


if __name__ == "__main__":
    main()
