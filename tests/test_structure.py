"""The saved form of a model whose layers differ: read by five lines of torch, and by edgekit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from edgekit import structure
from edgekit.data import Rows
from edgekit.errors import ModelError
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.structure import sharing_copy
from tests.documented import load_by_lines
from tests.tiny import tiny_checkpoint, tiny_texts


@pytest.fixture
def pruned(tmp_path: Path) -> Model:
    """Another width of the first layer's inner part, and the second layer tied to the third."""
    source = tiny_checkpoint(tmp_path / "whole", "bert", num_hidden_layers=3)
    model = load_model(identify(str(source)))
    module = sharing_copy(model.module)
    first, _, third = module.bert.encoder.layer
    inner, outer = first.intermediate.dense, first.output.dense
    structure.place(inner, "weight", inner.weight.detach()[:8].clone())
    structure.place(inner, "bias", inner.bias.detach()[:8].clone())
    structure.place(outer, "weight", outer.weight.detach()[:, :8].clone())
    module.bert.encoder.layer[1] = third
    return model.with_module(module, "by hand")


def answers(model: Model) -> Any:
    assert model.preprocessor is not None
    return reference_outputs(model, model.preprocessor.encode(Rows(texts=tuple(tiny_texts(6)))))


def test_it_loads_again_with_each_weight_once(pruned: Model, tmp_path: Path) -> None:
    save_model(pruned, tmp_path / "saved")
    np.testing.assert_array_equal(
        answers(load_model(identify(str(tmp_path / "saved")))), answers(pruned)
    )
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert fields["edgekit"] == {
        "shapes": {
            "bert.encoder.layer.0.intermediate.dense.weight": [8, 24],
            "bert.encoder.layer.0.intermediate.dense.bias": [8],
            "bert.encoder.layer.0.output.dense.weight": [24, 8],
        },
        "tied": {"bert.encoder.layer.2": "bert.encoder.layer.1"},
        "absent": [],
    }
    with safe_open(tmp_path / "saved" / "model.safetensors", "np") as file:
        assert not [name for name in file.keys() if ".layer.2." in name]  # noqa: SIM118


def test_shapes_alone_load_on_the_meta_device(pruned: Model, tmp_path: Path) -> None:
    save_model(pruned, tmp_path / "saved")
    outline = load_model(identify(str(tmp_path / "saved")), meta=True)
    found = {name: tuple(t.shape) for name, t in outline.module.state_dict().items()}
    assert found == {name: tuple(t.shape) for name, t in pruned.module.state_dict().items()}
    assert all(t.is_meta for t in outline.module.parameters())


def test_the_documented_lines_load_it_without_edgekit(pruned: Model, tmp_path: Path) -> None:
    save_model(pruned, tmp_path / "saved")
    loaded = load_by_lines(tmp_path / "saved", structure)
    ids = torch.randint(5, 60, (3, 7))
    with torch.no_grad():
        found, expected = loaded(ids).logits, pruned.module(ids).logits
    torch.testing.assert_close(found, expected)


def test_a_record_that_does_not_fit_the_weights(pruned: Model, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    save_model(pruned, folder)
    fields = json.loads((folder / "config.json").read_text())
    fields["edgekit"]["shapes"]["bert.encoder.layer.0.output.dense.weight"] = [24, 9]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=r"output\.dense\.weight is \[24, 9\]"):
        load_model(identify(str(folder)))
