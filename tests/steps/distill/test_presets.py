"""Losses on a model: nothing to learn from oneself, presets end to end, what is refused."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.examples import Batch, Examples, collate
from edgekit.model import Model, identify, load_model, reference_outputs, save_model
from edgekit.recipe import parse_step
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.inside import Mentor, watched, whole_forward
from edgekit.steps.distill.lessons import INSIDE, Lesson
from edgekit.steps.distill.losses import soft_cross_entropy
from edgekit.steps.distill.masked import Mask
from edgekit.steps.distill.pupil import Beside, Pupil, lesson_loss
from edgekit.steps.distill.recovery import recovery
from edgekit.workbench import encode
from tests.tiny import tiny_checkpoint, tiny_texts, tiny_tokenizer

ROWS = Rows(texts=tuple(tiny_texts(40)), labels=("a", "b", "c", "a") * 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of four layers, and a masked language model with the same tokens."""
    made = tmp_path_factory.mktemp("distill")
    tiny_checkpoint(made / "bert", num_hidden_layers=4, intermediate_size=48)
    config = transformers.AutoConfig.from_pretrained(made / "bert")
    torch.manual_seed(1)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(made / "guesser")
    tiny_tokenizer("bert").save_pretrained(made / "guesser")
    return made


@pytest.fixture(scope="module")
def bert(folder: Path) -> Model:
    return load_model(identify(str(folder / "bert")))


def _distilled(model: Model, folder: Path, *steps: str, rows: Rows = ROWS) -> Model:
    context = Context(rows, 0, folder / "scratch")
    return apply_steps([parse_step(step).step for step in steps], model, context)


def _loss(lesson: Lesson, student: Model, teacher: Model, folder: Path) -> Any:
    """The lesson's loss on six padded rows."""
    depth = range(1, 5)
    pairs = tuple(zip(depth, depth, strict=True))
    mine, theirs = lesson.views(pairs)
    encoded = encode(teacher, ROWS)
    mentor = Mentor(teacher, whole_forward(teacher), encoded, theirs, folder)
    pupil = Pupil(whole_forward(student), None)
    batch = collate(
        Examples(encode(student, ROWS), teacher=reference_outputs(teacher, encoded)), np.arange(6)
    )
    with watched(student, mine) as seen:
        found = lesson_loss(lesson, student, Beside(pupil, mentor, pairs, mine), seen)(
            pupil,
            Batch(**batch),  # type: ignore[arg-type]
        )
    return float(found.detach())


@pytest.mark.parametrize("name", INSIDE)
def test_there_is_nothing_to_learn_from_oneself(bert: Model, tmp_path: Path, name: str) -> None:
    teacher = replace(bert, module=copy.deepcopy(bert.module))
    other = load_model(identify(str(tiny_checkpoint(tmp_path / "o", num_hidden_layers=4, seed=3))))
    same = replace(bert, module=copy.deepcopy(bert.module))
    lesson = Lesson({name: 1.0})
    assert _loss(lesson, same, teacher, tmp_path) <= 1e-10
    assert _loss(lesson, other, teacher, tmp_path) > 1e-4


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("preset=tinybert,epochs=2", 2),
        pytest.param("preset=minilm,epochs=2", 2, marks=pytest.mark.slow),
        pytest.param("preset=minilm-v2,epochs=2", 2, marks=pytest.mark.slow),
        pytest.param("preset=xcompression,epochs=2", 2, marks=pytest.mark.slow),
        ("losses=kl+0.5*labels+logits+0.1*cosine,map=1-4,epochs=1", 1),
    ],
)
def test_presets_teach_fewer_layers(bert: Model, tmp_path: Path, options: str, steps: int) -> None:
    made = _distilled(bert, tmp_path, "student:layers=2", f"distill:{options}")
    assert made.lineage[-1].count(" steps of ") == steps
    before = apply_steps([parse_step("student:layers=2").step], bert, Context(None, 0))
    changed, whole = made.module.state_dict(), before.module.state_dict()
    # Nothing of the training is left in what is saved, and the encoder learned.
    assert {n: t.shape for n, t in changed.items()} == {n: t.shape for n, t in whole.items()}
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(changed[name], whole[name])


def test_a_narrow_student_is_taught_through_a_projection(bert: Model, tmp_path: Path) -> None:
    made = _distilled(
        bert, tmp_path, "student:layers=2,hidden=12,ffn=16", "distill:preset=tinybert,epochs=3"
    )
    save_model(made, tmp_path / "made")
    with safe_open(tmp_path / "made" / "model.safetensors", "pt") as saved:
        assert {name.partition(".")[0] for name in saved.keys()} == {"bert", "classifier"}  # noqa: SIM118


def test_masked_words_are_taught_to_a_factored_table(
    bert: Model, folder: Path, tmp_path: Path
) -> None:
    """Words that no text has learn too: by the decoder, which is the product of both factors."""
    step = f"distill:losses=mlm,teachers={folder / 'guesser'},epochs=1,batch=8"
    rows = Rows(texts=("my card",) * 40)
    before = apply_steps([parse_step("factorize-embedding:rank=8").step], bert, Context(None, 0))
    made = _distilled(bert, tmp_path, "factorize-embedding:rank=8", step, rows=rows)
    tables = [each.module.bert.embeddings.word_embeddings for each in (before, made)]
    moved = (tables[0].left.weight != tables[1].left.weight).any(1)
    assert moved.float().mean() > 0.9
    assert list(made.module.state_dict()) == list(before.module.state_dict())


@pytest.mark.parametrize(
    "preset",
    [
        "distilbert",
        pytest.param("biomedical", marks=pytest.mark.slow),
        pytest.param("compact-biomedical", marks=pytest.mark.slow),
    ],
)
def test_masked_words_are_taught_and_the_head_is_left_behind(
    bert: Model, folder: Path, tmp_path: Path, preset: str
) -> None:
    step = f"distill:preset={preset},teachers={folder / 'guesser'},epochs=2,batch=8"
    rows = replace(ROWS, labels=None)
    made = _distilled(bert, tmp_path, "student:layers=2", step, rows=rows)
    assert f"distilled as {preset}" in made.lineage[-1]
    whole = apply_steps([parse_step("student:layers=2").step], bert, Context(None, 0))
    changed, before = made.module.state_dict(), whole.module.state_dict()
    assert list(changed) == list(before)
    same = {name for name in changed if torch.equal(changed[name], before[name])}
    assert {"classifier.weight", "classifier.bias"} <= same
    assert "bert.encoder.layer.1.output.dense.weight" not in same


def test_words_are_masked_as_devlin_says(bert: Model) -> None:
    """15 % of the tokens that are words: 80 % of them masked, a tenth random, a tenth as it was."""
    encoded = encode(bert, Rows(texts=tuple(tiny_texts(3000))))
    ids, mask = (torch.tensor(encoded.arrays[n]).long() for n in ("input_ids", "attention_mask"))
    torch.manual_seed(0)
    masked, guessed = Mask(bert)(ids, mask)
    chosen = guessed != -100
    assert torch.equal(guessed[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    tokenizer = tiny_tokenizer("bert")
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not (chosen & special & (ids != tokenizer.unk_token_id)).any()
    words = (mask == 1) & ~special
    assert float(chosen[words].float().mean()) == pytest.approx(0.15, abs=0.01)
    became = masked[chosen] == tokenizer.mask_token_id
    stayed = masked[chosen] == ids[chosen]
    assert float(became.float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float(stayed.float().mean()) == pytest.approx(0.1, abs=0.03)


def test_masked_kl_has_no_gradient_elsewhere() -> None:
    words = torch.randn(2, 5, 9, requires_grad=True)
    guessed = torch.tensor([[-100, 3, -100, -100, 1], [-100, -100, -100, 7, -100]])
    soft_cross_entropy(words, torch.randn(2, 5, 9), 2.0, guessed != -100).backward()
    assert words.grad is not None
    assert torch.equal((words.grad != 0).any(-1), guessed != -100)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (("drop-layers:count=2",), "kl+hidden of each layer, since 2 of 4 layers are left"),
        (("drop-layers:count=1",), "kl+hidden of the last layer, since 3 of 4 layers are left"),
        (("prune-ffn:ratio=0.5,importance=magnitude",), "kl+hidden of each layer, since heads or"),
        (("student:layers=2,hidden=12",), "tinybert, since states are narrower"),
        (("factorize:method=II,rank=8",), "xcompression, since matrices are factored"),
        (("trim-vocabulary",), "kl, since no layer, head or neuron is gone"),
    ],
)
def test_recovery_chooses_by_what_became_of_the_model(
    bert: Model, tmp_path: Path, steps: tuple[str, ...], said: str
) -> None:
    made = _distilled(bert, tmp_path, *steps)
    assert recovery(made, bert, ROWS)[1].startswith(said)


@pytest.mark.parametrize(
    ("student", "options", "said"),
    [
        ("layers=3,init=1-2-3", "losses=hidden", "3 does not divide 4"),
        ("layers=2", "losses=kl+hiden", "there is no loss 'hiden'"),
        ("layers=2", "preset=tinybert,losses=kl", "exclude each other"),
        ("layers=2", "losses=kl,labels=0.5", "labels is the share of gold labels"),
        ("layers=2", "preset=distilbert", "name the checkpoint of a masked language model"),
        ("layers=2", "losses=kl+mlm,teachers={guesser}", "teach them in two steps"),
        ("layers=2", "losses=mlm,teachers={bert}", "has no head for masked words"),
        ("layers=2", "preset=tinybert,teachers={bert};{bert}", "there are 2 teachers"),
        ("layers=2", "losses=logits,teachers={bert};{bert}", "no logits in common; take kl"),
        ("layers=2", "teachers={guesser}", "does sentence-embedding and the student"),
        ("layers=2", "teachers={guesser}x", "there is no teacher at"),
        ("layers=2,hidden=12,heads=2", "losses=attention", "take relations instead"),
        ("layers=2,hidden=10,heads=2", "losses=relations", "do not part into the 4 heads"),
    ],
)
def test_refusals(
    bert: Model, folder: Path, tmp_path: Path, student: str, options: str, said: str
) -> None:
    named = {name: folder / name for name in ("bert", "guesser")}
    with pytest.raises(RecipeError, match=said):
        _distilled(bert, tmp_path, f"student:{student}", f"distill:{options}".format(**named))
    assert not list((tmp_path / "scratch" / "step-1").glob("*"))


def test_masked_words_want_the_teachers_words(bert: Model, folder: Path, tmp_path: Path) -> None:
    steps = ("trim-vocabulary", f"distill:losses=mlm,teachers={folder / 'guesser'}")
    with pytest.raises(RecipeError, match="put trim-vocabulary behind distill"):
        _distilled(bert, tmp_path, *steps)
