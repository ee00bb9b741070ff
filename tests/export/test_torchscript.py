"""TorchScript files, loaded by torch alone, against the torch model that they were made of."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import Artifact
from edgekit.contents import read_contents
from edgekit.errors import ExportError
from edgekit.export.torchscript import export_torchscript
from edgekit.model import Model
from edgekit.steps.quantize.grid import quantize_int8
from tests.export.cases import INT8_COSINE, Array, case, each_case, tells_of_this_machine
from tests.tiny import tiny_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
each_family = each_case(
    *((family, "text-classification") for family in ("bert", "albert", "xlnet", "mpnet")),
    ("roberta", "token-classification"),
    ("distilbert", "sentence-embedding"),
    *((family, "image-classification") for family in ("vit", "resnet")),
)


def run(path: Path, feeds: dict[str, Array]) -> Array:
    import torch

    module = torch.jit.load(path)
    with torch.no_grad():
        answer = module(*(torch.from_numpy(array) for array in feeds.values()))
    assert answer.dtype == torch.float32
    return answer.numpy()


@each_family
def test_fp32_gives_the_originals_answers_at_any_size(
    family: str, task: str, tmp_path: Path
) -> None:
    tiny = case(family, task)
    made = export_torchscript(tiny.model, tmp_path, scheme="fp32")
    together = run(made.path, tiny.feeds())
    assert tiny.difference(together) < 1e-4 * max(1, np.abs(tiny.expected).max())
    for index in range(3):
        alone = run(made.path, tiny.unpadded(index))
        row = together[index, : alone.shape[1]] if alone.ndim == 3 else together[index]
        np.testing.assert_allclose(alone[0], row, atol=1e-4, rtol=1e-4)


@each_family
def test_int8_stays_near_the_original_and_is_int8(family: str, task: str, tmp_path: Path) -> None:
    tiny = case(family, task)
    made = export_torchscript(tiny.model, tmp_path / "int8", scheme="int8-dynamic")
    wide = export_torchscript(tiny.model, tmp_path / "fp32", scheme="fp32")
    assert tiny.cosine(run(made.path, tiny.feeds())) > INT8_COSINE
    count, before = (read_contents(a.path).bytes_per_dtype() for a in (made, wide))
    assert count["int8"] > 0.7 * before["float32"] / 4
    assert count["float32"] < 0.35 * before["float32"]


@each_family
def test_fp16_halves_the_weights_and_still_answers_in_float32(
    family: str, task: str, tmp_path: Path
) -> None:
    tiny = case(family, task)
    made = export_torchscript(tiny.model, tmp_path, scheme="fp16")
    assert tiny.cosine(run(made.path, tiny.feeds())) > 0.99
    count = read_contents(made.path).bytes_per_dtype()
    assert count.get("float32", 0) < 0.01 * count["float16"]


def test_integers_are_those_of_the_grid(tmp_path: Path) -> None:
    import torch

    tiny = case("bert")
    path = export_torchscript(tiny.model, tmp_path, scheme="int8-dynamic").path
    stored: list[tuple[Array, Array]] = []
    tables = []
    for node in torch.jit.load(path).graph.nodes():
        value = node.output().toIValue() if node.kind() == "prim::Constant" else None
        if isinstance(value, torch.ScriptObject):
            weight, _ = torch.ops.quantized.linear_unpack(value)
            stored.append((weight.int_repr().numpy(), weight.q_per_channel_scales().numpy()))
        elif isinstance(value, torch.Tensor) and value.dtype == torch.int8:
            tables.append(value.numpy())
    checked = 0
    for name, module in tiny.model.module.named_modules():
        if isinstance(module, torch.nn.Linear):
            integers, scales = quantize_int8(module.weight.detach().numpy(), axis=0)
            assert any(
                found.shape == integers.shape
                and (found == integers).all()
                and (each.astype(np.float32) == scales).all()
                for found, each in stored
            )
            checked += 1
        elif name.endswith("word_embeddings"):
            integers, _ = quantize_int8(module.weight.detach().numpy(), axis=0)
            assert any(np.array_equal(found, integers) for found in tables)
            checked += 1
    assert checked == 2 * 6 + 3


def test_the_archive_says_what_it_takes_and_where_it_is_from_it_does_not(tmp_path: Path) -> None:
    made = export_torchscript(case("bert").model, tmp_path, scheme="int8-dynamic")
    assert [(t.name, t.dtype, t.shape) for t in made.inputs] == [
        ("input_ids", "int64", ("batch", "length")),
        ("attention_mask", "int64", ("batch", "length")),
    ]
    assert [(t.name, t.dtype, t.shape) for t in made.outputs] == [
        ("logits", "float32", ("batch", 3))
    ]
    contents = read_contents(made.path)
    assert contents.inputs == made.inputs and contents.outputs == made.outputs
    assert contents.ops["quantized::linear_dynamic"] == 2 * 6 + 2
    with zipfile.ZipFile(made.path) as archive:
        names = archive.namelist()
        code = "".join(archive.read(name).decode() for name in names if name.endswith(".py"))
        stamps = {entry.date_time[:3] for entry in archive.infolist()}
        # libtorch maps buffers into memory, and its kernels want them aligned.
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
    assert not any(name.endswith(".debug_pkl") for name in names)
    assert "torch.device(" not in code
    assert stamps == {(1980, 0, 0)}
    assert tells_of_this_machine(made.path.read_bytes()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.slow
def test_layers_that_share_a_weight_share_it_in_the_file(tmp_path: Path) -> None:
    sizes = {}
    for layers in (2, 6):
        from edgekit.model import identify, load_model

        folder = tmp_path / str(layers)
        checkpoint = tiny_checkpoint(folder / "checkpoint", "albert", num_hidden_layers=layers)
        model = load_model(identify(str(checkpoint)))
        for scheme in ("fp32", "int8-dynamic"):
            made = export_torchscript(model, folder / scheme, scheme=scheme)
            sizes[layers, scheme] = sum(t.bytes for t in read_contents(made.path).tensors)
    assert sizes[2, "fp32"] == sizes[6, "fp32"]
    assert sizes[2, "int8-dynamic"] == sizes[6, "int8-dynamic"]


def test_a_module_whose_trace_holds_for_its_example_only_is_refused(tmp_path: Path) -> None:
    import torch

    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / float(len(x)) if len(x) > 1 else x + 1

    class Failing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("no luck today")

    def export(module: torch.nn.Module) -> Artifact:
        example = {"x": torch.zeros(2, 4)}
        model = Model(module.eval(), "module", None, None, None, (), example=example)
        return export_torchscript(model, tmp_path / "out", scheme="fp32")

    with pytest.raises(ExportError, match="wrong for other sizes"):
        export(Counting())
    with pytest.raises(ExportError, match="no luck today"):
        export(Failing())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_minilm_in_int8_takes_little_more_than_a_byte_a_weight(
    shared: Path, tmp_path: Path
) -> None:
    from edgekit.model import identify, load_model, reference_outputs

    model = load_model(identify(str(shared / "checkpoints" / "minilm-banking77")))
    made = export_torchscript(model, tmp_path, scheme="int8-dynamic")
    assert made.bytes < 23.5e6
    assert model.preprocessor is not None
    rows = model.preprocessor.encode(_banking77(shared))
    feeds = {name: array.astype(np.int64) for name, array in rows.arrays.items()}
    agreement = run(made.path, feeds).argmax(1) == reference_outputs(model, rows).argmax(1)
    assert agreement.mean() > 0.97


def _banking77(shared: Path):  # type: ignore[no-untyped-def]
    import csv

    from edgekit.data import Rows

    with (shared / "data" / "banking77" / "test.csv").open(newline="", encoding="utf-8") as stream:
        return Rows(texts=tuple(row["text"] for row in csv.DictReader(stream))[::10])
