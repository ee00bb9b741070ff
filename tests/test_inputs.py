"""Every kind of model that edgekit takes, from the checkpoint to a verified bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.artifact import Format
from edgekit.errors import EdgekitError, ModelError, RecipeError, UsageError
from edgekit.export import export_artifact
from edgekit.model import identify, load_model
from tests.tiny import tiny_checkpoint
from tests.tiny_data import table_file, texts
from tests.tiny_project import plain_module

TASKS: dict[str, dict[str, Any]] = {
    "multi-label": {"problem": "multi-label"},
    "tokens": {"task": "token-classification", "labels": ("O", "B-x", "I-x")},
    "embedding": {"task": "sentence-embedding"},
    "vit": {"family": "vit", "task": "image-classification"},
}


def _check(bundle: Path, file: str) -> dict[str, Any]:
    """The bundle verifies, and its golden inputs are there; its manifest."""
    assert edgekit.verify(bundle).verdict.outcome == "pass"
    assert len(json.loads((bundle / "golden.json").read_text())["rows"]) > 1
    manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    assert [model["file"] for model in manifest["models"]] == [file]
    return manifest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multi-label", "tokens", "embedding"])
def test_every_task_builds_to_onnx(tmp_path: Path, kind: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", layers=1, **TASKS[kind])
    edgekit.build(checkpoint, target="linux-x86_64", output=tmp_path / "dist")
    manifest = _check(tmp_path / "dist" / "linux-x86_64", "model.onnx")
    output = manifest["models"][0]["outputs"][0]["name"]
    assert output == ("embedding" if kind == "embedding" else "logits")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("android-arm64", "tokens"),
        ("android-gpu", "embedding"),
        ("cuda", "vit"),
    ],
)
def test_tasks_build_for_other_targets(tmp_path: Path, target: str, kind: str) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", layers=1, **TASKS[kind])
    edgekit.build(checkpoint, target=target, output=tmp_path / "dist")
    assert edgekit.verify(tmp_path / "dist" / target).verdict.outcome == "pass"


@pytest.mark.slow
def test_a_family_that_differs_builds_to_tflite(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "xlnet", layers=1)
    edgekit.build(checkpoint, target="android-arm64", output=tmp_path / "dist")
    _check(tmp_path / "dist" / "android-arm64", "model.tflite")


@pytest.mark.slow
def test_pairs_of_texts_are_seen_in_the_data(tmp_path: Path) -> None:
    """A BERT that reads pairs takes token types, without a flag that says so."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", problem="regression", layers=1)
    pairs = list(zip(texts(40), texts(40, 1), strict=True))
    scores = _own_scores(checkpoint, pairs)
    rows = [(*pair, f"{score:.4f}") for pair, score in zip(pairs, scores, strict=True)]
    data = table_file(tmp_path / "train.csv", ["sentence1", "sentence2", "score"], rows)
    result = edgekit.build(
        checkpoint, data=data, eval=data, target="linux-x86_64", output=tmp_path / "dist"
    )
    model = _check(result.bundles[0].path, "model.onnx")["models"][0]
    names = [tensor["name"] for tensor in model["inputs"]]
    assert names == ["input_ids", "attention_mask", "token_type_ids"]
    assert model["proof"]["metrics"]["original"]["spearman"] == pytest.approx(1, abs=1e-3)


def _own_scores(checkpoint: Path, pairs: list[tuple[str, str]]) -> Any:
    """What transformers' own model says of the pairs."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with torch.inference_mode():
        return [
            float(model(**tokenizer(*pair, truncation=True, return_tensors="pt")).logits)
            for pair in pairs
        ]


@pytest.mark.slow
def test_a_picture_model_takes_and_gives_integers(tmp_path: Path) -> None:
    """Fed real numbers by us, at every place where a file is run."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "resnet", "image-classification")
    edgekit.build(
        checkpoint,
        target="integer-only",
        allow_random_calibration=True,
        output=tmp_path / "dist",
    )
    bundle = tmp_path / "dist" / "integer-only"
    (model,) = _check(bundle, "model.tflite")["models"]
    assert [t["dtype"] for t in (*model["inputs"], *model["outputs"])] == ["int8"] * 2
    assert model["proof"]["float_islands"] == []
    assert model["proof"]["parity"]["alone"]["max"] <= 8.5 * model["proof"]["output_step"]
    assert model["proof"]["integers"]["tensors"] == 10
    assert edgekit.bench(bundle, seconds=0.2).measurements[0].latency is not None
    assert "Feed `pixel_values` int8 [1, 3, 32, 32]" in (bundle / "README.md").read_text()


@pytest.mark.slow
def test_a_plain_module_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_module(tmp_path)
    monkeypatch.chdir(tmp_path)
    edgekit.build("mine:small", target="linux-x86_64", output="dist")
    manifest = _check(tmp_path / "dist" / "linux-x86_64", "model.onnx")
    assert [t["name"] for t in manifest["models"][0]["inputs"]] == ["features"]


def _float_file(folder: Path, format: Format) -> Path:
    """With its tokenizer and config beside it, as other tools leave it."""
    checkpoint = tiny_checkpoint(folder / "checkpoint", layers=1)
    model = load_model(identify(str(checkpoint)))
    made = export_artifact(model, folder, format, "fp32", any_length=True)
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    return made.path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _float_file(tmp_path_factory.mktemp("exported"), "onnx")


@pytest.mark.slow
def test_an_onnx_file_is_quantized_and_the_torch_stages_are_skipped_and_said_so(
    exported: Path, tmp_path: Path
) -> None:
    result = edgekit.build(exported, target="linux-x86_64", output=tmp_path)
    assert any("torch stages were skipped" in note for note in result.plan.notes)
    bundle = result.bundles[0].path
    manifest = _check(bundle, "model.onnx")
    assert manifest["model"]["labels"] == ["a", "b", "c"]
    assert (bundle / "tokenizer.json").is_file()
    assert (bundle / "model.onnx").stat().st_size < exported.stat().st_size


@pytest.mark.slow
def test_an_exported_file_is_refused_what_only_a_checkpoint_can(
    exported: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is onnx, and android-arm64 is built as tflite"):
        edgekit.build(exported, target="android-arm64", output=tmp_path)
    with pytest.raises(RecipeError, match="exported file"):
        edgekit.build(exported, target="linux-x86_64", steps=["trim-vocabulary"], output=tmp_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(exported.read_bytes()[:-200])
    with pytest.raises(ModelError):
        edgekit.build(broken, target="linux-x86_64", output=tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "file"), [("android-arm64", "tflite"), ("torchscript-cpu", "pt")]
)
def test_tflite_and_torchscript_files_are_models_too(
    tmp_path: Path, target: str, file: str
) -> None:
    source = _float_file(tmp_path / "float", "torchscript" if file == "pt" else "tflite")
    scheme = "fp32" if file == "pt" else None  # TorchScript cannot be edited
    edgekit.build(source, target=target, scheme=scheme, output=tmp_path / "dist")
    assert edgekit.verify(tmp_path / "dist" / target).verdict.outcome == "pass"
    if file == "pt":
        with pytest.raises(EdgekitError, match="--scheme fp32"):
            edgekit.build(source, target=target, output=tmp_path / "other")


@pytest.mark.slow
def test_a_file_of_arrays_proves_a_plain_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_module(tmp_path)
    np.savez(tmp_path / "eval.npz", features=np.random.default_rng(0).normal(size=(32, 64)))
    monkeypatch.chdir(tmp_path)
    result = edgekit.build("mine:small", eval="eval.npz", target="linux-x86_64", output="dist")
    assert result.bundles[0].figures["model.onnx"]["rows"] == 32
