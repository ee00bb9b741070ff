"""Every step that makes a model smaller, recovered, beside the whole model in int8.

    python benchmarks/compression/run.py CHECKPOINT TRAIN EVAL --text text --label category \\
        --record banking77.json

Each row is `edgekit build` with these steps, in int8-dynamic, as ``benchmarks/quantization/run.py``
does it: bytes, peak memory and accuracy of the file, and its time beside that of the whole model's
int8 file, one thread, both in turns in one process. ``--only NAME`` takes some of the rows;
``--minutes`` is the longest that a row may learn (``sparse-85``: 10; recorded on one core: 9, of
``factorize-IV`` 18); ``--format``, ``--row`` and ``--no-times`` as there.

``hard_attention.json`` is of a checkpoint tuned (``../quantization/finetune.py``, 16 minutes) on
the training rows but those that ``prune-accuracy-driven`` sets aside. ``clinc150_vocabulary.json``
has rows of ``trim-vocabulary`` alone.
"""

import argparse
import runpy
import sys
from pathlib import Path

_RUN = Path(__file__).parents[1] / "quantization" / "run.py"
# By name, what --step is given; ``{minutes}`` is what --minutes says.
_RECOVERY = "distill:epochs=4,learning-rate=0.0002,max-minutes={minutes}"
ROWS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "drop-2": ("drop-layers:count=2,strategy=odd", _RECOVERY),
    "drop-3": ("drop-layers:count=3,strategy=odd", _RECOVERY),
    "half-heads-and-ffn": ("prune-heads:ratio=0.5", "prune-ffn:ratio=0.5", _RECOVERY),
    "half-heads": ("prune-heads:ratio=0.5", _RECOVERY),
    "half-ffn": ("prune-ffn:ratio=0.5", _RECOVERY),
    "neurons-96": ("prune-neurons:count=96",),
    "z-score": ("postprocess:kind=z-score",),
    "unit-length": ("postprocess:kind=unit-length",),
    "embedding-128": ("factorize-embedding:rank=128", _RECOVERY),
    "vocabulary": ("trim-vocabulary:common=4000", _RECOVERY),
    "sparse-85": (
        "trim-vocabulary:common=4000",
        "sparsify:sparsity=0.85,until=1,epochs=3,learning-rate=0.0003,max-minutes=3",
        "distill:losses=kl+hidden,keep-zeros=1,epochs=6,learning-rate=0.0003,max-minutes=7",
    ),
    "contrastive": (
        "prune-contrastive:ratio=0.5,step=0.25,epochs=2,learning-rate=0.0002,max-minutes={minutes}",
    ),
    "accuracy-driven": ("prune-accuracy-driven",),
    # Both of a checkpoint tuned without the rows set aside; recorded with 0.1 and 8 as well.
    "accuracy-driven-hard": ("prune-accuracy-driven:hard-attention=30",),
    "accuracy-driven-recovered": ("prune-accuracy-driven:tolerance=0.2", _RECOVERY),
    "tie-layers": (
        "tie-layers:groups=3",
        "distill:losses=kl+hidden,epochs=6,learning-rate=0.0003,max-minutes={minutes}",
    ),
    "half-channels": (  # of a CNN: see mnist.py
        "prune-channels:ratio=0.5,importance=taylor",
        "distill:epochs=4,batch=64,learning-rate=0.003,max-minutes={minutes}",
    ),
    "factorize-IV": (
        "factorize:method=IV,rank=192,bank=36",
        "distill:losses=kl+hidden,epochs=8,learning-rate=0.001,max-minutes={minutes}",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=ROWS, help="a row; repeatable")
    parser.add_argument("--minutes", type=float, default=9.0, help="of training, for each row")
    parser.add_argument("--record", default="results.json", help="a file beside this one")
    options, others = parser.parse_known_args()
    rows: list[str] = []
    for name in options.only or [name for name in ROWS if name != "half-channels"]:
        steps = [step.replace("{minutes}", f"{options.minutes:g}") for step in ROWS[name]]
        rows += ["--row", "int8-dynamic", *steps]
    record = f"../{Path(__file__).parent.name}/{options.record}"
    sys.argv = [str(_RUN), *others, *rows, "--record", record]
    runpy.run_path(str(_RUN), run_name="__main__")


if __name__ == "__main__":
    main()
