"""Attribute a TorchScript archive: its zip entries with their headers (APPNOTE.TXT of the zip
format), each constant by the code that reads it.

A frozen program has lost the names of its weights. Where its code is a stack of the layers that
we know, which its products, norms and softmaxes tell by their order, they get names again.
"""

import re
import struct
import zipfile
from pathlib import Path

from edgekit.contents import StoredTensor
from edgekit.contents.graph import is_weight_type
from edgekit.contents.ledger import Kind, Ledger, Place, Span, settle
from edgekit.contents.places import place_of
from edgekit.contents.torchscript import opened

_HEADER = struct.Struct("<4s5H3I2H")  # of an entry: up to the lengths of its name and extra field
_CALL = re.compile(r"\b(?:torch|ops\.\w+)\.(\w+)\(|\bCONSTANTS\.(c\d+)\b")
_NORM, _PRODUCT, _SOFTMAX = "N", "L", "S"
_KINDS = {
    "layer_norm": _NORM,
    "linear": _PRODUCT,
    "linear_dynamic": _PRODUCT,
    "addmm": _PRODUCT,
    "softmax": _SOFTMAX,
    "scaled_dot_product_attention": _SOFTMAX,
}
# From one softmax to the next: attention's output and its norm, the feed-forward with its norm,
# and the next layer's query, key and value.
_BETWEEN = "LNLLNLLL"
_ATTENTION = ("query", "key", "value")


def attribute_torchscript(path: Path) -> Ledger:
    """Every byte of the archive. Raises ModelError when it is damaged."""
    ledger = Ledger()
    with opened(path) as archive:
        content = memoryview(path.read_bytes())
        stored: dict[str, StoredTensor] = {}
        for record, tensor in archive.tensors():
            stored.setdefault(record, tensor)
        places = constant_places("\n".join(archive.code()))
        firsts: dict[Place, str] = {}  # the constant that comes first at each place
        for constant, place in places.items():
            firsts.setdefault(place, constant)
        spans = []
        for entry in archive.zip.infolist():
            start, inner, end = _extent(entry, content)
            spans += _around(entry, content, start, inner)
            record = entry.filename.removeprefix(f"{archive.root}/")
            held = stored.get(record)
            if held is None:
                spans.append(Span(inner, end, *_other(record)))
                continue
            place, kind = _of(held, places, firsts)
            if ledger.repeats([content[inner:end]]):
                kind = "duplicate"
            spans.append(Span(inner, end, place, kind, held.dtype))
        directory = archive.zip.start_dir
        spans.append(Span(directory, len(content), ("metadata", "directory"), "metadata"))

        def gap(start: int, end: int) -> tuple[Place, Kind]:
            # Behind an entry lie its checksum and sizes, once more.
            known = bytes(content[start : min(end, start + 4)]) == b"PK\x07\x08"
            return (("metadata", "headers"), "metadata") if known else (("padding",), "padding")

        settle(spans, len(content), ledger, gap)
    return ledger


def _extent(entry: zipfile.ZipInfo, content: memoryview) -> tuple[int, int, int]:
    """Where an entry starts, where its bytes start, and where they end."""
    start = entry.header_offset
    names = _HEADER.unpack_from(content, start)[-2:]
    inner = start + _HEADER.size + sum(names)
    return start, inner, inner + entry.compress_size


def _around(entry: zipfile.ZipInfo, content: memoryview, start: int, inner: int) -> list[Span]:
    """An entry's header; torch fills its extra field up, so that numbers lie at 64 bytes."""
    named, extra = _HEADER.unpack_from(content, start)[-2:]
    filled = start + _HEADER.size + named
    spans = [Span(start, filled, ("metadata", "headers"), "metadata")]
    if extra:
        is_filling = bytes(content[filled : filled + 2]) == b"FB"
        kind: Kind = "padding" if is_filling else "metadata"
        spans.append(Span(filled, inner, ("padding",) if is_filling else spans[0].path, kind))
    return spans


def _other(record: str) -> tuple[Place, Kind]:
    """What a record without numbers is."""
    folder = record.partition("/")[0]
    if record.endswith(".debug_pkl"):
        return ("metadata", "debug records"), "metadata"
    if folder == "code":
        return ("graph", "code"), "graph"
    if record in ("constants.pkl", "data.pkl"):
        return ("graph", "constants' names and shapes"), "graph"
    if folder in ("constants", "data"):
        return ("padding", "not referred to"), "padding"
    return ("metadata", "properties" if folder == "extra" else "version"), "metadata"


def _of(
    tensor: StoredTensor, places: dict[str, Place], firsts: dict[Place, str]
) -> tuple[Place, Kind]:
    """Where a tensor belongs and what it is. ``CONSTANTS.c7.weight.scale``, or a module's name.

    A number a row, behind another constant of the same place, is what that is multiplied by.
    """
    quantizer = tensor.name.endswith((".scale", ".zero"))
    name = tensor.name.removesuffix(".scale").removesuffix(".zero")
    if name.startswith("CONSTANTS."):
        _, constant, *rest = name.split(".")
        place = places.get(constant, ("operators", "not read", constant))
        quantizer |= tensor.shape[-1:] == (1,) and firsts.get(place, constant) != constant
        if rest:  # packed parameters, which are one constant
            place = (*place[:-1], ".".join((place[-1].removesuffix(".weight"), *rest)))
    else:
        place = place_of(name) or ("parameters", name)
    if quantizer:
        return place, "quantization"
    if not tensor.shape or not is_weight_type(tensor.dtype):
        return ("graph", "constants"), "graph"
    return place, "weights"


def constant_places(code: str) -> dict[str, Place]:
    """Where each constant of a frozen program belongs, by the calls in its code."""
    calls = _calls(code)
    known = [(_KINDS.get(kind, ""), kind, constants) for kind, constants in calls]
    marks = "".join(mark for mark, _, constants in known if constants or mark == _SOFTMAX)
    between = marks.split(_SOFTMAX)[1:-1]
    if _SOFTMAX not in marks or any(each != _BETWEEN for each in between):
        return _by_call(calls)
    found: dict[str, Place] = {}
    layers, layer, phase = marks.count(_SOFTMAX), 0, "embeddings"
    products = 0  # since the phase began
    for mark, kind, constants in known:
        if mark == _SOFTMAX:
            layer, phase, products = layer + 1, "attention", 0
        elif mark == _PRODUCT and phase == "embeddings" and constants:
            phase = "before attention"
        for number, constant in enumerate(constants):
            leaf = ("weight", "bias")[number] if number < 2 else f"constant {number}"
            found.setdefault(constant, _placed(phase, layer, mark, kind, products, leaf))
        if mark == _PRODUCT and constants:
            products += 1
        elif mark == _NORM and phase == "attention":
            phase, products = "feed-forward", 0
        elif mark == _NORM and phase == "feed-forward":
            phase, products = ("before attention" if layer < layers else "head"), 0
    return found


def _placed(phase: str, layer: int, mark: str, kind: str, products: int, leaf: str) -> Place:
    if phase == "embeddings":
        tables = {"embedding": "words", "slice": "positions", "layer_norm": f"LayerNorm.{leaf}"}
        return "embeddings", tables.get(kind, kind)
    name = "LayerNorm" if mark == _NORM else kind
    if phase == "head":
        return "head", f"{name} {products}.{leaf}" if mark == _PRODUCT else f"{name}.{leaf}"
    if phase == "before attention":
        if mark == _PRODUCT and products < len(_ATTENTION):
            name = _ATTENTION[products]
        return "encoder", f"layer {layer}", "attention", f"{name}.{leaf}"
    if mark == _PRODUCT:
        name = "output.dense" if phase == "attention" or products else "intermediate.dense"
    elif mark == _NORM:
        name = "output.LayerNorm"
    return "encoder", f"layer {layer - 1}", phase, f"{name}.{leaf}"


def _by_call(calls: list[tuple[str, list[str]]]) -> dict[str, Place]:
    found: dict[str, Place] = {}
    for kind, constants in calls:
        for constant in constants:
            found.setdefault(constant, ("operators", kind, constant))
    return found


def _calls(code: str) -> list[tuple[str, list[str]]]:
    """The calls of a program in their order, each with the constants that it reads."""
    calls: list[tuple[str, list[str]]] = []
    for line in code.splitlines():
        for match in _CALL.finditer(line):
            if match[1]:
                calls.append((match[1], []))
            elif calls:
                calls[-1][1].append(match[2])
    return calls
