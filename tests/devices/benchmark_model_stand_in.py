# ruff: noqa: T201 (programs print)
"""Stands in for LiteRT's ``benchmark_model``: takes its flags and prints in its format.

It checks what the real one checks (the graph is there; a file of values has as many bytes as its
tensor), and sleeps instead of running the model: a microsecond a run for each input value.
"""

import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    flags = dict(each[2:].split("=", 1) for each in arguments)
    log = Path(os.environ["ADB_STAND_IN"]) / "benchmark-log"
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    with log.open("a") as stream:
        stream.write(f"{cores} {' '.join(arguments)}\n")
    for name in ("num_threads", "num_runs", "warmup_runs"):
        assert int(flags[name]) > 0
    size = Path(flags["graph"]).stat().st_size
    values = 0
    shapes = [[int(n) for n in each.split(",")] for each in flags["input_layer_shape"].split(":")]
    layers = flags["input_layer"].split(",")
    files = flags["input_layer_value_files"].split(",")
    for layer, shape, item in zip(layers, shapes, files, strict=True):
        name, _, file = item.replace("::", "\0").partition(":")
        assert name.replace("\0", ":") == layer
        found = Path(file).stat().st_size
        expected = 4 * shape[0] * shape[1]
        if found != expected:
            print(f"ERROR: The size of {file} is {found} bytes. It should be {expected} bytes.")
            return 1
        values += shape[0] * shape[1]
    print(
        f"""INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [{flags["num_threads"]}]
INFO: Graph: [{flags["graph"]}]
INFO: Loaded model {flags["graph"]}
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
INFO: The input model file size (MB): {size / 1e6:g}
INFO: Initialized session in 66.002ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1 curr=637079 p5=637079 median=637079 p95=637079

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=520 first=2531 curr=2793 min=1171 max=9925 avg=1.08574e+03 std=870 p5=1200 \
median={values} p95=2900

INFO: Inference timings in us: Init: 66002, First inference: 637079, Warmup (avg): 637079, \
Inference (avg): 1885.74
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only \
APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your \
discretion.
INFO: Memory footprint delta from the start of the tool (MB): init=7.40234 overall=7.83203
INFO: Overall peak memory footprint (MB) via periodic monitoring: 25.5
INFO: Memory status at the end of exeution:
INFO: - VmRSS              : 25 MB
INFO: + RssAnnon           : 18 MB
INFO: + RssFile + RssShmem : 7 MB""",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
