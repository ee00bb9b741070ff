"""Losses as text, layer maps, and what presets say."""

import pytest

from edgekit.errors import RecipeError
from edgekit.steps.distill.lessons import PRESETS, layer_pairs, parse_losses


def test_losses_are_a_sum_with_weights() -> None:
    found = parse_losses("5*mlm-kl + 2*mlm+cosine")
    assert found == {"mlm-kl": 5.0, "mlm": 2.0, "cosine": 1.0}
    assert str(PRESETS["distilbert"][0]) == "5*mlm-kl+2*mlm+cosine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl+hiden", "there is no loss 'hiden'"),
        ("", "there is no loss ''"),
        ("kl+kl", "given twice"),
        ("x*kl", "'x' is no weight"),
        ("0*kl", "above 0"),
        ("-1*kl", "above 0"),
        ("inf*kl", "above 0"),
        ("nan*kl", "above 0"),
    ],
)
def test_what_is_no_sum(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match="distill: .*" + said.replace("*", r"\*")):
        parse_losses(text)


@pytest.mark.parametrize(
    ("how", "student", "teacher", "layers"),
    [
        ("uniform", 4, 12, [3, 6, 9, 12]),  # TinyBERT's g(m) = 3 m
        ("uniform", 6, 12, [2, 4, 6, 8, 10, 12]),
        ("uniform", 6, 6, [1, 2, 3, 4, 5, 6]),
        ("top", 4, 12, [9, 10, 11, 12]),
        ("bottom", 4, 12, [1, 2, 3, 4]),
        ("1-5-6", 3, 6, [1, 5, 6]),
    ],
)
def test_maps(how: str, student: int, teacher: int, layers: list[int]) -> None:
    assert layer_pairs(how, student, teacher) == tuple(enumerate(layers, 1))


def test_the_last_layer_alone() -> None:
    assert layer_pairs("last", 3, 12) == ((3, 12),)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("uniform", "4 does not divide 6; list the teacher's layers, as in map=2-3-5-6"),
        ("1-2-3", "lists 3 teacher layers for the student's 4"),
        ("1-2-3-7", "there is no layer 7; they are 1 to 6"),
        ("0-1-2-3", "there is no layer 0"),
        ("1-2-3-99999999999999999999", "there is no layer"),
        ("sideways", "a list of layers such as 2-4-6, not 'sideways'"),
    ],
)
def test_maps_that_cannot_be(how: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        layer_pairs(how, 4, 6)


def test_a_deeper_student_has_no_map_but_the_last() -> None:
    with pytest.raises(RecipeError, match="the student has 8 layers and its teacher 6"):
        layer_pairs("top", 8, 6)
    assert layer_pairs("last", 8, 6) == ((8, 6),)


def test_presets_have_the_published_numbers() -> None:
    told = {
        name: [
            (str(each), each.map if each.looks_inside else "", each.temperature, each.epochs)
            for each in lessons
        ]
        for name, lessons in PRESETS.items()
    }
    assert told == {
        "answers": [("kl", "", 2, 3)],
        "distilbert": [("5*mlm-kl+2*mlm+cosine", "last", 2, 3)],
        "tinybert": [("embeddings+hidden+attention", "uniform", 1, 10), ("kl", "", 1, 3)],
        "minilm": [("probabilities+values", "last", 1, 10), ("kl", "", 1, 3)],
        "minilm-v2": [("relations", "last", 1, 10), ("kl", "", 1, 3)],
        "xcompression": [("attention+hidden", "last", 1, 5), ("kl", "", 1, 5)],
        "biomedical": [("5*masked-kl+2*mlm+cosine", "last", 2, 3)],
        "compact-biomedical": [("5*masked-kl+mlm+3*probabilities+3*cosine", "uniform", 1, 3)],
    }
    assert [each.learning_rate for each in PRESETS["tinybert"]] == [5e-5, 3e-5]
    assert (PRESETS["distilbert"][0].learning_rate, PRESETS["distilbert"][0].warmup) == (5e-4, 0.05)
