"""What load_data makes of files: rows, columns, splits, and one sentence for whatever is wrong."""

import csv
import dataclasses
import importlib.machinery
import importlib.util
import io
import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.data import Columns, Data, Rows, identify_data, label_ids, load_data
from edgekit.errors import DataError
from tests import tiny_data

TASK = "text-classification"
REAL_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
REAL_LABEL = REAL_TEXT.map(str.strip).filter(bool)
ONE_FOLDER = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load(
    train: Path | str | None,
    eval: Path | str | None = None,
    task: str = TASK,
    problem: str | None = "single-label",
    seed: int = 0,
    **columns: str,
) -> Data:
    return load_data(
        None if train is None else str(train),
        None if eval is None else str(eval),
        task=task,
        problem=problem,
        columns=Columns(**columns),
        seed=seed,
    )


def read(path: Path, **options: Any) -> Rows:
    """All rows of a file, none set aside."""
    rows = load(None, path, **options).eval
    assert rows is not None
    return rows


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        load(*args, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Formats.


@pytest.mark.parametrize("suffix", tiny_data.TABLE_SUFFIXES)
def test_every_table_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows = read(tiny_data.text_file(tmp_path / f"rows{suffix}", 7))
    assert rows.texts == tuple(tiny_data.texts(7))
    assert rows.labels == ("a", "b", "c", "a", "b", "c", "a")
    assert rows.pairs is None
    assert len(rows) == 7


@pytest.mark.parametrize("suffix", tiny_data.TABLE_SUFFIXES)
def test_pairs_scores_and_label_sets_are_read_from_every_table_format(
    tmp_path: Path, suffix: str
) -> None:
    path = tiny_data.text_file(tmp_path / f"p{suffix}", 5, problem="regression", pair=True)
    for task, problem in ((TASK, "regression"), ("sentence-embedding", None)):
        rows = read(path, task=task, problem=problem)
        assert rows.texts == tuple(tiny_data.texts(5))
        assert rows.pairs == tuple(tiny_data.texts(5, seed=1))
        assert rows.labels == (0.0, 0.5, 1.0, 1.5, 2.0)
    many = tiny_data.text_file(tmp_path / f"m{suffix}", 4, problem="multi-label")
    assert read(many, problem="multi-label").labels == ((), ("a",), ("b",), ("a", "b"))


@pytest.mark.parametrize(
    "name", ["t.conll", "t.txt", "t.annotated", "t.tsv", "t.jsonl", "t.parquet"]
)
def test_tagged_words_are_read_from_conll_under_any_name_and_from_lists(
    tmp_path: Path, name: str
) -> None:
    rows = read(tiny_data.tagged_file(tmp_path / name, 6), task="token-classification")
    assert rows.words == tuple(tuple(text.split()) for text in tiny_data.texts(6))
    assert rows.labels is not None
    assert [len(tags) for tags in rows.labels] == [len(words) for words in rows.words]
    assert {tag for tags in rows.labels for tag in tags} == set(tiny_data.TAGS)


def test_conll_keeps_hashtags_and_skips_comments_and_document_starts(tmp_path: Path) -> None:
    content = (
        "-DOCSTART- -X- -X- O\n\n# sent_id = 1\n# text = Anna lives\nAnna NNP I-NP B-person\n"
        "lives VBZ I-VP O\n\n\t\n#Berlin\tB-location\n#\tO\n\u00a0\tO\n\n\n"
    )
    rows = read(write(tmp_path / "a.conll", content), task="token-classification")
    assert rows.words == (("Anna", "lives"), ("#Berlin", "#", "\u00a0"))
    assert rows.labels == (("B-person", "O"), ("B-location", "O", "O"))
    assert rows.places == ("line 5", "line 9")
    by_position = read(tmp_path / "a.conll", task="token-classification", text="0", label="1")
    assert by_position.labels == (("NNP", "VBZ"), ("B-location", "O", "O"))


def test_images_come_from_npz_in_grey_and_colour(tmp_path: Path) -> None:
    task = "image-classification"
    colour = read(tiny_data.image_npz(tmp_path / "c.npz", 5), task=task)
    assert np.array_equal(colour.images, tiny_data.images(5))
    assert colour.labels == ("0", "1", "2", "0", "1")
    np.savez(tmp_path / "g.npz", images=tiny_data.images(5)[..., 0], labels=np.arange(5))
    assert read(tmp_path / "g.npz", task=task).images.shape == (5, 32, 32, 1)


def test_a_keras_npz_gives_each_split_its_own_arrays(tmp_path: Path) -> None:
    x, y = tiny_data.images(9), np.arange(9)
    np.savez(tmp_path / "k.npz", x_train=x[:6], y_train=y[:6], x_test=x[6:], y_test=y[6:])
    data = load(tmp_path / "k.npz", tmp_path / "k.npz", task="image-classification")
    assert data.train.labels == ("0", "1", "2", "3", "4", "5")
    assert data.eval.labels == ("6", "7", "8")


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_folder_gives_pixels_and_the_names_of_its_folders(
    tmp_path: Path, channels: int
) -> None:
    folder = tiny_data.image_folder(tmp_path / "pictures", 6, channels=channels)
    write(folder / "a" / "notes.txt", "not a picture")
    (folder / ".hidden").mkdir()
    rows = read(folder, task="image-classification")
    assert rows.labels == ("a", "a", "b", "b", "c", "c")
    assert np.array_equal(rows.images, tiny_data.images(6, channels=channels)[[0, 3, 1, 4, 2, 5]])


def test_pictures_of_different_sizes_stay_as_they_are(tmp_path: Path) -> None:
    tiny_data.image_folder(tmp_path / "p", 3, size=8)
    from PIL import Image

    Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(tmp_path / "p" / "c" / "wide.png")
    rows = read(tmp_path / "p", task="image-classification")
    assert [image.shape for image in rows.images] == [(8, 8, 3)] * 3 + [(8, 6, 3)]
    assert len(rows.take([3, 0])) == 2


def test_a_module_gets_its_arrays_by_input_name(tmp_path: Path) -> None:
    inputs = {"left": np.ones((4, 2), np.float32), "right": np.zeros((4, 3), np.int64)}
    path = tiny_data.module_npz(tmp_path / "m.npz", inputs, labels=[1, 0, 1, 1])
    rows = read(path, task="module", problem=None)
    assert set(rows.arrays) == {"left", "right"}
    assert np.array_equal(rows.arrays["right"], inputs["right"])
    ids = label_ids(rows, (), task="module", problem=None, source="m.npz")
    assert ids.tolist() == [1, 0, 1, 1]


@given(st.lists(st.tuples(REAL_TEXT, REAL_LABEL), min_size=1), st.sampled_from(["all", "some"]))
@ONE_FOLDER
def test_any_csv_reads_back_what_was_written(
    tmp_path: Path, rows: list[tuple[str, str]], quoting: str
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL if quoting == "all" else csv.QUOTE_MINIMAL)
    writer.writerows([("text", "label"), *rows])
    found = read(write(tmp_path / "any.csv", buffer.getvalue()))
    assert found.texts == tuple(text for text, _ in rows)
    assert found.labels == tuple(label for _, label in rows)


@given(st.lists(st.tuples(REAL_TEXT, REAL_LABEL), min_size=1), st.booleans())
@ONE_FOLDER
def test_any_json_lines_read_back_what_was_written(
    tmp_path: Path, rows: list[tuple[str, str]], ascii_only: bool
) -> None:
    lines = [
        json.dumps({"label": label, "text": text}, ensure_ascii=ascii_only) for text, label in rows
    ]
    found = read(write(tmp_path / "any.jsonl", "\n".join(lines)))
    assert found.texts == tuple(text for text, _ in rows)
    assert found.labels == tuple(label for _, label in rows)


def test_tsv_takes_quotes_of_tools_that_quote_and_of_tools_that_do_not(tmp_path: Path) -> None:
    quoted = '"say ""hi""\tthere"\ta\r\n'
    bare = 'an "open quote\tb\n"so it begins\tc\n"so" he said\ta\n'
    rows = read(write(tmp_path / "q.tsv", "text\tlabel\r\n" + quoted + bare))
    assert rows.texts == (
        'say "hi"\tthere',
        'an "open quote',
        '"so it begins',
        '"so" he said',
    )


def test_a_byte_order_mark_is_no_part_of_the_first_column_name(tmp_path: Path) -> None:
    rows = read(write(tmp_path / "b.csv", "\ufefftext,label\nhi,a\n"))
    assert rows.texts == ("hi",)


# Columns.


def test_columns_are_guessed_and_echoed(tmp_path: Path) -> None:
    path = tiny_data.table_file(
        tmp_path / "u.csv", ["id", "Utterance", "Intent"], [["1", "hi", "greet"]]
    )
    data = load(path)
    assert data.columns == {"text": "Utterance", "label": "Intent"}
    assert any("text from 'Utterance', label from 'Intent'" in note for note in data.notes)


def test_named_columns_are_used_and_not_called_guessed(tmp_path: Path) -> None:
    path = tiny_data.table_file(tmp_path / "n.csv", ["text", "b", "label"], [["x", "y", "z"]])
    data = load(None, path, text="b", label="text")
    assert data.eval.texts == ("y",)
    assert data.eval.labels == ("x",)
    assert not any("guessed" in note for note in data.notes)


def test_positions_name_the_columns_of_a_file_without_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "a cat,a dog,2.5\na car,a bus,4.0\n")
    rows = read(path, problem="regression", text="0", text_pair="1", label="2")
    assert (rows.texts, rows.pairs, rows.labels) == (
        ("a cat", "a car"),
        ("a dog", "a bus"),
        (2.5, 4.0),
    )
    assert rows.places == ("line 1", "line 2")
    named = write(tmp_path / "pandas.csv", "0,1\nhello,x\n")
    assert read(named, text="0", label="1").texts == ("hello",)


def test_a_missing_column_lists_the_columns_and_the_flag_that_helps(tmp_path: Path) -> None:
    path = tiny_data.table_file(tmp_path / "train.csv", ["text", "category"], [["hi", "a"]])
    assert refusal(path, label="label") == (
        f"no column 'label' in {path} (it has: text, category); name it with --label category"
    )
    other = tiny_data.table_file(tmp_path / "x.csv", ["foo", "bar"], [["hi", "a"]])
    message = refusal(other)
    assert "foo, bar" in message
    assert "--text" in message


def test_embeddings_take_no_label_without_pairs(tmp_path: Path) -> None:
    path = tiny_data.text_file(tmp_path / "t.csv")
    data = load(path, task="sentence-embedding", problem=None)
    assert data.train.labels is None
    assert "--text-pair" in refusal(path, task="sentence-embedding", label="label")


def test_flags_that_mean_nothing_to_the_data_are_refused(tmp_path: Path) -> None:
    folder = tiny_data.image_folder(tmp_path / "p", 3)
    assert "--label" in refusal(folder, task="image-classification", label="x")
    conll = tiny_data.tagged_file(tmp_path / "t.conll")
    assert "--text-pair" in refusal(conll, task="token-classification", text_pair="x")
    assert "position" in refusal(conll, task="token-classification", label="ner")


# Splits.


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=300), st.integers(0, 5))
@ONE_FOLDER
def test_rows_set_aside_keep_every_labels_share(
    tmp_path: Path, labels: list[str], seed: int
) -> None:
    rows = [[f"text {number}", label] for number, label in enumerate(labels)]
    path = tiny_data.table_file(tmp_path / "s.csv", ["text", "label"], rows)
    data = load(path, seed=seed)
    again = load(path, seed=seed)
    assert data.eval.texts == again.eval.texts
    assert set(data.train.texts) | set(data.eval.texts) == {text for text, _ in rows}
    assert not set(data.train.texts) & set(data.eval.texts)
    share = len(data.eval) / len(rows)
    assert len(data.eval) == max(1, round(len(rows) / 10))
    chosen = Counter(data.eval.labels)
    for label, count in Counter(labels).items():
        assert abs(chosen[label] - share * count) < 1 + 1e-9


def test_setting_rows_aside_is_said_and_capped(tmp_path: Path) -> None:
    path = tiny_data.text_file(tmp_path / "t.csv", 20_500)
    data = load(path)
    assert (len(data.train), len(data.eval)) == (18_500, 2_000)
    assert any("2,000 of the 20,500 rows" in note for note in data.notes)
    assert load(path, seed=1).eval.texts != data.eval.texts


def test_rows_set_aside_still_know_their_line(tmp_path: Path) -> None:
    data = load(tiny_data.text_file(tmp_path / "t.csv", 30))
    for text, place in zip(data.eval.texts, data.eval.places, strict=True):
        assert place == f"line {tiny_data.texts(30).index(text) + 2}"


def test_eval_rows_that_stand_in_the_training_rows_are_counted(tmp_path: Path) -> None:
    train = tiny_data.text_file(tmp_path / "train.csv", 20)
    same = tiny_data.text_file(tmp_path / "same.csv", 5)
    assert any("5 of 5 eval rows" in note for note in load(train, same).notes)
    other = tiny_data.text_file(tmp_path / "other.csv", 5, seed=9)
    assert not any("eval rows stand" in note for note in load(train, other).notes)


def test_no_data_is_no_rows() -> None:
    assert load(None) == Data(None, None, {}, ())


# Identity.


def test_identity_follows_the_bytes_and_not_the_place(tmp_path: Path) -> None:
    one = tiny_data.text_file(tmp_path / "one.csv")
    two = write(tmp_path / "two.csv", one.read_bytes())
    assert identify_data(str(one)) == identify_data(str(two))
    write(two, one.read_bytes() + b"x,a\r\n")
    assert identify_data(str(one)) != identify_data(str(two))
    assert identify_data(None) is None
    folder = tiny_data.image_folder(tmp_path / "p", 3)
    before = identify_data(str(folder))
    (folder / "a" / "000.png").rename(folder / "b" / "000.png")
    assert identify_data(str(folder)) != before


# Labels as ids.


def ids(labels: tuple[Any, ...], known: tuple[str, ...], problem: str = "single-label") -> Any:
    rows = Rows(texts=("x",) * len(labels), labels=labels)
    return label_ids(rows, known, task=TASK, problem=problem, source="d.csv").tolist()


def test_labels_are_names_or_else_ids() -> None:
    assert ids(("b", "a"), ("a", "b")) == [1, 0]
    assert ids(("1", "0"), ("LABEL_0", "LABEL_1")) == [1, 0]
    assert ids(("1", "2"), ("1", "2")) == [0, 1]
    assert ids((("a", "c"), ()), ("a", "b", "c"), "multi-label") == [[1, 0, 1], [0, 0, 0]]
    assert ids((("0", "2"), ("1",)), ("a", "b", "c"), "multi-label") == [[1, 0, 1], [0, 1, 0]]
    assert ids((1.5, 2.0), (), "regression") == [1.5, 2.0]


@pytest.mark.parametrize("strange", ["d", "3", "-1", "²"])
def test_a_label_the_model_does_not_know_is_named_with_its_line(
    tmp_path: Path, strange: str
) -> None:
    path = tiny_data.table_file(
        tmp_path / "t.csv", ["text", "label"], [["two\nlines", "0"], ["hi", strange]]
    )
    with pytest.raises(DataError) as error:
        label_ids(read(path), ("a", "b", "c"), task=TASK, problem="single-label", source="t.csv")
    # With one stranger no label is an id any more, so the first one is already unknown.
    assert "label '0' at line 2 of t.csv is unknown" in str(error.value)
    assert "a, b, c" in str(error.value)


def test_tags_become_one_array_for_each_row() -> None:
    rows = Rows(words=(("Anna", "sings"), ("hi",)), labels=(("B-person", "O"), ("O",)))
    options = {"task": "token-classification", "problem": None, "source": "t.conll"}
    found = label_ids(rows, ("O", "B-person"), **options)
    assert [tags.tolist() for tags in found] == [[1, 0], [0]]
    with pytest.raises(DataError, match="label 'B-person' at row 1"):
        label_ids(rows, ("O", "B-place"), **options)


def test_rows_without_labels_say_which_flag_names_them() -> None:
    with pytest.raises(DataError, match="--label"):
        label_ids(Rows(texts=("x",)), ("a",), task=TASK, problem=None, source="t.csv")


# Refusals: one sentence with what, where and the mend.


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("e.csv", "", {}, ["is empty"]),
        ("e.csv", "\ufeff\n \n", {}, ["is empty"]),
        ("e.jsonl", "\n", {}, ["is empty"]),
        ("e.csv", "text,label\n", {}, ["header line but no rows"]),
        ("e.tsv", "text\tlabel\r\n", {}, ["header line but no rows"]),
        ("u.csv", b"text,label\nfine,a\ncaf\xe9,b\n", {}, ["line 3", "not UTF-8", "iconv"]),
        ("u.jsonl", '{"text": "x"}\n'.encode("utf-16"), {}, ["line 1", "not UTF-8"]),
        ("r.csv", "text,label\nhi,a\none, two,b\n", {}, ["line 3", "3 cells", "quote"]),
        ("r.csv", "text,label\nhi\n", {}, ["line 2", "1 cell,", "has 2"]),
        ("q.csv", 'text,label\n"hi,a\nyou,b\n', {}, ["line 2", "quotes"]),
        ("q.csv", 'text,label\nok,a\n"hi" you,b\n', {}, ["line 3", "quotes"]),
        ("d.csv", "text,text\nhi,a\n", {}, ["two columns 'text'"]),
        ("l.csv", 'text,label\n"two\nlines",a\nhi, \n', {}, ["line 4", "no label"]),
        ("s.csv", "text,label\nhi,4\nyou,high\n", {"problem": "regression"}, ["line 3", "'high'"]),
        ("s.csv", "text,label\nhi,nan\n", {"problem": "regression"}, ["line 2", "'nan'"]),
        ("j.jsonl", '{"text": "a"}\n["b"]\n', {}, ["line 2", "one object a line"]),
        ("j.jsonl", '{"text": "a"}\n{"text": \n', {}, ["line 2", "one object a line"]),
        ("j.jsonl", '{"text": "a", "label": "b"}\n{"label": "b"}\n', {}, ["line 2", "missing"]),
        ("j.jsonl", '{"text": 3}\n', {}, ["line 1", "'text' is 3"]),
        ("j.jsonl", '{"text": "\\ud800"}\n', {}, ["line 1", "Unicode"]),
        ("p.parquet", "PAR1 nothing", {}, ["Parquet"]),
        ("x.docx", "text", {}, ["text-classification", ".csv"]),
        ("w.conll", "Anna\n", {"task": "token-classification"}, ["line 1", "tag"]),
        ("w.conll", "A O\n\nB O\n\tO\n", {"task": "token-classification"}, ["line 4", "word"]),
        ("w.conll", "# only = comments\n", {"task": "token-classification"}, ["no sentences"]),
        (
            "w.jsonl",
            '{"tokens": ["a", "b"], "tags": ["O"]}\n',
            {"task": "token-classification"},
            ["line 1", "2 tags"],
        ),
        ("w.jsonl", '{"tokens": "a b"}\n', {"task": "token-classification"}, ["list of words"]),
        ("z.npz", "no archive", {"task": "image-classification"}, ["numpy.savez"]),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: str | bytes, options: dict[str, str], parts: list[str]
) -> None:
    path = write(tmp_path / name, content)
    message = refusal(path, **options)
    assert str(path) in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"x": np.zeros((2, 8, 8), np.float32)}, "uint8"),
        ({"x": np.zeros((2, 3, 8, 8), np.uint8)}, "uint8"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.arange(3)}, "x 2, y 3"),
        ({"x": np.zeros((2, 8, 8), np.uint8), "y": np.eye(2)}, "argmax"),
        ({"pixels": np.zeros((2, 8, 8), np.uint8)}, "it has: pixels"),
        ({"x": np.zeros((0, 8, 8), np.uint8)}, "x 0"),
        ({"x": np.array([{}, None])}, "allow_pickle"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], part: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert part in refusal(tmp_path / "a.npz", task="image-classification")


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    folder = tiny_data.image_folder(tmp_path / "p", 3)
    picture = folder / "b" / "001.png"
    write(picture, picture.read_bytes()[:200])
    assert "001.png" in refusal(folder, task="image-classification")
    write(picture, "text")
    assert "001.png" in refusal(folder, task="image-classification")


def test_a_missing_path_offers_its_neighbour(tmp_path: Path) -> None:
    tiny_data.text_file(tmp_path / "train.csv")
    assert "did you mean" in refusal(tmp_path / "trian.csv")
    for reference in (str(tmp_path / "nowhere" / "x.csv"), "long" * 1000 + ".csv"):
        with pytest.raises(DataError, match="correct the path"):
            identify_data(reference)


def test_missing_libraries_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_data.text_file(tmp_path / "t.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'edgekit[parquet]'" in refusal(path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'edgekit[hub]'" in refusal("some/set")
    with pytest.raises(DataError, match="hub"):
        identify_data("some/set")


# The hub, by a stand-in for its library.


class Split:
    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns = columns
        self.features = {name: features.get(name) for name in columns}
        self.column_names = list(columns)

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    names = types.SimpleNamespace(names=["no", "yes"])
    sentences = {"text": ["x", "y"], "label": [1, 0]}

    def load_dataset(path: str, config: str | None) -> dict[str, Split]:
        if path == "tagged":
            words = {"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}
            return {"train": Split(words, {"ner_tags": types.SimpleNamespace(feature=names)})}
        if (path, config) != ("team/set", "easy"):
            raise FileNotFoundError(f"no set\n{path}")
        unlabelled = Split({"text": ["z"], "label": [-1]}, {"label": names})
        return {"train": Split(sentences, {"label": names}), "test": unlabelled}

    library = types.ModuleType("datasets")
    library.__spec__ = importlib.machinery.ModuleSpec("datasets", None, origin="stand-in")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)


@pytest.mark.usefixtures("hub")
def test_a_hub_data_set_gives_class_names_and_its_splits() -> None:
    data = load("team/set:easy", "team/set:easy@train")
    assert data.train.texts == data.eval.texts == ("x", "y")
    assert data.train.labels == ("yes", "no")
    assert identify_data("team/set:easy") == "hub:team/set:easy"
    tagged = load("tagged", task="token-classification").train
    assert tagged.labels == (("no", "yes"),)


@pytest.mark.usefixtures("hub")
def test_what_the_hub_lacks_is_said_in_one_sentence() -> None:
    assert "no label" in refusal(None, "team/set:easy")
    assert "it has: train, test" in refusal("team/set:easy@dev")
    assert "cannot be loaded from the hub" in refusal("team/other")


def test_rows_have_a_digest_of_what_they_are_and_not_of_where_they_came_from(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nhello,a\ngood bye,b\n")
    (tmp_path / "rows.jsonl").write_text(
        '{"text": "hello", "label": "a"}\n{"text": "good bye", "label": "b"}\n'
    )
    rows = [read(path) for path in sorted(tmp_path.iterdir())]
    assert rows[0].digest() == rows[1].digest()
    assert rows[0].take([1, 0]).digest() != rows[0].digest()
    assert dataclasses.replace(rows[0], labels=("a", "a")).digest() != rows[0].digest()
    pictures = Rows(images=np.zeros((2, 4, 4, 3), np.uint8), labels=("a", "b"))
    brighter = Rows(images=np.ones((2, 4, 4, 3), np.uint8), labels=("a", "b"))
    assert pictures.digest() != brighter.digest()
