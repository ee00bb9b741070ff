"""Copies with words replaced: by which words, how often, and never with a label."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.examples import IGNORED
from edgekit.model import Model, identify, load_model
from edgekit.step import Context
from edgekit.steps.distill import augment
from edgekit.steps.distill import rows as rows_of
from edgekit.steps.distill.augment import augmented
from edgekit.steps.distill.candidates import Table, guesses, table_of, whole_words
from edgekit.steps.distill.distill import Distill
from edgekit.steps.distill.masked import load_guesser
from edgekit.steps.heldout import set_aside
from edgekit.workbench import encode
from tests.tiny import WORDS, tiny_checkpoint, tiny_texts

TEXT = "My Card was stolen in London, please help me! 24 hours"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(identify(str(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))))


@pytest.fixture(scope="module")
def table(bert: Model) -> Table:
    found = table_of(bert)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def guesser_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    folder = tiny_checkpoint(tmp_path_factory.mktemp("mlm"), task="sentence-embedding", seed=3)
    config = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(3)
    module: Any = transformers.AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    module.save_pretrained(folder)
    return folder


def copies(rows: Rows, teacher: Model, folder: Path, count: int = 4, **options: Any) -> Rows:
    return augmented(rows, teacher, copies=count, folder=folder, **{"seed": 0, **options})


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
def test_whole_words_stand_for_a_word_by_themselves(tmp_path: Path, family: str) -> None:
    from tokenizers import Tokenizer

    model = load_model(identify(str(tiny_checkpoint(tmp_path, family))))
    preprocessor: Any = model.preprocessor
    tokenizer = Tokenizer.from_str(preprocessor.tokenizer_json)
    known = whole_words(tokenizer)
    # A byte-level tokenizer's merges make other pieces of some.
    assert len(set(WORDS) - set(known.values())) <= (20 if family == "roberta" else 0)
    assert len(set(known.values())) == len(known)
    for number, word in known.items():
        assert word.isalpha()
        assert tokenizer.encode("x " + word, add_special_tokens=False).ids[-1] == number


def test_neighbours_are_the_largest_cosines_of_the_teachers_own_table(
    bert: Model, table: Table
) -> None:
    module: Any = bert.module
    preprocessor: Any = bert.preprocessor
    weights = module.bert.embeddings.word_embeddings.weight.detach().double().numpy()
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(preprocessor.tokenizer_json)
    for word in ("card", "London", "cards", "abc"):  # the last two are of several pieces
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        vector = weights[ids].mean(0)
        cosines = {
            other: vector
            @ weights[number]
            / np.linalg.norm(vector)
            / np.linalg.norm(weights[number])
            for number, other in whole_words(tokenizer).items()
            if other != word.lower()
        }
        expected = sorted(cosines, key=lambda other: -cosines[other])[:15]
        assert table.nearest([word])[0] == tuple(expected)
    assert table.nearest(["日本"])[0] == ()  # unknown to this tokenizer


def test_two_words_of_five_are_replaced_and_nothing_else(
    bert: Model, table: Table, tmp_path: Path
) -> None:
    texts = tuple(f"{text} 24, {text}!" for text in tiny_texts(60))
    made = copies(Rows(texts=texts), bert, tmp_path, 10)
    assert made.labels is None and made.texts is not None
    assert not set(made.texts) & set(texts) and len(set(made.texts)) == len(made.texts)
    assert 0.9 * 600 < len(made.texts) <= 600
    changed = total = 0
    by_gaps = {tuple(augment._WORD.split(text)): text for text in texts}
    for text in made.texts:
        # What is between words is the source's own, and tells which it was if one is alike.
        gaps = tuple(augment._WORD.split(text))
        assert gaps in by_gaps
    first = Rows(texts=(texts[0],))
    words = augment._WORD.findall(texts[0])
    near = dict(zip(words, table.nearest(words), strict=True))
    for text in copies(first, bert, tmp_path, 90).texts or ():
        for word, other in zip(words, augment._WORD.findall(text), strict=True):
            total += 1
            changed += word != other
            assert other == word or other in near[word]
    assert changed / total == pytest.approx(0.4, abs=0.06)


def test_capitals_stay(bert: Model, tmp_path: Path) -> None:
    for text in copies(Rows(texts=(TEXT,)), bert, tmp_path, 20).texts or ():
        words = augment._WORD.findall(text)
        assert [word[0].isupper() for word in words[:2]] == [True, True]
        assert text.endswith(" hours") or "! 24 " in text


def test_the_seed_decides_and_the_folder_keeps(
    bert: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(texts=tuple(tiny_texts(20)))
    made = copies(rows, bert, tmp_path / "a")
    assert copies(rows, bert, tmp_path / "b") == made != copies(rows, bert, tmp_path, seed=1)
    # Of the first texts the same copies are made, whatever comes behind.
    assert (copies(rows.take(range(5)), bert, tmp_path).texts or ())[:3] == (made.texts or ())[:3]
    (kept,) = (tmp_path / "a").iterdir()
    monkeypatch.setattr(augment, "table_of", lambda model: pytest.fail("made twice"))
    assert copies(rows, bert, tmp_path / "a") == made
    kept.write_text("[[")
    with pytest.raises(pytest.fail.Exception):
        copies(rows, bert, tmp_path / "a")


def test_pairs_and_rows_of_words_stay_what_they_are(bert: Model, tmp_path: Path) -> None:
    texts = tuple(tiny_texts(8))
    made = copies(Rows(texts=texts, pairs=texts[::-1]), bert, tmp_path)
    assert made.texts is not None and made.pairs is not None
    assert len(made.texts) == len(made.pairs) > 20
    words = tuple(tuple(text.split()) for text in texts)
    tagged = copies(
        Rows(words=words, labels=tuple(tuple("O" for _ in w) for w in words)), bert, tmp_path
    )
    assert tagged.labels is None and tagged.words is not None and tagged.texts is None
    assert {len(row) for row in tagged.words} <= {len(row) for row in words}


def test_without_a_table_words_move_and_go(bert: Model, tmp_path: Path) -> None:
    source = tuple("abcdefghijklmnopqrst")
    plain = replace(bert, architecture=None)
    made = copies(Rows(words=(source,)), plain, tmp_path, 60).words
    assert made is not None and len(made) > 55
    assert all(set(row) <= set(source) and len(set(row)) == len(row) for row in made)
    assert all(row != tuple(sorted(row)) or len(row) < 20 for row in made)
    assert np.mean([len(row) for row in made]) == pytest.approx(18, abs=0.6)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=4))
def test_any_text_is_taken(bert: Model, tmp_path: Path, texts: list[str]) -> None:
    for teacher in (bert, replace(bert, architecture=None)):
        made = copies(Rows(texts=tuple(texts)), teacher, tmp_path, 2)
        assert made.texts is not None and len(made.texts) <= 2 * len(texts)


def test_a_language_model_guesses_each_word_in_its_place(guesser_folder: Path) -> None:
    guesser = load_guesser(guesser_folder)
    preprocessor: Any = guesser.preprocessor
    module: Any = guesser.module
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(preprocessor.tokenizer_json)
    known = whole_words(tokenizer)
    texts = ["my card is lost", "please help me with xyz", "how long does it take to arrive"]
    spans = [[word.span() for word in augment._WORD.finditer(text)] for text in texts]
    found = guesses(guesser, texts, spans, lambda *_: None)
    for text, each, several in zip(texts, spans, found, strict=True):
        for (start, end), words in zip(each, several, strict=True):
            if text[start:end] not in known.values():
                assert words == ()
                continue
            masked = f"{text[:start]}[MASK]{text[end:]}"
            encoding = tokenizer.encode(masked)
            with torch.inference_mode():
                scores = module(input_ids=torch.tensor([encoding.ids])).logits[0]
            place = encoding.tokens.index("[MASK]")
            order = [n for n in scores[place].argsort(descending=True).tolist() if n in known]
            assert words == tuple(known[n] for n in order[:15])


def test_guesses_come_before_neighbours(
    bert: Model, table: Table, guesser_folder: Path, tmp_path: Path
) -> None:
    guesser = load_guesser(guesser_folder)
    text = "my card qqq"
    spans = [word.span() for word in augment._WORD.finditer(text)]
    likely = guesses(guesser, [text], [spans], lambda *_: None)[0]
    offered = [likely[0], likely[1], table.nearest(["qqq"])[0]]
    made = copies(Rows(texts=(text,)), bert, tmp_path, 60, guesser=guesser).texts or ()
    seen = list(zip(*(augment._WORD.findall(each) for each in made), strict=True))
    for own, words, several in zip(text.split(), offered, seen, strict=True):
        assert set(several) <= {own, *words} and len(set(several)) > 5


def test_rows_to_learn_from_leave_out_what_is_set_aside(bert: Model, tmp_path: Path) -> None:
    texts = tuple(f"{text} {number}" for number, text in enumerate(tiny_texts(40)))
    rows = Rows(texts=texts, labels=tuple(itertools.islice(itertools.cycle("abc"), 40)))
    learned, judged = set_aside(rows, 0)
    extra = Rows(texts=("new", *(judged.texts or ()), "newer"))
    context = Context(rows, 0, tmp_path, original=bert, unlabeled=extra)
    whole, chosen = rows_of.learning_rows(context)
    taken = whole.take(chosen)
    assert taken.texts == (*(learned.texts or ()), "new", "newer")
    assert taken.labels == (*(learned.labels or ()), None, None)
    ids = rows_of.gold_ids(bert, taken, encode(bert, taken))
    assert ids[-2:].tolist() == [IGNORED, IGNORED]
    assert ids[:36].tolist() == ["abc".index(label) for label in learned.labels or ()]
    more = rows_of.with_copies(context, 2, None).unlabeled
    assert more is not None and (more.texts or ())[: len(extra)] == extra.texts
    assert 40 < len(more) - len(extra) <= 72
    assert rows_of.learning_rows(replace(context, unlabeled=None))[0] is rows


def test_pairs_beside_single_texts_are_single_texts() -> None:
    texts = tuple(tiny_texts(40))
    rows = Rows(texts=texts, pairs=tuple(f"{text} x" for text in texts), labels=40 * (0.5,))
    learned, judged = set_aside(rows, 0)
    extra = Rows(texts=("new", (judged.pairs or ("",))[0]))
    whole, chosen = rows_of.learning_rows(Context(rows, 0, unlabeled=extra))
    taken = whole.take(chosen)
    assert taken.texts == (*(learned.texts or ()), *(learned.pairs or ()), "new")
    assert taken.pairs is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": -1}, "augment is how many copies of each text, 0 to 100, is -1"),
        ({"augment": 101}, "augment is how many"),
        ({"augment_with": Path("x")}, "augment-with is for augmented copies"),
        ({"augment": 2, "augment_with": Path("nowhere")}, "nowhere"),
    ],
)
def test_refusals(bert: Model, options: dict[str, Any], said: str) -> None:
    rows = Rows(texts=tuple(tiny_texts(40)))
    with pytest.raises(RecipeError, match=said):
        Distill(**options).requires(bert, Context(rows, 0, original=bert))


def test_only_text_is_augmented(bert: Model, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="it replaces words"):
        copies(Rows(arrays={"x": np.zeros((2, 2))}), bert, tmp_path)
