"""Fine-tuning changes what it says and nothing else; the biases alone are a delta of the base."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSequenceClassification

from edgekit.cli import run
from edgekit.data import Rows
from edgekit.errors import ModelError, RecipeError
from edgekit.model import Model, identify, load_model, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.finetune.delta import apply_delta, make_delta
from tests.tiny import WORDS, tiny_checkpoint, tiny_texts
from tests.tiny_data import images

LAYERS, WIDTH, WIDER = 2, 32, 64


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": WIDER}
    return tiny_checkpoint(folder, "bert", num_attention_heads=4, **sizes)


def labelled(count: int = 160, seed: int = 0) -> Rows:
    """Texts whose label is which third of the words their first word is of."""
    texts = tuple(tiny_texts(count, seed))
    places = {word: number for number, word in enumerate(WORDS)}
    labels = [min(2, 3 * places.get(text.split()[0], 0) // len(WORDS)) for text in texts]
    return Rows(texts=texts, labels=tuple("abc"[label] for label in labels))


def tuned(base: Path, folder: Path, options: str, rows: Rows | None = None) -> Model:
    model = load_model(identify(str(base)))
    step = parse_step(f"finetune:{options}").step
    return apply_steps([step], model, Context(rows or labelled(), 0, folder / "scratch"))


@pytest.fixture(scope="module")
def bitfit(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that learning the biases makes of the base."""
    folder = tmp_path_factory.mktemp("bitfit")
    model = tuned(base, folder, "what=bias,epochs=6,learning-rate=0.01")
    save_model(model, folder / "tuned")
    return folder / "tuned"


@pytest.mark.slow
def test_bias_learns_biases_and_head_and_every_other_tensor_stays(base: Path, bitfit: Path) -> None:
    before, after = (load_file(path / "model.safetensors") for path in (base, bitfit))
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    # Keys' biases cancel in the softmax: they have no gradient but rounding.
    may = {name for name in before if name.endswith(".bias") or name.startswith("classifier.")}
    must = {name for name in may if ".key." not in name}
    assert must <= changed <= may
    biases = sum(before[name].size for name in may if not name.startswith("classifier."))
    assert biases == LAYERS * (7 * WIDTH + WIDER) + 2 * WIDTH
    lineage = json.loads((bitfit / "edgekit.json").read_text())["lineage"][-1]
    assert f"fine-tuned bias: {biases + 3 * WIDTH + 3:,} of " in lineage
    assert re.search(
        r"on 16 training rows set aside, accuracy [\d.]+% before, [\d.]+% after", lineage
    )
    assert _loss(bitfit) < 0.9 * _loss(base)


def _loss(checkpoint: Path) -> float:
    """Cross entropy on the rows, by transformers alone."""
    from transformers import AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    rows = labelled()
    batch = AutoTokenizer.from_pretrained(checkpoint)(
        list(rows.texts or ()), padding=True, return_tensors="pt"
    )
    labels = torch.tensor(["abc".index(str(label)) for label in rows.labels or ()])
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(model(**batch).logits, labels))


def test_the_count_of_biases_of_bert_base_is_the_papers() -> None:
    from transformers import BertConfig

    from edgekit.architectures import architecture
    from edgekit.steps.finetune.finetune import learning_names

    with torch.device("meta"):
        module = AutoModelForSequenceClassification.from_config(BertConfig())
    model = Model(module, "text-classification", "single-label", architecture("bert"), None, ())
    named = dict(module.named_parameters())
    chosen = [named[name].numel() for name in learning_names(model, "bias")]
    assert sum(chosen) - 2 * 768 - 2 == 102_912


def test_head_learns_pooler_and_classifier_alone(base: Path, tmp_path: Path) -> None:
    model = tuned(base, tmp_path, "what=head,epochs=2")
    before, after = load_model(identify(str(base))).module.state_dict(), model.module.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    heads = ("classifier.weight", "classifier.bias")
    assert changed == {*heads, "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert not model.module.training and all(p.requires_grad for p in model.module.parameters())


@pytest.mark.slow
def test_full_learns_everything_with_dropout_and_patience(base: Path, tmp_path: Path) -> None:
    options = "epochs=30,learning-rate=0.02,patience=1,precision=bf16"
    model = tuned(base, tmp_path, options)
    before = load_model(identify(str(base))).module.state_dict()
    after = model.module.state_dict()
    # Rows of words that no text has only decay.
    assert not any(before[name].equal(after[name]) for name in before)
    assert "patience 1" in model.lineage[-1] and "was put back" in model.lineage[-1]


@pytest.mark.parametrize(
    ("family", "task", "problem"),
    [
        ("distilbert", "text-classification", "multi-label"),
        pytest.param("roberta", "text-classification", "regression", marks=pytest.mark.slow),
        pytest.param("albert", "token-classification", "single-label", marks=pytest.mark.slow),
        ("resnet", "image-classification", "single-label"),
    ],
)
def test_every_task_learns(tmp_path: Path, family: str, task: str, problem: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family, task, problem=problem)
    rows = labelled(48)
    if problem == "multi-label":
        rows = replace(rows, labels=tuple(("a", "b")[: n % 3] for n in range(48)))
    if problem == "regression":
        rows = replace(rows, labels=tuple(n % 5 / 2 for n in range(48)))
    if task == "token-classification":
        words = tuple(tuple(text.split()) for text in rows.texts or ())
        rows = Rows(words=words, labels=tuple(tuple("abc"[len(w) % 3] for w in r) for r in words))
    if task == "image-classification":
        rows = Rows(images=images(48), labels=tuple("abc"[n % 3] for n in range(48)))
    model = tuned(folder, tmp_path, "what=bias,epochs=1", rows)
    before = load_model(identify(str(folder))).module.state_dict()
    after = model.module.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and not any("running" in name for name in changed)
    assert all(n.rpartition(".")[2] == "bias" or "classifier" in n for n in changed)


@pytest.mark.parametrize(
    ("options", "rows", "said"),
    [
        ("", None, "needs training rows; give --data"),
        ("", Rows(texts=tuple(tiny_texts(40, 0))), "with labels"),
        ("epochs=0", labelled(40), "epochs must be above zero"),
        ("patience=0", labelled(40), "patience must be at least 1"),
    ],
)
def test_refusals(base: Path, tmp_path: Path, options: str, rows: Any, said: str) -> None:
    from edgekit.errors import EdgekitError

    step = parse_step(f"finetune:{options}" if options else "finetune").step
    with pytest.raises(EdgekitError, match=said) as caught:
        apply_steps([step], load_model(identify(str(base))), Context(rows, 0, tmp_path))
    assert caught.value.exit_code == 2


# Deltas


def test_a_delta_goes_round_and_holds_what_changed(
    base: Path, bitfit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "task.delta", tmp_path / "merged"
    assert run(["delta", str(base), str(bitfit), "--output", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"] == file.stat().st_size
    assert run(["apply-delta", str(base), str(file), "--output", str(folder)]) == 0
    for path in bitfit.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert {path.name for path in folder.iterdir()} == {path.name for path in bitfit.iterdir()}
    with safe_open(file, "np") as delta:
        names = set(delta.keys())
    assert all(name.endswith(".bias") or name.startswith("classifier.") for name in names)


def test_deltas_of_two_tasks_share_an_encoder_without_a_head(
    base: Path, bitfit: Path, tmp_path: Path
) -> None:
    """The encoder alone, by its own names, as it is published; half the precision is another."""
    make_delta(str(base), str(bitfit), tmp_path / "delta")
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    tensors = load_file(base / "model.safetensors")
    own = {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    save_file(own, encoder / "model.safetensors", {"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["BertModel"]}
    (encoder / "config.json").write_text(json.dumps(config))
    (encoder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    apply_delta(str(encoder), tmp_path / "delta", tmp_path / "merged")
    merged, wanted = (f / "model.safetensors" for f in (tmp_path / "merged", bitfit))
    assert merged.read_bytes() == wanted.read_bytes()


def _changed(base: Path, folder: Path, name: str) -> Path:
    import shutil

    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    tensors[name].reshape(-1)[0] += np.float32(1e-3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_another_base_is_refused_and_nothing_is_left(
    base: Path, bitfit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "task.delta"
    make_delta(str(base), str(bitfit), file)
    other = _changed(base, tmp_path / "other", "bert.encoder.layer.1.output.dense.weight")
    before = sorted(tmp_path.iterdir())
    code = run(["apply-delta", str(other), str(file), "--output", str(tmp_path / "merged")])
    assert code == 2 and "is not the base" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    # What the delta replaces does not matter.
    same = _changed(base, tmp_path / "same", "classifier.weight")
    apply_delta(str(same), file, tmp_path / "merged")


@pytest.mark.parametrize("damage", ["cut", "text", "kind", "kept", "file", "shape"])
def test_a_damaged_delta_is_refused(base: Path, bitfit: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "task.delta"
    make_delta(str(base), str(bitfit), file)
    tensors = load_file(file)
    with safe_open(file, "np") as opened:
        metadata = dict(opened.metadata())
    if damage == "kept":
        metadata["kept"] = "{"
    if damage == "kind":
        metadata = {"format": "pt"}
    if damage == "file":
        metadata["files"] = json.dumps({"../config.json": "{}", "config.json": "{}"})
    if damage == "shape":
        tensors["classifier.bias"] = np.zeros(7, np.float32)
    save_file(tensors, file, metadata)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    if damage == "text":
        file.write_text("no tensors at all")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError):
        apply_delta(str(base), file, tmp_path / "merged")
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_changed_everywhere_is_no_delta(base: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", "bert", seed=1, hidden_size=WIDTH)
    with pytest.raises(ModelError, match="finetune:what=bias"):
        make_delta(str(base), str(other), tmp_path / "delta")
    assert not (tmp_path / "delta").exists()


def test_a_plain_module_is_refused() -> None:
    model = Model(torch.nn.Linear(2, 2), "module", None, None, None, ())
    with pytest.raises(RecipeError, match="a plain module"):
        apply_steps([parse_step("finetune").step], model, Context(None, 0))
