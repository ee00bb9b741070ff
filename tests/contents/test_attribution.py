"""Every byte of a file is attributed: sums to the byte, tensors recomputed by other readers."""

import io
import json
import pickle
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.contents.attribution import Attribution, attribute
from edgekit.contents.pickles import describe
from edgekit.contents.tree import rows, tree
from edgekit.contents.treemap import treemap
from edgekit.errors import ModelError
from edgekit.export.onnx import quantize_onnx_file
from tests.contents.model_files import onnx_stack, tflite_product, torchscript_product

pytestmark = pytest.mark.filterwarnings("ignore:.*torch:DeprecationWarning", "ignore:.*torch.q")


def whole(path: Path, *beside: Path) -> Attribution:
    """The attribution of a file, whose parts sum to its size."""
    found = attribute(path)
    size = sum(file.stat().st_size for file in (path, *beside))
    assert found.bytes == size == sum(part.bytes for part in found.parts)
    assert all(part.bytes > 0 and part.path for part in found.parts)
    assert sum(found.by_kind().values()) == size
    return found


def at(found: Attribution, *place: str) -> dict[str, int]:
    """Bytes by kind below a place."""
    count: Counter[str] = Counter()
    for part in found.parts:
        if part.path[: len(place)] == place:
            count[part.kind] += part.bytes
    return dict(count)


# ONNX


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8-dynamic", "int8-weights", "int4-weights"])
def test_onnx_sums_in_every_scheme(tmp_path: Path, scheme: Any) -> None:
    wide = onnx_stack(tmp_path / "wide.onnx", width=64, rows=200)
    path = quantize_onnx_file(wide, tmp_path / scheme, scheme=scheme).path
    found = whole(path)
    stored = onnx.load(path).graph.initializer
    # What onnx itself reads out of the file, but for shapes and single numbers.
    read = Counter({t.name: len(t.raw_data) for t in stored if numpy_helper.to_array(t).size > 1})
    numbers = [part for part in found.parts if part.path[0] != "graph" and part.dtype]
    assert sum(part.bytes for part in numbers) == sum(
        size for name, size in read.items() if not name.startswith("val_")
    )
    words = {n: s for n, s in read.items() if "word_embeddings" in n}
    assert sum(at(found, "embeddings", "words").values()) == sum(words.values())
    for layer in ("layer 0", "layer 1"):
        for block in ("attention", "feed-forward"):
            assert at(found, "encoder", layer, block)["weights"] > 0
    assert at(found, "head")["weights"] > 0
    assert ("quantization" in found.by_kind()) == scheme.startswith("int")


def test_a_constant_stored_again_is_called_a_duplicate(tmp_path: Path) -> None:
    path = onnx_stack(tmp_path / "a.onnx")
    model = onnx.load(path)
    query, other = model.graph.initializer[1:3]
    other.raw_data = query.raw_data
    onnx.save(model, path)
    assert at(whole(path), "encoder", "layer 0") == {"weights": 1024, "duplicate": 1024}


def test_weights_in_a_file_beside_count_with_the_gaps_between_them(tmp_path: Path) -> None:
    path = onnx_stack(tmp_path / "a.onnx")
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="a.bin", size_threshold=64
    )
    beside = tmp_path / "a.bin"
    with beside.open("ab") as stream:
        stream.write(b"\1" * 37)
    found = whole(path, beside)
    assert at(found, "encoder")["weights"] == 4 * 1024
    assert at(found, "padding")["padding"] >= 37


def test_a_file_beside_from_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    path = onnx_stack(tmp_path / "inner" / "a.onnx")
    model = onnx.load(path)
    (tmp_path / "secret").write_bytes(b"x" * 4096)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"a\.onnx"):
        attribute(path)


def test_a_constant_without_a_name_belongs_where_its_operator_does(tmp_path: Path) -> None:
    shift = numpy_helper.from_array(np.ones(16, np.float32), "val_7")
    legacy = numpy_helper.from_array(np.ones((16, 3), np.float32), "onnx::MatMul_12")
    weight = numpy_helper.from_array(np.eye(16, dtype=np.float32), "blocks.3.mlp.weight")
    added = numpy_helper.from_array(np.full(16, 2, np.float32), "val_8")
    nodes = [
        helper.make_node("MatMul", ["x", "blocks.3.mlp.weight"], ["a"]),
        helper.make_node("Add", ["a", "val_8"], ["b"]),
        helper.make_node("Gemm", ["b", "blocks.3.mlp.weight", "val_7"], ["c"]),
        helper.make_node("MatMul", ["c", "onnx::MatMul_12"], ["y"], name="/classifier/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "unnamed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [shift, legacy, weight, added],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "a.onnx")
    found = whole(tmp_path / "a.onnx")
    assert at(found, "head", "classifier.weight") == {"weights": 192}
    # val_7 is read beside the weight, and what val_8 is added to goes there.
    assert at(found, "layers", "layer 3", "feed-forward") == {"weights": 1024 + 64 + 64}


# TFLite


def test_tflite_sums_and_shares_what_is_stored_once(tmp_path: Path) -> None:
    found = whole(tflite_product(tmp_path / "a.tflite"))
    layer = at(found, "encoder", "layer 0", "feed-forward")
    assert layer == {"weights": 16 * 16 * 4 + 16 * 4}
    assert at(found, "metadata", "note") == {"metadata": len("made by hand")}


def test_buffers_behind_the_flatbuffer_count(tmp_path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = (tflite_product(tmp_path / "a.tflite")).read_bytes()
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    blob = next(b for b in model.buffers if b.data is not None and len(b.data) == 1024)
    data = bytes(blob.data)
    blob.data = None
    for offset in (2, 0):  # the size does not depend on the offset
        builder = flatbuffers.Builder(1024)
        blob.offset, blob.size = offset or len(packed) + 24, len(data)  # noqa: F821
        builder.Finish(model.Pack(builder), b"TFL3")
        packed = bytes(builder.Output())
    path = tmp_path / "b.tflite"
    path.write_bytes(packed + bytes(24) + data)
    found = whole(path)
    assert at(found, "encoder") == {"weights": 1024 + 64}
    assert at(found, "padding")["padding"] >= 24


def test_other_peoples_tflite_files_sum(shared: Path) -> None:
    files = sorted((shared / "weights" / "mlperf_tiny").glob("*.tflite"))
    assert len(files) == 6
    from ai_edge_litert import schema_py_generated as schema

    for path in files:
        found = whole(path)
        model = schema.ModelT.InitFromPackedBuf(bytearray(path.read_bytes()), 0)
        graph = model.subgraphs[0]
        scales = sum(
            tensor.quantization.scale.nbytes + tensor.quantization.zeroPoint.nbytes
            for tensor in graph.tensors
            if tensor.quantization is not None and tensor.quantization.scale is not None
        )
        assert found.by_kind().get("quantization", 0) >= scales
        used = {tensor.buffer for tensor in graph.tensors}
        held = [model.buffers[n].data for n in used if model.buffers[n].data is not None]
        counted = [p for p in found.parts if p.kind in ("weights", "duplicate")]
        constants = at(found, "graph", "constants").get("graph", 0)
        assert sum(p.bytes for p in counted) + constants == sum(map(len, held))
        # Biases have the names of whatever was fused into them, and lie with their filters.
        assert not [p.path for p in counted if p.path[0] == "operators"]


# TorchScript


@pytest.mark.parametrize("quantized", [False, True])
def test_torchscript_sums(tmp_path: Path, quantized: bool) -> None:
    path = torchscript_product(tmp_path / "a.pt", quantized)
    found = whole(path)
    kinds = found.by_kind()
    with zipfile.ZipFile(path) as archive:
        code = sum(e.compress_size for e in archive.infolist() if e.filename.endswith(".py"))
    assert at(found, "graph", "code") == {"graph": code}
    assert kinds["weights"] == 16 * 12 * (1 if quantized else 4) + 12 * 4
    assert kinds["padding"] > 0 and kinds["metadata"] > 0


@pytest.mark.slow
def test_a_frozen_stack_has_its_layers_named_again(tmp_path: Path) -> None:
    from edgekit.export.torchscript import export_torchscript
    from edgekit.model import identify, load_model
    from tests.tiny import tiny_checkpoint

    model = load_model(identify(str(tiny_checkpoint(tmp_path / "bert"))))
    sizes = {name: p.numel() * 4 for name, p in model.module.named_parameters()}

    def of(*marks: str) -> int:
        return sum(size for name, size in sizes.items() if any(mark in name for mark in marks))

    for scheme in ("fp32", "int8-dynamic"):
        path = export_torchscript(model, tmp_path / scheme, scheme=scheme).path  # type: ignore[arg-type]
        found = whole(path)
        if scheme == "int8-dynamic":
            assert at(found, "encoder", "layer 0", "attention")["quantization"] > 0
            continue
        for layer in (0, 1):
            attention = at(found, "encoder", f"layer {layer}", "attention")
            assert sum(attention.values()) == of(f"layer.{layer}.attention")
            inner = at(found, "encoder", f"layer {layer}", "feed-forward")
            assert sum(inner.values()) == of(f"layer.{layer}.intermediate", f"layer.{layer}.output")
        assert sum(at(found, "head").values()) == of("classifier", "pooler")


# Damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sound")
    made = (
        onnx_stack(folder / "a.onnx", width=4, rows=4),
        tflite_product(folder / "a.tflite", width=4),
        torchscript_product(folder / "a.pt", quantized=True),
    )
    return {path.suffix: path.read_bytes() for path in made}


@st.composite
def _edits(draw: st.DrawFn) -> list[tuple[str, float, bytes]]:
    words = st.sampled_from([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\x80"])
    some = st.one_of(st.binary(min_size=1, max_size=4), words)
    kinds = st.sampled_from(["write", "cut", "insert", "drop"])
    one = st.tuples(kinds, st.floats(0, 1, exclude_max=True), some)
    return draw(st.lists(one, min_size=1, max_size=4))


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".pt"])
@given(edits=_edits())
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_is_damaged_is_refused_or_sums(
    sound: dict[str, bytes],
    tmp_path: Path,
    suffix: str,
    edits: list[tuple[str, float, bytes]],
) -> None:
    content = bytearray(sound[suffix])
    for kind, share, data in edits:
        place = int(share * len(content))
        if kind == "write":
            content[place : place + len(data)] = data
        elif kind == "insert":
            content[place:place] = data
        elif kind == "cut":
            del content[max(place, 1) :]
        else:
            del content[place : place + len(data)]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    started, said, parts = time.process_time(), "", [len(content)]
    try:
        parts = [part.bytes for part in attribute(path).parts]
    except ModelError as error:
        said = str(error)
    assert sum(parts) == len(content)
    assert "\n" not in said and (not said or path.name in said)
    assert time.process_time() - started < 20


def test_graphs_inside_graphs_without_end_are_refused(tmp_path: Path) -> None:
    inner = b""
    for _ in range(3000):  # graph → node → attribute → graph
        for tag in (0x32, 0x2A, 0x0A):
            size = len(inner)
            length = bytearray()
            while size >= 128:
                length.append(size & 127 | 128)
                size >>= 7
            inner = bytes([tag]) + bytes([*length, size]) + inner
    (tmp_path / "deep.onnx").write_bytes(b"\x08\x09" + inner)
    with pytest.raises(ModelError, match=r"deep\.onnx"):
        attribute(tmp_path / "deep.onnx")


def test_a_pickle_that_repeats_itself_without_end_is_read_in_no_time(tmp_path: Path) -> None:
    sound = torchscript_product(tmp_path / "a.pt")
    bomb = b"\x80\x02)" + b"q\x00h\x00\x86" * 64 + b"."  # 2^64 empty tuples
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(sound) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = bomb if name.endswith("/constants.pkl") else source.read(name)
            target.writestr(name, content)
    started = time.process_time()
    whole(path)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02h\x07.",
        b"\x80\x02t.",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00lsi.",
    ],
)
def test_a_pickle_that_makes_no_sense_is_no_value(content: bytes) -> None:
    with pytest.raises((ValueError, LookupError)):
        describe(content)


def test_a_pickle_is_described_as_it_is_loaded() -> None:
    value = {"a": (1, 2.5, None, True), "b": ["x", ("y", "z", "w", "v")], "c": -(2**40)}
    for protocol in (2, 4):
        pairs = describe(pickle.dumps(value, protocol)).items
        assert dict(pairs) == value


@pytest.mark.parametrize(
    "name", ["a." * 3000, "convConstant" * 20000, "layer ² / x", "layer " + "9" * 5000, ";" * 9000]
)
def test_names_made_to_keep_us_busy_do_not(tmp_path: Path, name: str) -> None:
    path = onnx_stack(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.initializer[1].name = model.graph.node[1].input[1] = name
    onnx.save(model, path)
    started = time.process_time()
    found = whole(path)
    assert len(treemap(found)) and rows(tree(found), 3, 12, 1)
    assert time.process_time() - started < 5


def test_attributions_are_json(tmp_path: Path) -> None:
    found = attribute(onnx_stack(tmp_path / "a.onnx"))
    again = json.load(io.StringIO(json.dumps(found.to_json())))
    assert sum(part["bytes"] for part in again["parts"]) == again["bytes"]
