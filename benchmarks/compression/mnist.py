"""Half the channels of a small CNN on MNIST, in int8 TFLite, beside the whole network.

    python benchmarks/compression/mnist.py train.npz test.npz --record mnist.json

Trains the ResNet of ``benchmarks/quantization/mnist.py`` as it is done there, and is then
``run.py`` with that checkpoint. Other options are ``run.py``'s. ``--width 32`` gives each stage
twice the channels: the network of 16 is done in 14 microseconds, of which a call by itself, which
does not get smaller, is several.
"""

import argparse
import runpy
import sys
import tempfile
from pathlib import Path

import torch

_HERE = Path(__file__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    options, others = parser.parse_known_args()
    network = runpy.run_path(str(_HERE.parents[1] / "quantization" / "mnist.py"))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "mnist-resnet"
        rows_of = network["rows_of"]
        network["train"](checkpoint, rows_of(options.train, 30_000), 2, options.width)
        rows = ["--only", "whole", "--only", "half-channels", "--format", "tflite"]
        data = [str(checkpoint), str(options.train), str(options.test)]
        sys.argv = [str(_HERE.with_name("run.py")), *data, *rows, *others]
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
