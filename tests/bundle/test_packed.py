"""A bundle whose TFLite file is packed: the bytes that it says, and the answers after expanding."""

import json
from pathlib import Path

import pytest

import edgekit
from tests.tiny import tiny_checkpoint


@pytest.mark.slow
def test_a_sparse_bundle_ships_the_packed_file_and_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    wide = {"hidden_size": 96, "intermediate_size": 768}
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "bert", **wide)
    steps = ["sparsify:epochs=0"]
    result = edgekit.build(
        checkpoint, target="android-arm64", steps=steps, output=tmp_path / "dist", format="tflite"
    )
    folder = tmp_path / "dist" / "android-arm64"
    names = {path.name for path in folder.iterdir()}
    assert "model.tflite.packed" in names and "model.tflite" not in names
    manifest = json.loads((folder / "manifest.json").read_text())
    shipped = sum((folder / e["path"]).stat().st_size for e in manifest["files"] if e["shipped"])
    assert shipped == manifest["shipped_bytes"] == result.bundles[0].shipped_bytes
    packed = (folder / "model.tflite.packed").stat().st_size
    (model,) = manifest["models"]
    assert (model["file"], model["packed"]) == ("model.tflite", "model.tflite.packed")
    assert packed == pytest.approx(model["predicted_bytes"], rel=0.02)
    assert "model.tflite.packed" in (folder / "README.md").read_text()

    assert edgekit.verify(folder).verdict.outcome == "pass"
    assert len(list(tmp_path.glob("cache/expanded/*/model.tflite"))) == 1
