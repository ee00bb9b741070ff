"""The light students: what their arithmetic promises, and the same in their files."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgekit.architectures.light import compared
from edgekit.data import Rows
from edgekit.errors import ExportError
from edgekit.export import export_artifact
from edgekit.model import export_forward, identify, load_model, reference_outputs, save_model
from edgekit.plan.predict import predicted_bytes
from edgekit.workbench import encode
from tests.tiny_light import KINDS, TEXTS, tiny_student

PAIRS = Rows(texts=TEXTS, pairs=TEXTS[::-1])
CASES = [
    *((kind, "text-classification", None) for kind in KINDS),
    *((kind, "text-classification", PAIRS) for kind in ("cmow", "ngram", "cnn")),
    *((kind, "token-classification", None) for kind in ("bilstm", "cnn")),
]
NAMES = [f"{kind}-{task[:4]}{'-pair' if rows else ''}" for kind, task, rows in CASES]


@pytest.fixture(scope="module", params=CASES, ids=NAMES)
def case(request):
    kind, task, rows = request.param
    model, rows = tiny_student(kind, task, rows)
    return kind, model, encode(model, rows)


def test_padding_changes_nothing(case):
    _, model, encoded = case
    forward = export_forward(model)
    inputs = [torch.from_numpy(encoded.arrays[name]).long() for name in model.inputs]
    wider = [torch.nn.functional.pad(each, (0, 5)) for each in inputs]
    wider[0][wider[1] == 0] = 3
    with torch.inference_mode():
        for given in (inputs, wider):
            _same(forward(*given).numpy(), reference_outputs(model, encoded), encoded, 1e-5)


def test_a_student_loads_again_from_plain_files(case, tmp_path):
    _, model, encoded = case
    save_model(model, tmp_path)
    assert {each.suffix for each in tmp_path.iterdir()} <= {".json", ".safetensors", ".txt"}
    again = load_model(identify(str(tmp_path)))
    assert again.preprocessor == model.preprocessor and again.task == model.task
    assert again.labels == model.labels
    np.testing.assert_allclose(
        reference_outputs(again, encoded), reference_outputs(model, encoded), atol=1e-6
    )


@pytest.mark.parametrize(
    ("scheme", "limit"), [("fp32", 1e-5), ("int8-dynamic", 0.1), ("fp16", 5e-3)]
)
def test_tflite_files_answer_as_the_student_and_have_the_predicted_bytes(
    case, tmp_path, scheme, limit
):
    from ai_edge_litert.interpreter import Interpreter

    kind, model, encoded = case
    buckets = kind == "cmow" or scheme == "fp16"
    lengths = ((8, 32) if kind == "cmow" else (8, 32, 96)) if buckets else ()
    artifact = export_artifact(model, tmp_path, "tflite", scheme, lengths, not buckets)
    meta = replace(model, module=copy.deepcopy(model.module).to("meta"))
    assert predicted_bytes(meta, "tflite", scheme, lengths) == artifact.bytes
    interpreter = Interpreter(str(artifact.path))
    reference = reference_outputs(model, encoded)
    found = np.zeros_like(reference)
    # Each row after another: a state that stayed would show.
    for row, length in enumerate(encoded.lengths.tolist()):
        width = next((n for n in lengths if n >= length), length)
        key = f"length_{width}" if lengths else "serving_default"
        feed = {name: np.zeros((1, width), np.int32) for name in model.inputs}
        for name, array in feed.items():
            array[0, :length] = encoded.arrays[name][row, :length]
        answer = next(iter(interpreter.get_signature_runner(key)(**feed).values()))[0]
        if answer.ndim == 2:
            found[row, :length] = answer[:length]
        else:
            found[row] = answer
    _same(found, reference, encoded, limit * max(1.0, float(reference.std())))


def test_static_integers_are_refused_before_anything_is_learned():
    model, _ = tiny_student("cnn")
    with pytest.raises(ExportError, match="choose --scheme int8-dynamic"):
        predicted_bytes(model, "onnx", "int8-static", ())


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_the_other_formats_answer_as_the_bilstm_does(tmp_path, format):
    from edgekit.devices.run import Pass, run_agent

    model, rows = tiny_student("bilstm")
    encoded = encode(model, rows)
    reference = reference_outputs(model, encoded)
    meta = replace(model, module=copy.deepcopy(model.module).to("meta"))
    for scheme, limit in (
        ("fp32", 1e-4),
        ("int8-weights" if format == "onnx" else "int8-dynamic", 0.1),
    ):
        artifact = export_artifact(model, tmp_path, format, scheme)
        passes = [Pass("alone", "outputs"), Pass("together", "outputs", batch=8, width=20)]
        for found in run_agent(artifact, encoded, passes, threads=1)["passes"].values():
            np.testing.assert_allclose(found["outputs"], reference, atol=limit)
        assert abs(predicted_bytes(meta, format, scheme, ()) - artifact.bytes) < 4000


def test_matrices_know_an_order_and_vectors_do_not():
    model, _ = tiny_student("cmow")
    module = model.module
    ids = torch.tensor([[5, 6, 7, 8]])
    swapped = ids[:, [0, 2, 1, 3]]
    width = module.words.embedding_dim - 2 * module.config.matrix**2
    with torch.inference_mode():
        one, other = (module.pooled(module.words(each))[0] for each in (ids, swapped))
    torch.testing.assert_close(one[:width], other[:width], atol=1e-6, rtol=0)
    for part in one[width:].split(module.config.matrix**2):
        place = other[width:].split(module.config.matrix**2)
        assert all((part - each).abs().max() > 1e-4 for each in place)


def test_padding_anywhere_is_neutral_in_products():
    model, _ = tiny_student("cmow")
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.inference_mode():
        whole = model.module.pooled(model.module.words(ids))
        for place in range(7):
            more = torch.cat(
                [ids[:, :place], torch.zeros(1, 3, dtype=torch.long), ids[:, place:]], 1
            )
            torch.testing.assert_close(
                model.module.pooled(model.module.words(more)), whole, atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_products_in_pairs_are_the_products_one_by_one(length):
    from edgekit.architectures.cmow import product

    matrices = torch.eye(5) + 0.2 * torch.randn(3, length, 5, 5)
    left, right = torch.eye(5).expand(3, 5, 5), torch.eye(5).expand(3, 5, 5)
    for number in range(length):
        left, right = left @ matrices[:, number], matrices[:, number] @ right
    torch.testing.assert_close(product(matrices, 16), left, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(product(matrices, 16, from_right=True), right, atol=1e-4, rtol=1e-4)
    half = length // 2
    halves = product(matrices[:, :half], 16) @ product(matrices[:, half:], 16)
    torch.testing.assert_close(halves, left, atol=1e-4, rtol=1e-4)


def test_two_texts_are_compared_by_their_difference():
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    one, other = compared([first, second]), compared([second, first])
    torch.testing.assert_close(one[:, 8:], other[:, 8:])
    torch.testing.assert_close(one[:, :8], torch.cat([first, second], 1))
    torch.testing.assert_close(one[:, 8:], (first - second).abs())


def _same(found, reference, encoded, limit):
    """Tokens of the padding may answer anything."""
    found = found[:, : reference.shape[1]] if reference.ndim == 3 else found
    if reference.ndim == 3:
        real = np.arange(reference.shape[1]) < encoded.lengths[:, None]
        found, reference = found[real], reference[real]
    np.testing.assert_allclose(found, reference, atol=limit)
