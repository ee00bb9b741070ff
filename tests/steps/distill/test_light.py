"""Light students from a teacher: alignment, losses, what is learned, and that nothing leaks."""

import csv
import json
import random

import numpy as np
import pytest
import torch

import edgekit
from edgekit.data import Rows
from edgekit.errors import RecipeError
from edgekit.examples import IGNORED, Batch
from edgekit.model import identify, load_model, reference_outputs
from edgekit.preprocess import Encoded
from edgekit.step import Context, apply_steps
from edgekit.steps.distill.light import answer_loss, at_words, build
from edgekit.steps.distill.variations import variations
from edgekit.steps.distill.words import SPECIAL, words_of
from edgekit.train import Training, train
from edgekit.workbench import encode
from tests.fresh import run_fresh
from tests.tiny import tiny_checkpoint, tiny_texts
from tests.tiny_light import KINDS, LABELS, outline, tiny_step, tiny_student, topics
from tests.tiny_project import tiny_project

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def test_words_are_those_of_the_training_text_and_ties_go_by_letters():
    model, _ = tiny_student("cnn", rows=Rows(texts=("b a. b", "C c d?")), vocabulary=5)
    assert words_of(model.preprocessor) == [*SPECIAL, "b", "c", ".", "?", "a"]
    encoded = model.preprocessor.encode(Rows(texts=("B z", "", "?!")))
    assert encoded.arrays["input_ids"].tolist() == [[2, 4, 1], [2, 0, 0], [2, 7, 1]]


def test_in_tagging_each_word_is_one_token_whatever_is_in_it():
    rows = Rows(words=(("U.S.", "it's"), ("U.S.",)))
    model, _ = tiny_student("bilstm", "token-classification", rows)
    encoded = model.preprocessor.encode(Rows(words=(("it's", "U.S.", "new"),)))
    assert encoded.arrays["input_ids"].tolist() == [[2, 5, 4, 1]]
    assert encoded.word_starts[0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("family", ["bert", "albert", "roberta"])
def test_a_tagger_reads_the_models_own_pieces_which_spell_every_word(family, tmp_path):
    task = "token-classification"
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "model", family, task))))
    rows = Rows(words=tuple(tuple(text.split()) for text in tiny_texts(60)))
    step = tiny_step("bilstm", vocabulary=40, embedding=32)
    made = apply_steps([step], model, Context(rows, 0))
    module = made.module
    tokens = words_of(made.preprocessor)
    assert len(tokens) == module.words.num_embeddings < len(words_of(model.preprocessor))
    # A word that no row has, of characters that some have.
    new = Rows(words=(("".join(rows.words[0])[::-1], rows.words[1][0]),))
    ids = encode(made, new).arrays["input_ids"][0].tolist()
    assert not {"[UNK]", "<unk>"} & {tokens[each] for each in ids}
    assert len(ids) > 4 and -1 not in encode(made, new).word_starts[0]
    # Turned and scaled, the first vectors are as far apart as the model's own.
    step.begin(made, model)
    own = words_of(model.preprocessor)
    table = model.architecture.word_embeddings(model.module).weight.detach().numpy()
    theirs = table[[own.index(token) for token in tokens]]
    ours = module.words.weight.detach().numpy()
    kept = [each for each in range(len(tokens)) if each != made.preprocessor.pad_id]
    apart = [np.linalg.norm(each[kept[1:]] - each[kept[:-1]], axis=1) for each in (ours, theirs)]
    np.testing.assert_allclose(apart[0] / apart[0].mean(), apart[1] / apart[1].mean(), rtol=1e-4)
    assert not ours[made.preprocessor.pad_id].any()


def test_a_model_of_whole_words_has_no_pieces_to_give():
    model, rows = tiny_student("cnn", rows=topics(40, 0))
    with pytest.raises(RecipeError, match="student-cnn: pieces: this model reads whole words"):
        apply_steps([tiny_step("cnn", pieces=True)], model, Context(rows, 0))
    made = apply_steps([tiny_step("cnn")], model, Context(rows, 0))
    assert words_of(made.preprocessor)[: len(SPECIAL)] == list(SPECIAL)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_word_dropout_takes_words_and_never_what_stands_around_them(family, tmp_path):
    model = load_model(identify(str(tiny_checkpoint(tmp_path / "model", family))))
    rows = Rows(texts=tuple(tiny_texts(40)))
    made = apply_steps([tiny_step("cnn", pieces=True)], model, Context(rows, 0))
    read = encode(made, rows)
    inputs = {name: torch.from_numpy(array).long() for name, array in read.arrays.items()}
    seen = []

    def forward(ids, mask):
        seen.append(ids)
        return torch.zeros(len(ids), len(made.labels), requires_grad=True)

    outputs = torch.zeros(len(read), len(made.labels))
    answer_loss(made, 1.0, 0.0, 0.5)(forward, Batch(inputs, torch.arange(len(read)), None, outputs))
    before, after = inputs["input_ids"], seen[0]
    changed = before != after
    assert 0.3 < changed.sum() / inputs["attention_mask"].sum() < 0.6
    for row, length in enumerate(read.lengths):
        assert not changed[row, [0, length - 1]].any() and not changed[row, length:].any()
    assert len(after[changed].unique()) == 1


def test_a_teachers_answer_moves_from_the_words_first_token_to_the_students():
    outputs = np.arange(2 * 6 * 2, dtype=np.float32).reshape(2, 6, 2)
    ids = {"input_ids": np.zeros((2, 4), np.int32)}
    theirs = Encoded({}, None, (np.array([1, 4, 5]), np.array([1, -1])))
    ours = Encoded(ids, None, (np.array([1, 2, -1]), np.array([1, 2])))
    moved = at_words(outputs, theirs, ours)
    np.testing.assert_array_equal(moved[0, 1], outputs[0, 1])
    np.testing.assert_array_equal(moved[0, 2], outputs[0, 4])
    np.testing.assert_array_equal(moved[1, 1], outputs[1, 1])
    assert np.isnan(moved).sum() == (8 - 3) * 2


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_the_loss_is_that_of_numpy_and_leaves_out_what_nobody_knows(task):
    chance = np.random.default_rng(0)
    shape = (4, 5, 3) if task == "token-classification" else (4, 3)
    given, wanted = (chance.normal(size=shape).astype(np.float32) for _ in range(2))
    labels = chance.integers(0, 3, shape[:-1])
    labels[0] = IGNORED
    if task == "token-classification":
        wanted[1, 2:] = np.nan
    soft = torch.tensor(given, requires_grad=True)
    batch = Batch({}, torch.arange(4), torch.from_numpy(labels), torch.from_numpy(wanted))
    loss = answer_loss(outline_student(task), 2.0, 0.25, 0.0)
    found = loss(lambda: soft, batch)
    known = ~np.isnan(wanted[..., 0])
    p, q = (_softmax(each[known] / 2) for each in (wanted, given))
    kl = 4 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    held = labels != IGNORED
    hard = -np.log(_softmax(given[held]))[np.arange(held.sum()), labels[held]].mean()
    np.testing.assert_allclose(found.item(), 0.75 * kl + 0.25 * hard, rtol=1e-5)
    found.backward()
    silent = ~known & ~held
    assert (soft.grad.numpy()[silent] == 0).all() and np.isfinite(soft.grad.numpy()).all()


def test_variations_are_of_the_texts_words_and_of_the_seed():
    texts = [tuple(text.split()) for text in tiny_texts(50)]
    found = variations(texts, 3, 0)
    assert found == variations(texts, 3, 0) != variations(texts, 3, 1)
    assert 100 < len(found) <= 150 and all(found)
    assert {word for text in found for word in text} <= {word for text in texts for word in text}
    assert not variations(texts, 0, 0) and not variations([()], 3, 0)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("cnn", {"widths": "2-3"}, "widths are odd"),
        ("cnn", {"filters": 0}, "filters must be above 0"),
        ("cmow", {"max-length": 48}, "power of two"),
        ("ngram", {"dropout": 1.0}, "dropout is a chance"),
        ("bilstm", {"labels": 2.0}, "labels is a share"),
        ("bilstm", {"copies": -1}, "copies must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(kind, options, said):
    model, rows = tiny_student("cnn", rows=topics(40, 0))
    with pytest.raises(RecipeError, match=said):
        tiny_step(kind, **options).requires(model, Context(rows, 0))


def test_tagging_is_refused_by_students_without_an_answer_for_each_word():
    model, rows = tiny_student("cnn", "token-classification")
    for kind in ("cmow", "ngram"):
        with pytest.raises(RecipeError, match="is for text-classification"):
            tiny_step(kind).requires(model, Context(Rows(words=rows.words * 10), 0))


@pytest.mark.slow
def test_a_tagger_learns_from_a_transformer(tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "teacher", task="token-classification")
    teacher = load_model(identify(str(checkpoint)))
    rows = Rows(words=tuple(tuple(text.split()) for text in tiny_texts(120)))
    step = tiny_step("bilstm", epochs=150, copies=0, **{"learning-rate": 3e-2})
    folder = tmp_path / "scratch"
    folder.mkdir()
    student = apply_steps([step], teacher, Context(rows, 0, folder))
    theirs, ours = (encode(model, rows) for model in (teacher, student))
    wanted = at_words(reference_outputs(teacher, theirs), theirs, ours)
    known = ~np.isnan(wanted[..., 0])
    agree = reference_outputs(student, ours)[known].argmax(-1) == wanted[known].argmax(-1)
    most = np.bincount(wanted[known].argmax(-1)).max() / known.sum()
    assert agree.mean() > most + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_worth_more_than_labels_and_a_permuted_one_nothing(kind, teacher, tmp_path):
    """Mean of three seeds; 40 labelled rows and 440 without labels; same start, batches, steps."""
    labelled, pool, judged = topics(40, 1), topics(440, 2), topics(400, 3)
    found = {"teacher": [], "labels": [], "permuted": []}
    for seed in range(3):
        for arm, scores in found.items():
            scores.append(_learned(kind, arm, seed, teacher, labelled, pool, judged, tmp_path))
    means = {arm: float(np.mean(scores)) for arm, scores in found.items()}
    assert means["teacher"] > means["labels"] + 0.02, means
    assert means["labels"] > means["permuted"] + 0.02, means


@pytest.mark.slow
def test_over_pieces_a_teacher_tells_the_tags_of_words_that_no_row_has(tmp_path):
    """Mean of three seeds; a word's last letter is its tag, and no word comes twice."""
    checkpoint = tiny_checkpoint(tmp_path / "original", task="token-classification")
    original = load_model(identify(str(checkpoint)))
    teacher = _tagger(original, _spelled(800, 9, wrong=0.1), (), None, tmp_path / "teacher", 0)
    labelled, pool, judged = _spelled(30, 1, wrong=0.1), _spelled(400, 2).words, _spelled(200, 3)
    means = {}
    for arm in ("teacher", "labels", "permuted"):
        scores = []
        for seed in range(3):
            folder = tmp_path / f"{arm}{seed}"
            student = _tagger(original, labelled, pool, (teacher, arm), folder, seed)
            read = encode(student, judged)
            given = reference_outputs(student, read).argmax(-1)
            hits = [
                given[row, starts] == [LABELS.index(tag) for tag in judged.labels[row]]
                for row, starts in enumerate(read.word_starts)
            ]
            scores.append(np.concatenate(hits).mean())
        means[arm] = float(np.mean(scores))
    assert means["teacher"] > means["labels"] + 0.1, means
    assert means["labels"] > means["permuted"] + 0.02, means


@pytest.mark.slow
def test_a_build_ends_in_a_bundle_that_needs_neither_teacher_nor_eval_rows(tmp_path):
    project = tiny_project(tmp_path, rows=80)
    files = []
    for number in range(2):
        if number:
            _turn_rows(project.eval)
        built = edgekit.build(
            project.checkpoint,
            data=project.train,
            eval=project.eval,
            target="android-arm64",
            steps=["student-ngram:ngrams=200,embedding=16,hidden=16,epochs=2,copies=1"],
            output=tmp_path / f"dist{number}",
            save_model=tmp_path / f"student{number}",
        )
        folder = built.bundles[0].path
        files.append(
            {name: (folder / name).read_bytes() for name in ("model.tflite", "ngrams.txt")}
        )
    assert files[0] == files[1]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["models"][0]["predicted_bytes"] == len(files[0]["model.tflite"])
    readme = (folder / "README.md").read_text()
    assert "ngram_ids" in readme and "tokenizer.json" not in readme
    for each in project.checkpoint.iterdir():
        each.unlink()
    assert edgekit.verify(folder).verdict.outcome == "pass"
    code = "import edgekit, sys; print(type(edgekit.load(sys.argv[1])).__name__)"
    said = run_fresh(["-c", code, str(tmp_path / "student0")])
    assert said.strip() == "NgramForSequenceClassification"


def outline_student(task):
    model, _ = tiny_student("cnn", task)
    return model


def _softmax(values):
    each = np.exp(values - values.max(-1, keepdims=True))
    return each / each.sum(-1, keepdims=True)


def _turn_rows(path):
    """The same eval rows in another order, and one word more in each."""
    with path.open(newline="", encoding="utf-8") as stream:
        names, *rows = csv.reader(stream)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [names, *([text + " sir", label] for text, label in rows[::-1])]
        )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A real one: n-grams, learned from 1,500 labelled rows."""
    folder = tmp_path_factory.mktemp("teacher") / "learned"
    rows = topics(1500, 9)
    return _taught("ngram", rows, rows.labels, None, None, folder, 0, epochs=4)


def _learned(kind, arm, seed, teacher, labelled, pool, judged, folder):
    folder = folder / f"{kind}-{arm}-{seed}"
    student = _taught(kind, labelled, labelled.labels, pool, (teacher, arm), folder, seed, epochs=3)
    wanted = np.array([LABELS.index(label) for label in judged.labels])
    return float((reference_outputs(student, encode(student, judged)).argmax(1) == wanted).mean())


def _spelled(count, seed, *, wrong=0.0):
    """Rows of three made-up words; a share of the tags is the next one's."""
    chance = random.Random(seed)
    words, tags = [], []
    for _ in range(count):
        row = ["".join(chance.choices(LETTERS, k=chance.randint(2, 4))) for _ in range(3)]
        words.append(tuple(row))
        shifts = [chance.random() < wrong for _ in row]
        tags.append(
            tuple(LABELS[(LETTERS.index(w[-1]) + s) % 3] for w, s in zip(row, shifts, strict=True))
        )
    return Rows(words=tuple(words), labels=tuple(tags))


def _tagger(original, labelled, pool, teaching, folder, seed):
    """A student over the original's pieces, taught as ``_taught`` does it."""
    from edgekit.examples import Examples, token_labels

    every = Rows(words=(*labelled.words, *pool))
    step = tiny_step("bilstm", pieces=True, vocabulary=100, cells=12)
    family, sizes, preprocessor = step.outline(original, every)
    student = build(family, original, sizes, preprocessor, seed)
    read = encode(student, every)
    known = [np.array([LABELS.index(tag) for tag in row]) for row in labelled.labels]
    gold = token_labels(read, [*known, *(np.full(len(row), IGNORED) for row in pool)])
    outputs, share = np.zeros((*gold.shape, 3), np.float32), 1.0
    if teaching is not None and teaching[1] != "labels":
        share = 0.0
        theirs = encode(teaching[0], every)
        outputs = at_words(reference_outputs(teaching[0], theirs), theirs, read)
        told = ~np.isnan(outputs[..., 0])
        if teaching[1] == "permuted":
            order = np.random.default_rng(seed).permutation(told.sum())
            outputs[told] = outputs[told][order]
    examples = Examples(read, labels=gold, teacher=outputs, per_token=True)
    _learn(student, examples, share, folder, Training(8, learning_rate=3e-2, batch=32, seed=seed))
    return student


def _taught(kind, rows, labels, pool, teaching, folder, seed, epochs):
    from edgekit.examples import Examples

    step = tiny_step(kind, ngrams=600) if kind == "ngram" else tiny_step(kind)
    every = Rows(texts=(*rows.texts, *(pool.texts if pool else ())))
    family, sizes, preprocessor = step.outline(outline(), every)
    student = build(family, outline(), sizes, preprocessor, seed)
    gold = np.full(len(every), IGNORED, np.int64)
    gold[: len(rows)] = [LABELS.index(label) for label in labels]
    outputs, share = np.zeros((len(every), 3), np.float32), 1.0
    if teaching is not None and teaching[1] != "labels":
        share = 0.0
        outputs = reference_outputs(teaching[0], encode(teaching[0], every))
        if teaching[1] == "permuted":
            outputs = outputs[np.random.default_rng(seed).permutation(len(outputs))]
    examples = Examples(encode(student, every), labels=gold, teacher=outputs)
    training = Training(epochs=epochs, learning_rate=2e-2, batch=32, seed=seed)
    _learn(student, examples, share, folder, training)
    return student


def _learn(student, examples, share, folder, training):
    """share: of the gold labels in the loss."""
    from edgekit.model import export_forward

    folder.mkdir()
    forward = export_forward(student, learning=True).train()
    loss = answer_loss(student, 1.0, share, 0.0)
    train(forward, examples, loss, training, folder=folder / "training", checkpoint_seconds=1e9)
    student.module.eval()
