"""Steps from text, tables and files."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import recipe
from edgekit.errors import RecipeError
from edgekit.recipe import load_recipe, make_step, parse_step, parse_table, step_names, step_options
from edgekit.steps.vocabulary.trim_vocabulary import TrimVocabulary


@dataclass(frozen=True)
class Shrink:
    """Makes it smaller."""

    factor: float
    where: Literal["top", "bottom"] = "top"
    gently: bool = False


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that another package brings."""
    entry = EntryPoint("shrink", f"{__name__}:Shrink", "edgekit.steps")
    known = recipe._entries()
    monkeypatch.setattr(recipe, "_entries", lambda: {**known, "shrink": entry})


def test_a_name_alone_takes_every_default() -> None:
    assert parse_step("trim-vocabulary").step == TrimVocabulary()


def test_text_and_table_make_the_same_step() -> None:
    text = parse_step("trim-vocabulary:min-count=2,words=words.txt")
    table = parse_table({"name": "trim-vocabulary", "min-count": 2, "words": "words.txt"})
    assert text == table
    assert text.step == TrimVocabulary(min_count=2, words=Path("words.txt"))


@pytest.mark.slow
@given(st.integers(), st.none() | st.from_regex(r"[a-z./]{1,20}", fullmatch=True))
def test_text_and_json_read_back_as_the_same_step(count: int, words: str | None) -> None:
    spec = make_step("trim-vocabulary", {"min-count": count, "words": words})
    assert parse_step(str(spec)) == spec
    assert parse_table(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trim-vocabulry", "unknown step 'trim-vocabulry'; did you mean 'trim-vocabulary'?"),
        ("banana", "unknown step 'banana'; known steps: "),
        ("", "unknown step ''"),
        (
            "trim-vocabulary:min-cont=2",
            "did you mean 'min-count'? its options are min-count, words",
        ),
        ("trim-vocabulary:min-count=two", "min-count must be int, is 'two'"),
        ("trim-vocabulary:min-count", "write options as name=value"),
        ("trim-vocabulary:", "write options as name=value"),
        ("trim-vocabulary:min-count=1,min-count=2", "'min-count' is given twice"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_step(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("shrink")
def test_an_installed_package_adds_a_step() -> None:
    assert "shrink" in step_names()
    assert parse_step("shrink:factor=0.5,gently=true").step == Shrink(0.5, gently=True)
    assert [option.required for option in step_options("shrink")] == [True, False, False]


@pytest.mark.usefixtures("shrink")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shrink", "step shrink needs its option 'factor'"),
        ("shrink:factor=x", "factor must be number, is 'x'"),
        ("shrink:factor=1,where=left", "where must be top|bottom, is 'left'"),
        ("shrink:factor=1,gently=maybe", "gently must be true|false, is 'maybe'"),
    ],
)
def test_option_types_are_checked(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match="step shrink") as error:
        parse_step(text)
    assert said in str(error.value)


def test_a_step_that_does_not_load_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("gone", "no_such_package:Step", "edgekit.steps")
    monkeypatch.setattr(recipe, "_entries", lambda: {"gone": entry})
    with pytest.raises(RecipeError, match="'gone' cannot be loaded from no_such_package:Step"):
        parse_step("gone")


def test_a_recipe_file_holds_its_steps_in_order(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[[steps]]\nname = "trim-vocabulary"\nmin-count = 3\nwords = "words.txt"\n'
        '[[steps]]\nname = "trim-vocabulary"\n'
    )
    steps = load_recipe(path)
    assert [step.name for step in steps] == ["trim-vocabulary", "trim-vocabulary"]
    # Paths are relative to the file.
    assert steps[0].step == TrimVocabulary(min_count=3, words=tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no steps"),
        ('model = "x"', "line 1: model: a recipe file holds only [[steps]]"),
        ('[[steps]]\nname = "banana"', "line 1: steps: unknown step 'banana'"),
        (
            '[[steps]]\nname = "trim-vocabulary"\n\n[[steps]]\nname = "trim-vocabulary"\nmin = 2',
            "line 4: steps: step trim-vocabulary has no option 'min'",
        ),
        ("[[steps]]\nmin-count = 2", "line 1: steps: a step needs a name"),
        ("steps = [3]", "line 1: steps: 3 is no step"),
        ("[[steps]\n", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_recipe_file_is_said_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
