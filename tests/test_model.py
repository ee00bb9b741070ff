"""What can be loaded is loaded exactly; what cannot is refused with one sentence."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgekit.data import Rows
from edgekit.errors import EdgekitError, ModelError
from edgekit.model import (
    export_forward,
    identify,
    load_model,
    reference_outputs,
    save_model,
)
from edgekit.preprocess import Encoded
from tests.tiny import IMAGE_FAMILIES, TEXT_FAMILIES, tiny_checkpoint, tiny_texts

# On a busy machine threads wait for each other longer than these tiny products take.
torch.set_num_threads(1)

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, scale):
        return self.linear(x) * scale

def net():
    torch.manual_seed(0)
    return Net(), {"x": torch.ones(1, 4), "scale": torch.ones(1, 1)}

def unseeded():
    torch.seed()
    return Net(), {"x": torch.ones(1, 4), "scale": torch.ones(1, 1)}

def broken():
    raise RuntimeError("no weights")

def alone():
    return Net()
"""


def edit_json(path: Path, **changes: Any) -> None:
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (fields | changes).items() if v is not None}))


def texts(count: int = 6) -> Rows:
    return Rows(texts=tuple(tiny_texts(count, seed=5)))


# What is loaded


@pytest.mark.parametrize("family", [*TEXT_FAMILIES, *IMAGE_FAMILIES])
def test_a_saved_model_loads_again_byte_for_byte(family: str, tmp_path: Path) -> None:
    task = "text-classification" if family in TEXT_FAMILIES else "image-classification"
    source = identify(str(tiny_checkpoint(tmp_path / "one", family, task)))
    model = load_model(source, pair=True).with_module(load_model(source).module, "did nothing")
    save_model(model, tmp_path / "two")
    again = load_model(identify(str(tmp_path / "two")))
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert again.preprocessor == model.preprocessor
    assert (again.task, again.problem, again.labels) == (task, "single-label", ("a", "b", "c"))
    assert again.lineage == ("did nothing",)
    save_model(again, tmp_path / "three")
    names = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "three").iterdir())
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "three" / name).read_bytes()
        assert str(tmp_path).encode() not in (tmp_path / "two" / name).read_bytes()


def test_transformers_reads_what_we_save(tmp_path: Path) -> None:
    import transformers

    model = load_model(identify(str(tiny_checkpoint(tmp_path / "one", "bert"))))
    save_model(model, tmp_path / "two")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "two")
    original = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "two")
    rows = texts()
    batch = tokenizer(list(rows.texts or ()), padding=True, return_tensors="pt")
    found = original.eval()(**batch).logits.detach().numpy()
    expected = reference_outputs(model, model.preprocessor.encode(rows))  # type: ignore[union-attr]
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_loads_as_fp32(dtype: str, tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path, "bert", dtype=dtype))))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    stored = load_file(tmp_path / "model.safetensors")["classifier.weight"]
    assert torch.equal(model.module.classifier.weight, stored.float())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        ("text-classification", {}, ("text-classification", "single-label", ("x", "y"))),
        (
            "text-classification",
            {"problem": "multi-label"},
            ("text-classification", "multi-label", ("x", "y")),
        ),
        (
            "text-classification",
            {"problem": "regression"},
            ("text-classification", "regression", ()),
        ),
        ("token-classification", {}, ("token-classification", None, ("x", "y"))),
        ("sentence-embedding", {}, ("sentence-embedding", None, ())),
    ],
)
def test_the_task_is_found_in_the_checkpoint(
    task: str, settings: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path, "roberta", task, labels=("x", "y"), **settings)
    for meta in (False, True):
        model = load_model(identify(str(folder)), meta=meta)
        assert (model.task, model.problem, model.labels) == expected


def test_one_output_without_a_problem_type_is_regression(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert", problem="regression")
    edit_json(folder / "config.json", problem_type=None)
    assert load_model(identify(str(folder))).problem == "regression"


def test_a_classifier_can_be_taken_for_its_embeddings(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    model = load_model(identify(str(folder)), task="sentence-embedding")
    encoded = model.preprocessor.encode(texts())  # type: ignore[union-attr]
    assert reference_outputs(model, encoded).shape == (6, 24)
    assert not any("pooler" in name for name, _ in model.module.named_parameters())


def test_shards_are_read(tmp_path: Path) -> None:
    whole = tiny_checkpoint(tmp_path / "whole", "bert")
    parts = shutil.copytree(whole, tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    module: Any = load_model(identify(str(whole))).module
    module.save_pretrained(parts, max_shard_size="20KB")
    shards = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(shards) > 1
    one, two = (load_model(identify(str(folder))).module for folder in (whole, parts))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    (parts / shards[1]).unlink()
    with pytest.raises(ModelError, match=f"{shards[1]} is missing"):
        identify(str(parts))


def test_older_tokenizer_files_are_converted(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    fast = load_model(identify(str(folder)), meta=True).preprocessor
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    slow = load_model(identify(str(folder)), meta=True).preprocessor
    one, two = (p.encode(texts()) for p in (fast, slow))  # type: ignore[union-attr]
    assert np.array_equal(one.arrays["input_ids"], two.arrays["input_ids"])


def test_a_plain_module_is_its_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny_net.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    source = identify("tiny_net:net")
    assert source.kind == "module" and identify("tiny_net:net") == source
    model = load_model(source)
    assert (model.task, model.inputs, model.preprocessor) == ("module", ("x", "scale"), None)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    encoded = Encoded({"x": x, "scale": np.full((5, 1), 2, np.float32)}, None)
    found = reference_outputs(model, encoded)
    with torch.inference_mode():
        expected = export_forward(model)(torch.from_numpy(x), torch.full((5, 1), 2.0)).numpy()
    assert np.abs(found - expected).max() < 1e-6
    assert all(p.is_meta for p in load_model(source, meta=True).module.parameters())
    for reference, message in {
        "tiny_net:unseeded": "seed it",
        "tiny_net:broken": "no weights",
        "tiny_net:alone": "must return",
        "tiny_net:nothing": "has no nothing",
        "no_such_package:net": "cannot import",
    }.items():
        with pytest.raises(ModelError, match=message):
            load_model(identify(reference))


def test_longest_text_comes_from_positions_tokenizer_and_sentence_settings(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "xlm-roberta", "sentence-embedding")

    def longest() -> int:
        return load_model(identify(str(folder)), meta=True).preprocessor.max_length  # type: ignore[union-attr]

    edit_json(folder / "tokenizer_config.json", model_max_length=10**30)
    assert longest() == 64
    edit_json(folder / "tokenizer_config.json", model_max_length=40)
    assert longest() == 40
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert longest() == 20


# What is found


def test_a_digest_stands_for_everything_that_decides(tmp_path: Path) -> None:
    one = identify(str(tiny_checkpoint(tmp_path / "one", "bert")))
    two = identify(str(tiny_checkpoint(tmp_path / "two", "bert")))
    assert one.digest == two.digest and one.kind == "checkpoint"
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        folder = shutil.copytree(tmp_path / "one", tmp_path / f"changed-{name}")
        (folder / name).write_text((folder / name).read_text() + " ")
        assert identify(str(folder)).digest != one.digest
    assert identify(str(tiny_checkpoint(tmp_path / "seed", "bert", seed=1))).digest != one.digest
    (tmp_path / "two" / "README.md").write_text("new")
    assert identify(str(tmp_path / "two")).digest == one.digest


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_a_file_is_known_by_its_bytes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"anything")
    source = identify(str(path))
    assert source.kind == "file" and source.path == path
    with pytest.raises(ModelError, match="no torch model"):
        load_model(source)


def test_torchscript_is_told_from_a_pickle(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.ReLU(), torch.ones(1)).save(str(tmp_path / "good.pt"))
    assert identify(str(tmp_path / "good.pt")).kind == "file"
    torch.save({"weight": torch.ones(2)}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="not torch"):
        identify(str(tmp_path / "bad.pt"))
    (tmp_path / "worse.pt").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="no TorchScript archive"):
        identify(str(tmp_path / "worse.pt"))


def test_the_real_checkpoint_is_identified_without_torch(shared: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from edgekit.model import identify;"
        f"identify({str(shared / 'checkpoints' / 'minilm-banking77')!r});"
        "print('torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert printed.stdout.strip() == "False"


# What is refused


def break_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def break_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"never opened")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def cut_data(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def flip(offset: int, bit: int) -> Callable[[Path], None]:
    def breaker(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[offset] ^= 1 << bit
        path.write_bytes(content)

    return breaker


def surplus(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"surplus")


def unknown_family(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="deberta")


def near_family(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="distillbert")


def no_family(folder: Path) -> None:
    edit_json(folder / "config.json", model_type=None)


@pytest.mark.parametrize(
    ("breaker", "message"),
    [
        (break_nothing, "no model at"),
        (break_config, "no config.json"),
        (break_config_json, "cannot be read as JSON"),
        (pickle_only, r"pickle \(pytorch_model.bin\).*save_pretrained"),
        (no_weights, "no model.safetensors"),
        (cut_data, "100 bytes are missing"),
        (cut_header, "ends within its header"),
        (empty_weights, "damaged"),
        (flip(6, 7), "damaged"),
        (flip(8, 3), "damaged"),
        (flip(1, 0), "damaged|ends within"),
        (surplus, "7 bytes belong to no tensor"),
        (unknown_family, "unknown architecture 'deberta'.*known: albert, bert"),
        (near_family, "did you mean 'distilbert'"),
        (no_family, "no model_type"),
    ],
)
def test_bad_checkpoints_are_refused_before_torch(
    breaker: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path / "checkpoint", "bert")
    breaker(folder)
    with pytest.raises(ModelError, match=message) as caught:
        identify(str(folder))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_every_flipped_bit_of_a_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Never anything but our own refusal, wherever the bit is."""
    folder = tiny_checkpoint(tmp_path, "bert")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    generator = np.random.default_rng(0)
    refused = 0
    for offset in [*range(8), *generator.integers(8, length, 150)]:
        flipped = bytearray(content)
        flipped[offset] ^= 1 << int(generator.integers(8))
        path.write_bytes(flipped)
        try:
            load = identify(str(folder))
            load_model(load) if offset % 10 == 0 else None
        except EdgekitError:
            refused += 1
    assert refused > 60


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"bert\.encoder\.layer\.1\.output\.dense\.weight holds 1"):
        load_model(identify(str(folder)))


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({}, "banana", "unknown task 'banana'.*known: text-classification"),
        ({}, "text-clasification", "did you mean 'text-classification'"),
        ({}, "image-classification", "reads texts"),
        ({}, "token-classification", None),
        ({"architectures": ["BertForQuestionAnswering"]}, None, "BertForQuestionAnswering.*--task"),
        ({"architectures": None}, None, "does not say what it is for.*--task"),
        ({"position_embedding_type": "relative_key"}, None, "relative_key positions"),
        ({"is_decoder": True}, None, "decoder"),
        ({"hidden_size": 32}, None, "cannot be loaded"),
        ({"num_attention_heads": 5}, None, "cannot be loaded"),
        ({"hidden_size": "wide"}, None, "cannot be loaded"),
        ({"hidden_act": "banana"}, None, "cannot be loaded"),
        ({"num_hidden_layers": 3}, None, "lacks bert.encoder.layer.2.*15 more"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], task: str | None, message: str | None, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path, "bert")
    edit_json(folder / "config.json", **changes)
    source = identify(str(folder))
    if message is None:
        # Both tasks call their last layer the same: nothing is missing.
        assert load_model(source, task=task).task == task
        return
    with pytest.raises(ModelError, match=message) as caught:
        load_model(source, task=task)
    assert "\n" not in str(caught.value)


def test_a_task_whose_weights_are_missing_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "bert", "sentence-embedding")
    with pytest.raises(ModelError, match=r"lacks classifier\.bias and 1 more"):
        load_model(identify(str(folder)), task="text-classification")


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (["Transformer", "Pooling"], {"pooling_mode_cls_token": True}, "pools by cls_token"),
        (["Transformer", "Pooling"], {"pooling_mode": "max"}, "pools by max"),
        (
            ["Transformer", "Pooling", "Dense"],
            {"pooling_mode_mean_tokens": True},
            "ends in a Dense layer",
        ),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode_mean_tokens": True}, None),
        (["Transformer", "Pooling"], {"pooling_mode": "mean"}, None),
    ],
)
def test_only_mean_pooling_is_taken(
    modules: list[str], pooling: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path, "mpnet", "sentence-embedding")
    listed = [
        {"type": f"sentence_transformers.models.{name}", "path": f"{number}_{name}"}
        for number, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    source = identify(str(folder))
    if message is None:
        assert load_model(source, meta=True).task == "sentence-embedding"
    else:
        with pytest.raises(ModelError, match=message):
            load_model(source)


def test_a_tokenizer_with_more_tokens_than_words_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "bert", "bert")
    other = tiny_checkpoint(tmp_path / "roberta", "roberta")
    shutil.copy(other / "tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(ModelError, match="586 tokens and the word table has 136 rows"):
        load_model(identify(str(folder)))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json is damaged"):
        load_model(identify(str(folder)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.safetensors", "weights alone"),
        ("pytorch_model.bin", "is a pickle"),
        ("model.txt", "no model that we know"),
    ],
)
def test_files_that_are_no_models_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"content")
    with pytest.raises(ModelError, match=message):
        identify(str(tmp_path / name))


def test_a_hub_model_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ModelError, match="the hub does not give it"):
        identify("nobody/no-such-model")


def test_an_unknown_sample_is_refused() -> None:
    with pytest.raises(EdgekitError):
        identify("sample:unknown")
