"""TFLite files as ``edgekit inspect`` reads them: checked against LiteRT, and safe on damage."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.contents import read_contents
from edgekit.contents.tflite import read_tflite
from edgekit.errors import ModelError


@pytest.fixture(scope="module")
def folder(shared: Path) -> Path:
    return shared / "weights" / "mlperf_tiny"


FILES = [
    "kws_ref_model.tflite",
    "kws_ref_model_float32.tflite",
    "pretrainedResnet.tflite",
    "pretrainedResnet_quant.tflite",
    "vww_96_float.tflite",
    "vww_96_int8.tflite",
]


@pytest.mark.parametrize("name", FILES)
def test_inputs_outputs_and_operators_are_those_that_litert_sees(folder: Path, name: str) -> None:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    contents = read_contents(folder / name)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(folder / name), experimental_op_resolver_type=plain)
    ends = interpreter.get_input_details(), interpreter.get_output_details()
    for ours, theirs in zip((contents.inputs, contents.outputs), ends, strict=True):
        assert [tensor.name for tensor in ours] == [detail["name"] for detail in theirs]
        assert [tensor.dtype for tensor in ours] == [np.dtype(d["dtype"]).name for d in theirs]
        for tensor, detail in zip(ours, theirs, strict=True):
            assert tensor.shape == ("batch", *detail["shape"][1:].tolist())
    operators = [detail["op_name"] for detail in interpreter._get_ops_details()]
    assert sum(contents.ops.values()) == len(operators)
    assert set(contents.ops) == set(operators)
    assert contents.bytes == (folder / name).stat().st_size
    assert contents.format == "tflite"


def test_bytes_per_dtype_tell_float_from_int8(folder: Path) -> None:
    def share(name: str, dtype: str) -> float:
        counted = read_contents(folder / name).bytes_per_dtype()
        return counted.get(dtype, 0) / sum(counted.values())

    assert share("vww_96_float.tflite", "float32") > 0.99
    assert share("vww_96_int8.tflite", "int8") > 0.9
    # It is called float32, and its weights are int8.
    assert share("kws_ref_model_float32.tflite", "int8") > 0.5


def test_constants_add_up_to_nearly_the_whole_file(folder: Path) -> None:
    contents = read_contents(folder / "vww_96_float.tflite")
    stored = sum(tensor.bytes for tensor in contents.tensors)
    assert 0.95 * contents.bytes < stored < contents.bytes
    largest = max(contents.tensors, key=lambda tensor: tensor.bytes)
    assert (largest.shape, largest.dtype, largest.bytes) == ((256, 1, 1, 256), "float32", 262144)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.tflite").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(ModelError, match=r"photo\.tflite"):
        read_contents(tmp_path / "photo.tflite")
    with pytest.raises(ModelError, match="missing"):
        read_tflite(tmp_path / "missing.tflite")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_refused(folder: Path, keep: float, tmp_path: Path) -> None:
    whole = (folder / "kws_ref_model.tflite").read_bytes()
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ModelError, match="damaged or cut short"):
        read_contents(cut)


@pytest.mark.slow
@given(place=st.floats(0, 1), value=st.binary(min_size=1, max_size=8))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_anywhere_is_read_or_refused_but_never_worse(
    folder: Path, tmp_path: Path, place: float, value: bytes
) -> None:
    content = bytearray((folder / "kws_ref_model.tflite").read_bytes())
    # Tables are dense at both ends of the file; weights are between them.
    spot = int(place * 12000) - 6000
    content[spot : spot + len(value)] = value
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(content)
    refusal = ""
    try:
        read_contents(damaged)
    except ModelError as error:
        refusal = str(error)
    assert "\n" not in refusal


def test_a_small_file_that_claims_to_be_endless_is_refused_at_once(tmp_path: Path) -> None:
    """Ten thousand graphs that are all the same table, each of ten thousand same tensors."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    builder = flatbuffers.Builder(1024)

    def vector(item: int) -> int:
        builder.StartVector(4, 10_000, 4)
        for _ in range(10_000):
            builder.PrependUOffsetTRelative(item)
        return builder.EndVector()

    schema.TensorStart(builder)
    tensors = vector(schema.TensorEnd(builder))
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graphs = vector(schema.SubGraphEnd(builder))
    schema.BufferStart(builder)
    empty = schema.BufferEnd(builder)
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(empty)
    buffers = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddVersion(builder, 3)
    schema.ModelAddSubgraphs(builder, graphs)
    schema.ModelAddBuffers(builder, buffers)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    bomb = tmp_path / "bomb.tflite"
    bomb.write_bytes(builder.Output())
    assert bomb.stat().st_size < 100_000
    with pytest.raises(ModelError, match="damaged"):
        read_contents(bomb)
