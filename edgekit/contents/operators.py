"""The operators of a file in its own order, each with the shapes of one inference.

What ``static`` counts and ``profile`` names layers by. Read from the file's structure; TFLite
files with free dimensions are asked of LiteRT in a process of its own (``tflite_shapes``).
"""

from pathlib import Path

from edgekit.contents import identify_format
from edgekit.contents.graph import Graph


def read_graph(path: Path, length: int | None) -> Graph | None:
    """What runs when ``path`` gets one row, of ``length`` tokens if its inputs are text.

    None for TorchScript, whose program is text. Raises ModelError for a damaged file.
    """
    format = identify_format(path)
    if format == "onnx":
        from edgekit.contents.onnx_operators import read_onnx_graph

        return read_onnx_graph(path, length)
    if format == "tflite":
        from edgekit.contents.tflite_operators import read_tflite_graph

        return read_tflite_graph(path, length)
    return None
