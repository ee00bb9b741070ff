"""TFLite files, read and run by LiteRT itself, against the torch model that they were made of."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import ExportError, ModelError
from edgekit.export import export_artifact
from edgekit.export.tflite import export_tflite, quantize_tflite_file
from edgekit.model import Model, identify, load_model, reference_outputs
from edgekit.plan.predict import predicted_bytes
from edgekit.preprocess import Encoded
from tests.export.cases import layers_of
from tests.old_runtimes import python_with
from tests.tiny import tiny_checkpoint, tiny_texts

BUCKETS = (8, 16, 32)

# The newest version of each operator that tflite-runtime 2.14.0 has a kernel for, asked of the
# runtime itself, for the operators that our graphs have.
KNOWN_TO_2_14 = {
    "ADD": 5, "AVERAGE_POOL_2D": 3, "BATCH_MATMUL": 4, "BROADCAST_TO": 3, "CAST": 5,
    "CONCATENATION": 4, "CONV_2D": 7, "CUMSUM": 1, "DEPTHWISE_CONV_2D": 7, "DEQUANTIZE": 5,
    "DIV": 2, "EMBEDDING_LOOKUP": 3, "EXP": 2, "FULLY_CONNECTED": 10, "GATHER": 6,
    "GATHER_ND": 4, "GELU": 2, "HARD_SWISH": 1, "LOGISTIC": 3, "MAXIMUM": 4, "MAX_POOL_2D": 3,
    "MEAN": 3, "MINIMUM": 4, "MUL": 7, "NEG": 1, "PAD": 4, "PADV2": 4, "RELU": 3, "RELU6": 3,
    "RESHAPE": 1, "ROUND": 1, "RSQRT": 2, "SELECT_V2": 2, "SIN": 1, "SLICE": 6, "SOFTMAX": 3,
    "SQRT": 1, "SQUARED_DIFFERENCE": 2, "SQUEEZE": 2, "STRIDED_SLICE": 8, "SUB": 5, "SUM": 2,
    "TANH": 3, "TILE": 3, "TRANSPOSE": 6,
}  # fmt: skip


def make(folder: Path, family: str, task: str = "text-classification", **config: Any) -> Model:
    checkpoint = tiny_checkpoint(folder, family, task, layers=layers_of(family), **config)
    return load_model(identify(str(checkpoint)))


def encoded(model: Model, count: int = 10, longest: int = 10) -> Encoded:
    return model.preprocessor.encode(Rows(texts=tuple(tiny_texts(count, longest=longest))))


def run_all(path: Path, rows: Encoded, names: tuple[str, ...], pad: int = 0) -> list[np.ndarray]:
    """The file's answer to each row, in the smallest signature that holds it."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    runners: dict[int, Any] = {}
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        runners[int(runner.get_input_details()[names[0]]["shape_signature"][1])] = runner
    answers = []
    for number, length in enumerate(rows.lengths):
        width = next((w for w in sorted(runners) if w >= length), -1)
        feed = {}
        for name in names:
            feed[name] = np.zeros((1, length + pad if width < 0 else width), np.int32)
            feed[name][0, :length] = rows.arrays[name][number, :length]
        answers.append(next(iter(runners[width](**feed).values()))[0])
    return answers


def raw_model(path: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)


def operator_versions(path: Path) -> dict[str, int]:
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    return {names[code.builtinCode]: code.version for code in raw_model(path).operatorCodes}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="module")
def any_float(bert: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("any")
    return export_tflite(bert, folder, scheme="fp32", any_length=True)


@pytest.fixture(scope="module")
def buckets_int8(bert: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("buckets")
    return export_tflite(bert, folder, scheme="int8-dynamic", lengths=BUCKETS)


@pytest.fixture(scope="module")
def bucket_half(bert: Model, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_tflite(bert, tmp_path_factory.mktemp("half"), scheme="fp16", lengths=[24])


each_file = pytest.mark.parametrize(
    "name",
    [
        "any_float",
        pytest.param("buckets_int8", marks=pytest.mark.slow),
        pytest.param("bucket_half", marks=pytest.mark.slow),
    ],
)


@pytest.mark.slow
def test_one_signature_answers_like_torch_at_any_length(bert: Model, any_float: Artifact) -> None:
    rows = encoded(bert, 12)
    assert any_float.lengths == ()
    assert len(set(rows.lengths.tolist())) > 4
    expected = reference_outputs(bert, rows)
    for pad in (0, 5):
        found = run_all(any_float.path, rows, bert.inputs, pad)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_any_length_goes_as_far_as_the_models_positions(bert: Model, any_float: Artifact) -> None:
    text = " ".join(["account"] * 200)
    rows = bert.preprocessor.encode(Rows(texts=(text,)))
    assert rows.lengths[0] == bert.preprocessor.max_length
    found = run_all(any_float.path, rows, bert.inputs)
    np.testing.assert_allclose(found, reference_outputs(bert, rows), atol=1e-4)


@pytest.mark.slow
def test_inputs_and_outputs_are_named_and_described(
    any_float: Artifact, buckets_int8: Artifact, bucket_half: Artifact
) -> None:
    for artifact, length in ((any_float, "length"), (buckets_int8, "length"), (bucket_half, 24)):
        assert [vars(tensor) for tensor in artifact.inputs] == [
            {"name": name, "dtype": "int32", "shape": (1, length)}
            for name in ("input_ids", "attention_mask")
        ]
        assert vars(artifact.outputs[0]) == {"name": "logits", "dtype": "float32", "shape": (1, 3)}
        assert artifact.path.name == "model.tflite"
    assert buckets_int8.lengths == BUCKETS
    assert bucket_half.lengths == (24,)


@pytest.mark.slow
def test_every_bucket_answers_like_torch_in_int8(bert: Model, buckets_int8: Artifact) -> None:
    rows = encoded(bert, 24)
    expected = reference_outputs(bert, rows)
    found = np.array(run_all(buckets_int8.path, rows, bert.inputs))
    used = {next(bucket for bucket in BUCKETS if bucket >= n) for n in rows.lengths}
    assert used == set(BUCKETS)
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.9
    cosine = (found * expected).sum(1)
    cosine /= np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.98


@pytest.mark.slow
def test_half_precision_answers_like_torch(bert: Model, bucket_half: Artifact) -> None:
    rows = encoded(bert)
    found = run_all(bucket_half.path, rows, bert.inputs)
    np.testing.assert_allclose(found, reference_outputs(bert, rows), atol=2e-2)


@pytest.mark.slow
def test_signatures_share_every_weight(buckets_int8: Artifact) -> None:
    model = raw_model(buckets_int8.path)
    large = [
        n
        for n, buffer in enumerate(model.buffers)
        if buffer.data is not None and len(buffer.data) > 256
    ]
    assert large
    for number in large:
        for subgraph in model.subgraphs:
            assert any(tensor.buffer == number for tensor in subgraph.tensors)
    contents = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None]
    assert len(contents) == len(set(contents))


@pytest.mark.slow
def test_int8_weights_are_the_grids(bert: Model, buckets_int8: Artifact) -> None:
    from edgekit.steps.quantize.grid import quantize_int8

    model = raw_model(buckets_int8.path)
    stored = {
        tensor.name.decode(): model.buffers[tensor.buffer].data.view(np.int8).reshape(tensor.shape)
        for tensor in model.subgraphs[0].tensors
        if tensor.type == 9
    }
    weights = {
        name: parameter.detach().numpy()
        for name, parameter in bert.module.named_parameters()
        if parameter.ndim == 2 and "position" not in name and "token_type" not in name
    }
    assert set(stored) == set(weights)
    for name, weight in weights.items():
        assert (stored[name] == quantize_int8(weight)[0]).all()


@pytest.mark.slow
def test_half_precision_stores_no_float32_weight(bucket_half: Artifact) -> None:
    model = raw_model(bucket_half.path)
    kept = [
        model.buffers[tensor.buffer].data
        for tensor in model.subgraphs[0].tensors
        if tensor.type == 0 and model.buffers[tensor.buffer].data is not None
    ]
    # Single numbers stay: epsilon, the masked score, 1 / sqrt(width).
    assert kept
    assert all(len(data) == 4 for data in kept)


@each_file
def test_files_promise_what_an_old_runtime_can_keep(
    name: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name).path
    for operator, version in operator_versions(path).items():
        assert version <= KNOWN_TO_2_14[operator], operator


@each_file
def test_buffers_are_aligned_and_nothing_of_this_machine_is_inside(
    name: str, request: pytest.FixtureRequest
) -> None:
    from ai_edge_litert import schema_py_generated as schema

    content = request.getfixturevalue(name).path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    for number in range(1, model.BuffersLength()):
        buffer = model.Buffers(number)
        field = buffer._tab.Offset(4)
        assert buffer._tab.Vector(field) % 16 == 0
    for trace in (b"edgekit.", b"/tmp", b"site-packages", b"torch", str(Path.cwd()).encode()):
        assert trace not in content


@pytest.mark.slow
def test_exporting_again_gives_the_same_bytes_and_prints_nothing(
    bert: Model, bucket_half: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = export_tflite(bert, tmp_path, scheme="fp16", lengths=[24])
    assert again.path.read_bytes() == bucket_half.path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_length_beyond_the_positions_is_refused(bert: Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="beyond the 64 positions"):
        export_tflite(bert, tmp_path, scheme="fp32", lengths=[8, 65])
    assert not list(tmp_path.iterdir())


def test_a_module_that_cannot_be_converted_is_refused_in_one_sentence(tmp_path: Path) -> None:
    import torch

    class Sorts(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.qr(x)[0]

    with pytest.raises(ExportError, match="--format onnx") as refusal:
        export_tflite(plain(Sorts(), torch.zeros(1, 4, 4)), tmp_path, scheme="fp32")
    assert "\n" not in str(refusal.value)


def plain(module: Any, example: Any) -> Model:
    return Model(module.eval(), "module", None, None, None, (), example={"x": example})


@pytest.mark.slow
def test_operators_broken_up_twice_give_the_same_file(
    bert: Model, any_float: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As litert-torch does it by itself: half of the work is left out, and nothing of the file."""
    from edgekit.export import tflite_convert

    monkeypatch.setattr(tflite_convert, "_LAID_OUT", ("aten.",))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    twice = export_tflite(bert, tmp_path / "out", scheme="fp32", any_length=True)
    assert twice.path.read_bytes() == any_float.path.read_bytes()


@pytest.mark.slow
def test_a_plain_module_is_exported_with_its_examples_shape(tmp_path: Path) -> None:
    import torch
    from ai_edge_litert.interpreter import Interpreter

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5)
    )
    example = torch.randn(1, 3, 8, 8)
    artifact = export_tflite(plain(module, example), tmp_path, scheme="int8-dynamic")
    assert artifact.inputs[0].shape == (1, 3, 8, 8)
    runner = Interpreter(str(artifact.path)).get_signature_runner()
    (found,) = runner(x=example.numpy()).values()
    expected = module(example).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    kinds = {tensor.type for tensor in raw_model(artifact.path).subgraphs[0].tensors}
    assert 9 in kinds


# Other families and tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("albert", "sentence-embedding"),
        ("mobilebert", "text-classification"),
        ("mpnet", "text-classification"),
        ("roberta", "text-classification"),
        ("xlnet", "text-classification"),
        ("bert", "token-classification"),
    ],
)
def test_every_family_answers_like_torch(family: str, task: str, tmp_path: Path) -> None:
    model = make(tmp_path / "model", family, task)
    rows = encoded(model)
    expected = reference_outputs(model, rows)
    artifact = export_tflite(model, tmp_path, scheme="fp32", lengths=[16, 24, 48], any_length=True)
    # Relative positions, and MobileBERT's neighbours, need fixed lengths.
    assert bool(artifact.lengths) == (family in ("mobilebert", "mpnet", "xlnet"))
    for found, wanted, length in zip(
        run_all(artifact.path, rows, model.inputs), expected, rows.lengths, strict=True
    ):
        if task == "token-classification":
            found, wanted = found[:length], wanted[:length]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    for operator, version in operator_versions(artifact.path).items():
        assert version <= KNOWN_TO_2_14[operator], operator


@pytest.mark.slow
def test_graphs_that_teach_nothing_are_converted_one_by_one(
    bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.export.tflite_lengths import CannotLearnError

    def refuse(*graphs: Any) -> None:
        raise CannotLearnError("nothing")

    for teacher in ("read_lengths", "learn_lengths"):
        monkeypatch.setattr(f"edgekit.export.tflite.{teacher}", refuse)
    artifact = export_tflite(
        bert, tmp_path, scheme="int8-dynamic", lengths=BUCKETS, any_length=True
    )
    assert artifact.lengths == BUCKETS
    rows = encoded(bert)
    found = run_all(artifact.path, rows, bert.inputs)
    np.testing.assert_allclose(found, reference_outputs(bert, rows), atol=0.25)
    contents = [bytes(b.data) for b in raw_model(artifact.path).buffers if b.data is not None]
    assert len(contents) == len(set(contents))


# Float files of others


@pytest.fixture(scope="module")
def keras_float(shared: Path) -> Path:
    return shared / "weights" / "mlperf_tiny" / "vww_96_float.tflite"


def answers(path: Path, count: int = 5) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    source = np.random.default_rng(0)
    found = []
    for _ in range(count):
        interpreter.set_tensor(
            taken["index"], source.uniform(size=taken["shape"]).astype(np.float32)
        )
        interpreter.invoke()
        found.append(interpreter.get_tensor(given["index"])[0])
    return np.array(found)


@pytest.mark.parametrize(("scheme", "share"), [("int8-dynamic", 0.35), ("fp16", 0.55)])
def test_a_float_file_shrinks_and_answers_the_same(
    keras_float: Path, scheme: Any, share: float, tmp_path: Path
) -> None:
    artifact = quantize_tflite_file(keras_float, tmp_path, scheme=scheme)
    assert artifact.bytes < share * keras_float.stat().st_size
    np.testing.assert_allclose(answers(artifact.path), answers(keras_float), atol=0.02)


@pytest.mark.slow
def test_quantized_files_are_refused(
    shared: Path, bucket_half: Artifact, buckets_int8: Artifact, tmp_path: Path
) -> None:
    quantized = shared / "weights" / "mlperf_tiny" / "vww_96_int8.tflite"
    for source in (quantized, buckets_int8.path):
        with pytest.raises(ModelError, match="quantized already"):
            quantize_tflite_file(source, tmp_path, scheme="int8-dynamic")
    with pytest.raises(ModelError, match="half precision"):
        quantize_tflite_file(bucket_half.path, tmp_path, scheme="fp16")
    assert not list(tmp_path.iterdir())


# The oldest runtime that targets promise


OLDEST = "tflite-runtime==2.14.0"
_ASK = """
import sys, numpy as np
from tflite_runtime.interpreter import Interpreter
interpreter = Interpreter(sys.argv[1], num_threads=1)
rows = np.load(sys.argv[2])
answers = []
for number, length in enumerate(rows["lengths"]):
    runners = {}
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        runners[int(runner.get_input_details()["input_ids"]["shape_signature"][1])] = runner
    width = next((w for w in sorted(runners) if w >= length), -1)
    feed = {}
    for name in ("input_ids", "attention_mask"):
        feed[name] = np.zeros((1, length if width < 0 else width), np.int32)
        feed[name][0, :length] = rows[name][number, :length]
    answers.append(next(iter(runners[width](**feed).values()))[0])
np.save(sys.argv[3], answers)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "any_length"), [("fp32", True), ("fp16", False), ("int8-dynamic", False)]
)
def test_the_oldest_runtime_answers_like_torch(
    scheme: Any, any_length: bool, bert: Model, tmp_path: Path
) -> None:
    rows = encoded(bert, 24)
    np.savez(tmp_path / "rows.npz", lengths=rows.lengths, **rows.arrays)
    artifact = export_tflite(bert, tmp_path, scheme=scheme, lengths=BUCKETS, any_length=any_length)
    command = [python_with(OLDEST), "-c", _ASK, artifact.path, "rows.npz", "answers.npy"]
    subprocess.run(list(map(str, command)), cwd=tmp_path, check=True, capture_output=True)
    found, expected = np.load(tmp_path / "answers.npy"), reference_outputs(bert, rows)
    tolerance = {"fp32": 1e-4, "fp16": 2e-2, "int8-dynamic": 0.25}[scheme]
    np.testing.assert_allclose(found, expected, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8-weights", "int4-weights"])
def test_the_oldest_runtime_answers_as_ours_in_fewer_bits(scheme: Any, tmp_path: Path) -> None:
    """Of a model that is wide enough for 4 bits, which random weights do not survive."""
    model = make(tmp_path / "model", "bert", hidden_size=64, intermediate_size=96)
    rows = encoded(model, 24)
    np.savez(tmp_path / "rows.npz", lengths=rows.lengths, **rows.arrays)
    artifact = export_tflite(model, tmp_path, scheme=scheme, any_length=True)
    command = [python_with(OLDEST), "-c", _ASK, artifact.path, "rows.npz", "answers.npy"]
    subprocess.run(list(map(str, command)), cwd=tmp_path, check=True, capture_output=True)
    found = np.load(tmp_path / "answers.npy")
    expected = np.array(run_all(artifact.path, rows, model.inputs))
    assert np.sqrt(((found - expected) ** 2).mean()) < 0.1 * expected.std()


@pytest.mark.slow
def test_large_filters_are_integers_too(tmp_path: Path) -> None:
    """Above a megabyte the converter leaves a filter to be transposed in each run."""
    sizes = {"embedding_size": 8, "hidden_sizes": [200, 200], "layer_type": "basic"}
    folder = tiny_checkpoint(tmp_path / "model", "resnet", "image-classification", **sizes)
    model = load_model(identify(str(folder)))
    artifact = export_artifact(model, tmp_path / "file", "tflite", "int8-dynamic")
    weights = sum(p.numel() for p in model.module.parameters() if p.ndim == 4)
    assert weights * 4 > 4_000_000
    assert artifact.bytes < 1.1 * weights
    outline = load_model(identify(str(folder)), meta=True)
    predicted = predicted_bytes(outline, "tflite", "int8-dynamic", ())
    assert artifact.bytes == pytest.approx(predicted, rel=0.01)
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    encoded = Encoded({"pixel_values": pixels}, None)
    found = run_agent(artifact, encoded, [Pass("all", "outputs")], threads=1)
    ours, theirs = (
        found["passes"]["all"]["outputs"].ravel(),
        reference_outputs(model, encoded).ravel(),
    )
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.99
