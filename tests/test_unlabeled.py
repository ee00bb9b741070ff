"""Rows without labels: read from what people have, and never an eval row among them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.data import Columns, Data, Rows, load_data, together
from edgekit.errors import DataError, UsageError
from edgekit.project import Project, load_project, resolve
from tests import tiny_data
from tests.tiny_project import tiny_project


def load(
    unlabeled: list[Path],
    train: Path | None = None,
    eval: Path | None = None,
    task: str = "text-classification",
    **columns: str,
) -> Data:
    return load_data(
        None if train is None else str(train),
        None if eval is None else str(eval),
        task=task,
        problem="single-label" if task == "text-classification" else None,
        columns=Columns(**columns),
        seed=0,
        unlabeled=[str(each) for each in unlabeled],
    )


def pool(*args: Any, **options: Any) -> Rows:
    rows = load(*args, **options).unlabeled
    assert rows is not None and rows.labels is None
    return rows


@pytest.mark.parametrize("suffix", tiny_data.TABLE_SUFFIXES)
def test_tables_are_read_and_their_labels_are_not_looked_at(tmp_path: Path, suffix: str) -> None:
    rows = [["one", ""], ["two", "no label of this model"], ["three", ""]]
    path = tiny_data.table_file(tmp_path / f"pool{suffix}", ["text", "label"], rows)
    assert pool([path]).texts == ("one", "two", "three")


def test_a_text_file_holds_one_text_a_line(tmp_path: Path) -> None:
    path = tmp_path / "pool.txt"
    path.write_text("one card\r\n\n  two, cards \nthree\u2028cards", encoding="utf-8")
    assert pool([path], text="utterance").texts == ("one card", "two, cards", "three\u2028cards")
    words = pool([path], task="token-classification").words
    assert words is not None and words[:2] == (("one", "card"), ("two,", "cards"))


def test_rows_of_the_eval_file_are_left_out_and_the_number_is_said(tmp_path: Path) -> None:
    evaluation = tiny_data.table_file(tmp_path / "e.csv", ["text", "label"], [["My  Card?", "a"]])
    train = tiny_data.table_file(tmp_path / "t.csv", ["text", "label"], [["known", "a"]])
    first, second = tmp_path / "one.txt", tmp_path / "two.txt"
    first.write_text("my card?\nnew\nKnown\n")
    second.write_text("new\nnewer\n")
    data = load([first, second], train, evaluation)
    assert data.unlabeled is not None and data.unlabeled.texts == ("new", "newer")
    assert data.notes[-1] == (
        "2 rows of --unlabeled for steps that learn; left out: 1 that stand in the eval rows, 2 in "
        "the training rows or twice"
    )


def test_rows_that_are_set_aside_for_eval_count_as_eval_rows(tmp_path: Path) -> None:
    train = tiny_data.text_file(tmp_path / "train.csv", 40)
    same = tmp_path / "same.txt"
    same.write_text("\n".join([*tiny_data.texts(40), "another"]))
    data = load([same], train)
    assert data.unlabeled is not None and data.unlabeled.texts == ("another",)
    assert data.eval is not None and f"{len(data.eval)} that stand in the eval" in data.notes[-1]


def test_an_embedding_reads_pairs_apart(tmp_path: Path) -> None:
    pairs = tiny_data.table_file(
        tmp_path / "p.csv", ["sentence1", "sentence2", "score"], [["a", "b", "x"], ["c", "d", ""]]
    )
    lines = tmp_path / "pool.txt"
    lines.write_text("e\n")
    assert pool([pairs, lines], task="sentence-embedding").texts == ("a", "c", "b", "d", "e")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"first text\nsecond", "holds one text a row, and the training rows hold two"),
        (None, "no file or folder"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "pool.txt"
    if content is not None:
        path.write_bytes(content)
    train = tiny_data.text_file(tmp_path / "train.csv", 20, pair=True)
    with pytest.raises(DataError, match=said):
        load([path], train, train)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    train = tiny_data.text_file(tmp_path / "train.csv", 20)
    with pytest.raises(DataError, match=r"all 20 rows of --unlabeled stand in"):
        load([train], train, train)


def test_rows_are_joined_with_labels_where_there_are_some() -> None:
    joined = together(Rows(texts=("a",), labels=("x",)), Rows(texts=("b", "c")))
    assert (joined.texts, joined.labels) == (("a", "b", "c"), ("x", None, None))
    assert together(Rows(texts=("a",), pairs=("b",)), Rows(texts=("c",))).texts == ("a", "b", "c")
    images = [np.zeros((2, size, size, 3), np.uint8) for size in (4, 4, 6)]
    assert (together(Rows(images=images[0]), Rows(images=images[1])).images == 0).all()
    mixed = together(Rows(images=images[0]), Rows(images=images[2])).images
    assert mixed is not None and [len(each) for each in mixed] == [4, 4, 6, 6]
    arrays = together(Rows(arrays={"x": np.arange(2)}), Rows(arrays={"x": np.arange(3)})).arrays
    assert arrays is not None and arrays["x"].tolist() == [0, 1, 0, 1, 2]


def test_a_project_file_names_one_or_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here.txt").write_text("text")
    start = 'model = "m"\ntarget = "linux-x86_64"\n'
    (tmp_path / "edgekit.toml").write_text(start + 'unlabeled = ["here.txt", "owner/hub"]\n')
    project = load_project(tmp_path)
    assert project.unlabeled == (str(tmp_path / "here.txt"), "owner/hub")
    assert resolve(project, Project(unlabeled=("other.txt",))).unlabeled == ("other.txt",)


def test_without_a_step_that_learns_it_is_refused(tmp_path: Path) -> None:
    project = tiny_project(tmp_path)
    lines = tmp_path / "pool.txt"
    lines.write_text("another text\n")
    with pytest.raises(UsageError, match="--unlabeled is for steps that learn"):
        edgekit.build(
            project.checkpoint,
            data=project.train,
            eval=project.eval,
            unlabeled=lines,
            target="linux-x86_64",
            output=tmp_path / "dist",
        )
