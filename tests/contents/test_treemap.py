"""The picture: areas are bytes, hostile names stay text, and nothing is fetched."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from edgekit.cli import run
from edgekit.contents.attribution import Attribution, attribute
from edgekit.contents.ledger import Part
from edgekit.contents.tree import rows, tree
from edgekit.contents.treemap import treemap
from tests.contents.model_files import onnx_stack

SVG = "{http://www.w3.org/2000/svg}"


def drawn(attribution: Attribution) -> list[tuple[str, str, float]]:
    """Kind, title and area of each box that holds bytes."""
    found = []
    for box in ElementTree.fromstring(treemap(attribution)).iter(f"{SVG}rect"):
        title = box.find(f"{SVG}title")
        if title is not None and box.get("class") != "ek-module":
            area = float(box.get("width", 0)) * float(box.get("height", 0))
            found.append((str(box.get("class")), str(title.text), area))
    return found


def test_areas_are_bytes_within_a_module() -> None:
    parts = [Part(("a", "x"), "weights", "int8", 6000), Part(("a", "y"), "weights", "int8", 2000)]
    parts.append(Part(("b",), "graph", None, 2000))
    boxes = {title.split(" · ")[0]: area for _, title, area in drawn(_of(parts))}
    assert boxes["a / x"] / boxes["a / y"] == pytest.approx(3, rel=0.01)
    assert 960 * 518 * 0.8 * 0.85 < boxes["a / x"] + boxes["a / y"] < 960 * 518 * 0.8


def test_every_box_is_inside_the_picture_and_says_what_it_is(tmp_path: Path) -> None:
    found = attribute(onnx_stack(tmp_path / "a.onnx"))
    picture = ElementTree.fromstring(treemap(found))
    for box in picture.iter(f"{SVG}rect"):
        left, top = float(box.get("x", 0)), float(box.get("y", 0))
        assert left >= 0 and left + float(box.get("width", 0)) <= 960.2
        assert top >= 0 and top + float(box.get("height", 0)) <= 540.2
    titles = " ".join(title for _, title, _ in drawn(found))
    assert "encoder / layer 0 / attention / query.weight · weights float32 · 1.024 kB" in titles


def test_hostile_names_stay_text() -> None:
    name = '</title><script>alert(1)</script>"&\x00\x1b[2J]]>'
    picture = treemap(_of([Part((name, "x"), "weights", None, 9)]), title=name)
    assert not list(ElementTree.fromstring(picture).iter(f"{SVG}script"))
    assert "<script" not in picture
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")


def test_a_thousand_small_parts_and_none_at_all() -> None:
    many = [Part(("m", f"p {n}"), "weights", "int8", 1) for n in range(1000)]
    boxes = drawn(_of([*many, Part(("big",), "weights", "int8", 10**9)]))
    assert len(boxes) < 20
    assert any("smaller parts" in title or "m / p" in title for _, title, _ in boxes)
    assert ElementTree.fromstring(treemap(_of([])))


def test_rows_sum_up_what_is_small_and_lists_layers_in_order() -> None:
    parts = [Part(("e", f"layer {n}", "w"), "weights", "int8", 100 - n) for n in range(12)]
    parts += [Part(("graph", f"g{n}"), "graph", None, 1) for n in range(3)]
    found = rows(tree(_of(parts)), depth=2, most=12, least=2)
    assert [name for level, name, *_ in found if level == 1][:12] == [
        f"layer {n} / w" for n in range(12)
    ]
    assert sum(size for level, _, size, _ in found if level == 0) == _of(parts).bytes


def test_the_command_writes_the_picture_whole_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = onnx_stack(tmp_path / "a.onnx")
    assert run(["inspect", str(path), "--treemap", str(tmp_path / "a.svg")]) == 0
    printed = capsys.readouterr().out
    assert f"{path.stat().st_size:,} bytes" in printed and "feed-forward" in printed
    assert ElementTree.parse(tmp_path / "a.svg")
    assert run(["inspect", str(path), "--treemap", str(tmp_path / "no" / "a.svg")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "bad.onnx").write_bytes(path.read_bytes()[:-9])
    assert run(["inspect", str(tmp_path / "bad.onnx"), "--treemap", str(tmp_path / "b.svg")]) == 2
    assert not list(tmp_path.glob("b.svg*"))


def _of(parts: list[Part]) -> Attribution:
    return Attribution("onnx", sum(part.bytes for part in parts), tuple(parts))
