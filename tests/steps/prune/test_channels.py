"""Channels taken out: how many, the answers of the model with them silent, saved and exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit import structure
from edgekit.data import Rows
from edgekit.devices.run import Pass, run_agent
from edgekit.errors import RecipeError
from edgekit.export import export_artifact
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.preprocess import Encoded
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.prune.channels import left
from tests.documented import load_by_lines
from tests.fresh import run_fresh
from tests.tiny import tiny_checkpoint

pytest.importorskip("torch_pruning")

SIZES: dict[str, dict[str, Any]] = {
    "resnet": {
        "embedding_size": 16,
        "hidden_sizes": [32, 48],
        "depths": [2, 1],
        "layer_type": "basic",
    },
    "mobilenet_v2": {"depth_multiplier": 0.35, "min_depth": 8},
}
FAMILIES = sorted(SIZES)
CHANCE = np.random.default_rng(5)
PIXELS = CHANCE.normal(size=(4, 3, 32, 32)).astype(np.float32)
ROWS = Rows(images=CHANCE.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8))


def source(folder: Path, family: str) -> Any:
    made = tiny_checkpoint(folder / family, family, "image-classification", **SIZES[family])
    return identify(str(made))


def prune(model: Model, text: str = "prune-channels", folder: Path | None = None) -> Model:
    return apply_steps([parse_step(text).step], model, Context(ROWS, 0, folder=folder))


def logits(module: Any) -> Any:
    with torch.no_grad():
        return module(torch.from_numpy(PIXELS)).logits.numpy()


def norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_widths_are_multiples_of_eight_and_known_beforehand(
    tmp_path: Path, family: str, importance: str
) -> None:
    named = source(tmp_path, family)
    step = f"prune-channels:ratio=0.5,importance={importance}"
    model = load_model(named)
    pruned = prune(model, step, tmp_path)
    widths = {name: norm.num_features for name, norm in norms(pruned.module).items()}
    for name, norm in norms(model.module).items():
        assert widths[name] == left(norm.num_features, 0.5, 8) and widths[name] % 8 == 0, name
    outline = prune(load_model(named, meta=True), step)
    assert {n: t.shape for n, t in outline.module.state_dict().items()} == {
        n: t.shape for n, t in pruned.module.state_dict().items()
    }
    assert all(t.is_meta for t in outline.module.state_dict().values())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_answers_as_the_whole_model_with_those_channels_silent(
    tmp_path: Path, family: str
) -> None:
    whole = load_model(source(tmp_path, family))
    before = {
        name: norm.weight.detach().numpy().copy() for name, norm in norms(whole.module).items()
    }
    pruned = prune(whole, folder=tmp_path)
    changed = 0
    with torch.no_grad():
        for name, norm in norms(whole.module).items():
            kept = np.isin(before[name], norms(pruned.module)[name].weight.numpy())
            assert kept.sum() == norms(pruned.module)[name].num_features
            changed += int((~kept).sum())
            silent = torch.from_numpy(~kept)
            norm.weight[silent] = 0
            norm.bias[silent] = 0
    assert changed > 0
    np.testing.assert_allclose(logits(pruned.module), logits(whole.module), atol=1e-4, rtol=1e-4)


def test_how_many_channels_stay() -> None:
    cases = [(24, 0.5, 8), (8, 0.9, 8), (6, 0.5, 8), (64, 0.3, 8), (64, 0.3, 1)]
    assert [left(*case) for case in cases] == [16, 8, 6, 48, 45]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_it_loads_in_a_fresh_process_and_exports(tmp_path: Path, family: str) -> None:
    pruned = prune(load_model(source(tmp_path, family)), folder=tmp_path)
    save_model(pruned, tmp_path / "saved")
    expected = logits(pruned.module)
    if family == "resnet":
        found = answers_of_a_fresh_process(tmp_path)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    again = load_model(identify(str(tmp_path / "saved")))
    encoded = Encoded({"pixel_values": PIXELS}, None)
    assert np.allclose(reference_outputs(again, encoded), expected, atol=1e-5)
    for format in ("onnx", "tflite") if family == "resnet" else ():
        made = export_artifact(again, tmp_path / format, format, "fp32")  # type: ignore[arg-type]
        passes = run_agent(made, encoded, [Pass("all", "outputs")], threads=1)["passes"]
        np.testing.assert_allclose(passes["all"]["outputs"], expected, atol=1e-3, rtol=1e-3)


def answers_of_a_fresh_process(folder: Path) -> Any:
    np.save(folder / "pixels.npy", PIXELS)
    code = (
        "import sys, numpy as np, torch; from edgekit.model import identify, load_model;"
        "m = load_model(identify(sys.argv[1] + '/saved')).module;"
        "x = torch.from_numpy(np.load(sys.argv[1] + '/pixels.npy'));"
        "assert 'torch_pruning' not in sys.modules;"
        "np.save(sys.argv[1] + '/found.npy', m(x).logits.detach().numpy())"
    )
    run_fresh(["-c", code, str(folder)])
    return np.load(folder / "found.npy")


def test_named_layers_keep_their_channels(tmp_path: Path) -> None:
    whole = load_model(source(tmp_path, "resnet"))
    name = "resnet.encoder.stages.1.layers.0.layer.0.convolution"
    pruned = prune(whole, f"prune-channels:keep={name}", tmp_path)
    assert pruned.module.get_submodule(name).out_channels == 48
    assert pruned.module.classifier[-1].out_features == 3  # type: ignore[index, union-attr]


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    whole = load_model(source(tmp_path, "resnet"))
    vit = load_model(identify(str(tiny_checkpoint(tmp_path / "v", "vit", "image-classification"))))
    for model, text, said in (
        (vit, "prune-channels", "a vit is made of attention"),
        (whole, "prune-channels:round-to=1000", "takes no channel out"),
        (whole, "prune-channels:ratio=0.001", "takes no channel out"),
        (whole, "prune-channels:keep=resnet.encoder.stages.1", "holds layers and is none"),
    ):
        with pytest.raises(RecipeError, match=said):
            prune(model, text, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_documented_lines_load_it(tmp_path: Path, family: str) -> None:
    pruned = prune(load_model(source(tmp_path, family)), folder=tmp_path)
    save_model(pruned, tmp_path / "saved")
    found = load_by_lines(tmp_path / "saved", structure, task="ImageClassification")
    np.testing.assert_allclose(logits(found), logits(pruned.module), atol=1e-5)


class Fixed(nn.Module):
    """Its forward knows how many channels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 16, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(pixels).view(1, 32, 30, 30)).mean((2, 3))


def test_a_forward_of_fixed_sizes_is_refused_in_a_sentence(tmp_path: Path) -> None:
    example = {"pixels": torch.zeros(1, 3, 32, 32)}
    plain = Model(Fixed().eval(), "module", None, None, None, (), example=example)
    with pytest.raises(RecipeError, match=r"does not run with fewer channels .* with keep"):
        apply_steps([parse_step("prune-channels").step], plain, Context(None, 0, tmp_path))


class Plain(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3)
        self.second = nn.Conv2d(32, 16, 3, stride=2)
        self.last = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.second(self.first(x).relu()).relu().mean((2, 3)))


def plain(module: nn.Module) -> Model:
    example = {"x": torch.zeros(1, 3, 16, 16)}
    return Model(module.eval(), "module", None, None, None, (), example=example)


def test_a_plain_module_is_pruned_and_exports(tmp_path: Path) -> None:
    pruned = prune(plain(Plain()), folder=tmp_path)
    assert pruned.module.first.weight.shape == (16, 3, 3, 3)
    assert pruned.module.second.weight.shape == (8, 16, 3, 3)
    assert pruned.module.last.weight.shape == (5, 8)
    made = export_artifact(pruned, tmp_path / "out", "onnx", "fp32")
    assert made.outputs[0].shape[-1] == 5


def factory() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The plain module as ``edgekit build`` may be told of it."""
    module = Plain()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    return module, {"x": torch.zeros(1, 3, 16, 16)}


def test_a_build_of_a_plain_module_says_why_it_takes_no_steps(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no checkpoint format"):
        edgekit.build(
            "tests.steps.prune.test_channels:factory",
            target="linux-x86_64",
            scheme="fp32",
            steps=["prune-channels"],
            output=tmp_path / "dist",
        )
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune-channels:ratio=0", "between 0 and 1"),
        ("prune-channels:ratio=1", "between 0 and 1"),
        ("prune-channels:round-to=0", "round-to must be at least 1"),
        ("prune-channels:keep=nowhere", "keep names nowhere"),
        ("prune-channels:importance=taylor", "a plain module has none"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_step(text).step.requires(plain(Plain()), Context(ROWS, 0))


def test_it_is_for_convolutions(tmp_path: Path) -> None:
    step = parse_step("prune-channels").step
    with pytest.raises(RecipeError, match="no convolutions"):
        step.requires(load_model(identify(str(tiny_checkpoint(tmp_path / "b")))), Context(None, 0))
    grouped = plain(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)))
    with pytest.raises(RecipeError, match="2 groups"):
        step.requires(grouped, Context(None, 0))
