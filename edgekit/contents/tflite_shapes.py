"""Shapes of a TFLite file's tensors, asked of LiteRT. Run in a process of its own:

    python tflite_shapes.py FILE SHAPES.json

The JSON on standard input lists the inputs' shapes; the one written has, for each operator of
the first graph, the shapes of its outputs (none for one that only running the file could tell).
A file that makes LiteRT crash takes only this process with it.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(file: str, result: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    wanted = json.load(sys.stdin)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(file, experimental_op_resolver_type=plain)
    for detail, sizes in zip(interpreter.get_input_details(), wanted):
        interpreter.resize_tensor_input(detail["index"], sizes)
    interpreter.allocate_tensors()
    shapes = {
        detail["index"]: [int(size) for size in detail["shape"]]
        for detail in interpreter.get_tensor_details()
    }

    def shape(index: int) -> Any:
        try:
            interpreter.get_tensor(index)
        except ValueError:  # not allocated: its shape depends on values
            return None
        return shapes[index]

    operators = interpreter._get_ops_details()
    found = [[shape(int(index)) for index in each["outputs"]] for each in operators]
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
