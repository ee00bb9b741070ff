"""Where in a model a weight is, read off its name.

Names are those of torch modules (``bert.encoder.layer.3.attention.self.query.weight``), with what
our writers put behind them (``.int8``, ``.scale``), or those of other converters
(``model/conv2d_3/Conv2D``), several of them in a row where operators were fused
(``model/bn/Fused;model/conv2d/Conv2D``).
"""

import re

# What exporters append to the name of a weight that they change.
_WRITTEN = r"int8|scale|zero|float32|unscaled|columns|transposed|rows|filter|block"
_SUFFIX = re.compile(rf"(\.({_WRITTEN}|weight|bias))+$")
_STORED_AS = re.compile(rf"(\.({_WRITTEN}))+$")
_LAYER = re.compile(r"(?:^|[._])(?:layers?|h|blocks?)\.(\d+)\.(.+)")
_KERAS_LAYER = re.compile(r"\blayer_\._(\d+)")
_INNER = re.compile(r"intermediate|output|ffn|\bff\b|mlp|bottleneck|lin\d|layer_?norm", re.I)
_ATTENTION = re.compile(r"att(entio)?n|sa_layer_norm", re.I)
_HEAD = re.compile(r"classifier|pooler|logits_proj|sequence_summary|score\b")
_ATTENTION_ITSELF = re.compile(r"^(self_?)?(\w*att(entio)?n)\.((self|attention)\.)?", re.I)
# Names that say nothing: made up by a converter for what had none, or numbered.
_MADE_UP = re.compile(
    r"\w+\.input_\d+(\.\w+)*|val_?\d+|const\w*_?\d*|\w*Constant\w*|arith\.constant\d*"
    r"|tfl\.\w+|onnx::.*|\d+|lifted_tensor_\d+|_?tensor_constant\d*|sparse\.\w+(\.\w+)?",
    re.I,
)
# In names of fused operators: the one that reads a filter or a matrix.
_READS_WEIGHTS = re.compile(r"(conv\w*|depthwise|matmul|tensordot|dense|fully_connected)$", re.I)
_TABLES = {"word": "words", "position": "positions", "token_type": "types"}


def layer_of(weight: str) -> str:
    """``embeddings``, ``layer 3 attention``, ``layer 3 feed-forward``, ``head``; else the part of
    the model that the weight's name says."""
    name = _SUFFIX.sub("", weight.split(";")[0])
    layer = _LAYER.search(name + ".")
    if layer and _ATTENTION.search(layer[2]):
        return f"layer {layer[1]} attention"
    if layer and _INNER.search(layer[2]):
        return f"layer {layer[1]} feed-forward"
    if "embedding" in name or name.endswith("positions"):
        return "embeddings"
    return "head" if _HEAD.search(name) else name


def place_of(weight: str) -> tuple[str, ...]:
    """From the outside in: ``encoder``, ``layer 3``, ``attention``, ``query.weight``; or
    ``embeddings``, ``words``; or the parts of the name. Empty when the name says nothing."""
    name = _STORED_AS.sub("", _weight_name(weight)).strip("/.")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    if not name or _MADE_UP.fullmatch(name):
        return ()
    dotted = _KERAS_LAYER.sub(r"layer.\1", name).replace("/", ".")
    layer = _LAYER.search(dotted)
    inside = layer[2] if layer else ""
    if layer and (_ATTENTION.search(inside) or _INNER.search(inside)):
        around = [part for part in dotted[: layer.start()].split(".") if part]
        stack = around[-1] if around else "layers"
        if _ATTENTION.search(inside):
            return stack, f"layer {layer[1]}", "attention", _ATTENTION_ITSELF.sub("", inside)
        return stack, f"layer {layer[1]}", "feed-forward", inside
    if "embedding" in name or name.endswith("positions"):
        return "embeddings", _table(name)
    head = _HEAD.search(name)
    return ("head", name[head.start() :]) if head else _parts(name)


def is_fused(name: str) -> bool:
    """Whether a name is that of several operators in one, the first of which says little."""
    return ";" in name


def _weight_name(weight: str) -> str:
    names = weight.split(";")
    return next((name for name in names if _READS_WEIGHTS.search(name)), names[0])


def _table(name: str) -> str:
    for mark, called in _TABLES.items():
        if f"{mark}_embedding" in name:
            return called
    if name.endswith("positions"):
        return "positions"
    inside = re.split(r"(?:^|[._])embeddings?\.", name, maxsplit=1)[-1]
    return inside or "words"


def _parts(name: str) -> tuple[str, ...]:
    """By the dots or slashes; a number goes with the word before it, a parameter with its layer."""
    found: list[str] = []
    words = [word for word in re.split(r"/" if "/" in name else r"\.", name) if word]
    for place, word in enumerate(words):
        if found and word.isdigit():
            found[-1] += f" {word}"
        elif len(found) > 1 and place == len(words) - 1 and word in ("weight", "bias"):
            found[-1] += f".{word}"
        else:
            found.append(word)
    return tuple(found)
