"""Gaps are chosen by seed and place, alone teach the encoder, and leave the classifier alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from edgekit.data import Rows
from edgekit.errors import EdgekitError
from edgekit.model import identify, load_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.factorize.embedding import FactorizeEmbedding
from edgekit.steps.finetune.masking import Masking
from edgekit.steps.finetune.mlm_head import HEADS, gap_filler
from edgekit.structure import sharing_copy
from tests.tiny import WORDS, tiny_checkpoint, tiny_texts

MASKING = Masking(mask=4, special=(0, 1, 2, 3, 4), tokens=100, share=0.15, seed=3)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _rows(count: int, length: int) -> tuple[Any, Any, Any]:
    ids = np.random.default_rng(0).integers(5, 100, (count, length))
    ids[:, 0], ids[:, -3:] = 2, 0
    return ids, (ids != 0).astype(np.int64), np.arange(count)


def test_fifteen_percent_are_chosen_and_four_fifths_of_them_hidden() -> None:
    ids, real, rows = _rows(400, 104)
    hidden, chosen = MASKING.apply(ids, real, rows, 0)
    assert (chosen.sum(1) == 15).all()
    assert not chosen[:, 0].any() and not chosen[:, -3:].any()
    assert np.array_equal(hidden[~chosen], ids[~chosen])
    masked, kept = (hidden == 4)[chosen].mean(), (hidden == ids)[chosen].mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    # A random token is the same by chance once in 95.
    assert kept == pytest.approx(0.1 + 0.1 / 95, abs=0.02)
    strange = hidden[chosen & (hidden != 4) & (hidden != ids)]
    assert strange.min() >= 5 and len(np.unique(strange)) == 95


def test_the_choice_is_of_seed_place_and_row_whatever_the_batch() -> None:
    ids, real, rows = _rows(40, 30)
    hidden, chosen = MASKING.apply(ids, real, rows, 7)
    part = slice(1, None, 2)
    again, same = MASKING.apply(ids[part], real[part], rows[part], 7)
    assert np.array_equal(hidden[part], again) and np.array_equal(chosen[part], same)
    assert not np.array_equal(MASKING.apply(ids, real, rows, 8)[1], chosen)


def test_a_row_of_special_tokens_has_no_gap_and_a_short_one_has_one() -> None:
    ids, real = np.array([[2, 3, 0], [2, 9, 3]]), np.array([[1, 1, 0], [1, 1, 1]])
    assert MASKING.apply(ids, real, np.arange(2), 0)[1].tolist() == [
        [False, False, False],
        [False, True, False],
    ]


def _sentences(path: Path, count: int = 200) -> Path:
    """Words that stand in their usual order, so that a gap can be filled."""
    chance = np.random.default_rng(0)
    starts = chance.integers(0, len(WORDS) - 8, count)
    path.write_text("\n\n".join(" ".join(WORDS[start : start + 8]) for start in starts))
    return path


@pytest.mark.parametrize(
    ("family", "saved"),
    [("bert", True), ("distilbert", False), pytest.param("roberta", True, marks=pytest.mark.slow)],
)
def test_the_encoder_learns_to_fill_gaps_and_the_classifier_stays(
    tmp_path: Path, family: str, saved: bool
) -> None:
    folder = tiny_checkpoint(tmp_path / "model", family)
    task = None
    if saved:
        config = load_model(identify(str(folder))).module.config  # type: ignore[union-attr]
        AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
        task = "sentence-embedding"
    model = load_model(identify(str(folder)), task=task)
    text = _sentences(tmp_path / "text.txt")
    step = parse_step(f"pretrain-mlm:text={text},epochs=4,learning-rate=0.005").step
    made = apply_steps([step], model, Context(None, 0, tmp_path / "scratch"))
    assert ("the checkpoint's own head" in made.lineage[-1]) == saved
    found = re.search(r"set aside ([\d.]+) before, ([\d.]+) after", made.lineage[-1])
    assert found is not None and float(found[2]) < 0.9 * float(found[1])
    before, after = model.module.state_dict(), made.module.state_dict()
    heads = [name for name in before if "classifier" in name]
    assert all(before[name].equal(after[name]) for name in heads)
    words = next(name for name in before if name.endswith("word_embeddings.weight"))
    assert not before[words].equal(after[words])


@pytest.mark.parametrize("family", HEADS)
def test_scores_are_transformers_own_and_gaps_alone_have_gradients(
    tmp_path: Path, family: str
) -> None:
    """With the saved head; at the chosen places; the states of others get nothing."""
    folder = tiny_checkpoint(tmp_path, family)
    config = load_model(identify(str(folder))).module.config  # type: ignore[union-attr]
    torch.manual_seed(1)
    whole = AutoModelForMaskedLM.from_config(config).eval()
    whole.save_pretrained(folder)
    model = load_model(identify(str(folder)), task="sentence-embedding")
    filler, begun = gap_filler(model, 0)
    assert "own head" in begun
    ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    chosen = torch.zeros(2, 6, dtype=torch.bool)
    chosen[0, 2] = chosen[1, 4] = True
    states: list[Any] = []
    module: Any = model.module

    def watch(layer: Any, given: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        states.append(output.last_hidden_state)

    module.register_forward_hook(watch)
    scores = filler.eval()(inputs, chosen)
    with torch.no_grad():
        wanted = whole(**inputs).logits[chosen]
    assert torch.allclose(scores, wanted, atol=1e-5)
    torch.nn.functional.cross_entropy(scores, ids[chosen]).backward()
    assert (states[0].grad.abs().sum(-1) > 0).equal(chosen)


@pytest.mark.parametrize("family", HEADS)
def test_a_factored_table_is_the_decoder_too(tmp_path: Path, family: str) -> None:
    """The scores are those of the multiplied table, and learning reaches both of its factors."""
    folder = tiny_checkpoint(tmp_path, family)
    whole = load_model(identify(str(folder)), task="sentence-embedding")
    factors = apply_steps([FactorizeEmbedding(rank=4)], whole, Context(None, 0))
    merged = whole.with_module(sharing_copy(whole.module), "")
    assert factors.architecture is not None and factors.architecture.embeddings is not None
    table: Any = factors.architecture.embeddings(factors.module).words
    words: Any = factors.architecture.word_embeddings(merged.module)
    words.weight = torch.nn.Parameter((table.left.weight @ table.right.weight.T).detach())
    ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    chosen = torch.ones(2, 6, dtype=torch.bool)
    fillers = [gap_filler(each, 0)[0].eval() for each in (factors, merged)]
    ours, theirs = (each(inputs, chosen) for each in fillers)
    assert torch.allclose(ours, theirs, atol=1e-4)
    # Without the way in, what reaches the factors comes through the decoder.
    table.left.weight.grad = table.right.weight.grad = None
    ours.square().sum().backward()
    unused = torch.ones(len(table.left.weight), dtype=torch.bool)
    unused[ids.unique()] = False
    assert table.left.weight.grad[unused].abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("bert", "", "needs text"),
        ("bert", "text=nowhere.txt", r"no file nowhere\.txt"),
        ("bert", "text={few}", "2 texts are too few"),
        ("bert", "share=1.0", "above 0 and below 1"),
        ("xlnet", "text={many}", "was not made to fill gaps"),
    ],
)
def test_refusals(tmp_path: Path, family: str, options: str, said: str) -> None:
    few, many = tmp_path / "few.txt", _sentences(tmp_path / "many.txt", 40)
    few.write_text("one\n\ntwo\n")
    options = options.format(few=few, many=many)
    step = parse_step(f"pretrain-mlm:{options}" if options else "pretrain-mlm").step
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "model", family))), meta=True)
    with pytest.raises(EdgekitError, match=said) as caught:
        apply_steps([step], model, Context(None, 0))
    assert caught.value.exit_code == 2


def test_training_rows_are_text_too(tmp_path: Path) -> None:
    model = load_model(identify(str(tiny_checkpoint(tmp_path))), meta=True)
    rows = Rows(texts=tuple(tiny_texts(40, 0)))
    step = parse_step("pretrain-mlm").step
    assert apply_steps([step], model, Context(rows, 0)).lineage == ()
