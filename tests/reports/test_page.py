"""The page: all in one file, hostile text as text, the same figures as the bundle's."""

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import edgekit
from edgekit.bundle.manifest import read_manifest, write_manifest
from edgekit.cli import run
from edgekit.errors import BundleError, OutputError, UsageError
from tests.reports.bundles import LABELS, Made, make_bundle

HOSTILE = (
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(2)>",
    "\u202eevil\u202c שלום עולם",
    "long" * 2500,
    "two\nlines\tand\x00 nothing",
    "{{ 7 * 7 }} $\\frac{1}{2}$ &amp; 'quoted\"",
)


class Page(HTMLParser):
    """What a page consists of, as a browser's parser sees it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles, the second with hostile labels, texts, target and model."""
    folder = tmp_path_factory.mktemp("dist")
    make_bundle(folder / "linux-x86_64")
    make_bundle(
        folder / "hostile",
        target=HOSTILE[1],
        labels=(*HOSTILE, *LABELS),
        texts=HOSTILE,
        model=HOSTILE[0] + HOSTILE[3],
        layer=HOSTILE[5],
        lineage=HOSTILE,
    )
    for source in folder.glob("*-source"):
        shutil.rmtree(source)
    return folder


@pytest.fixture(scope="module")
def page(two: Path) -> str:
    return edgekit.report(two).read_text(encoding="utf-8")


@pytest.mark.slow
def test_everything_is_in_the_one_file(page: str) -> None:
    found = Page(page)
    addresses = [
        value or ""
        for tag, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "xlink:href")
    ]
    assert addresses
    assert [a for a in addresses if not a.startswith(("#", "data:image/png;base64,"))] == []
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in found.tags}
    assert "@import" not in page and not re.search(r"url\((?!#)", page)


def test_one_script_runs_and_no_other_may(page: str) -> None:
    found = Page(page)
    assert len(found.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(found.scripts[0].encode()).digest()).decode()
    policies = [
        str(attributes["content"])
        for tag, attributes in found.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1
    assert "default-src 'none'" in policies[0] and f"script-src 'sha256-{digest}'" in policies[0]


def test_hostile_text_stays_text(page: str) -> None:
    found = Page(page)
    assert "<script>alert(1)</script>" in found.text
    assert "</style><img src=x onerror=alert(2)>" in found.text
    assert "{{ 7 * 7 }} $\\frac{1}{2}$ &amp; 'quoted\"" in found.text
    assert not [t for t, a in found.tags if "onerror" in a or a.get("src") == "x"]
    assert "\x00" not in page
    # Each piece that may turn the reading direction is apart from its neighbours.
    for match in re.finditer("\u202e", page):
        before = page[: match.start()]
        assert before.rfind("<bdi") > before.rfind("</bdi") or 'dir="auto"' in before[-200:]


def test_figures_are_those_of_the_bundle(page: str, two: Path, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "again")
    text = " ".join(Page(page).text.split())
    changed = int((made.original.argmax(1) != made.file.argmax(1)).sum())
    assert f"{changed} of 90 answers" in text
    right = (made.file.argmax(1) == made.truth).mean()
    assert f"{100 * right:.2f} %" in text
    manifest = read_manifest(two / "linux-x86_64")
    for entry in manifest.files:
        assert entry.path in text
    assert "edgekit build checkpoints/intents --data train.csv --eval 'my test.csv'" in text
    assert "--step distill --seed 3" in text


def test_what_is_not_there_names_its_command(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "dist" / "linux-x86_64").folder
    manifest = read_manifest(folder)
    (folder / "report.json").unlink()
    old = [entry for entry in manifest.files if entry.path != "report.json"]
    write_manifest(manifest.model_copy(update={"files": old}), folder)
    shutil.rmtree(tmp_path / "dist" / "linux-x86_64-source")
    text = " ".join(Page(edgekit.report(folder).read_text(encoding="utf-8")).text.split())
    assert f"edgekit bench {folder} --profile" in text
    assert f"edgekit bench {folder}" in text and "The plan was not kept" in text
    assert "edgekit report BUNDLE BUNDLE" in text


def test_the_same_bundles_give_the_same_bytes(page: str, two: Path, tmp_path: Path) -> None:
    again = edgekit.report([two / "hostile", two / "linux-x86_64"], output=tmp_path / "a.html")
    assert again.read_text(encoding="utf-8") == page
    assert len(page.encode()) < 1_500_000


@pytest.fixture
def bundle(tmp_path: Path) -> Made:
    made = make_bundle(tmp_path / "dist" / "linux-x86_64")
    shutil.rmtree(tmp_path / "dist" / "linux-x86_64-source")
    return made


@pytest.mark.parametrize("name", ["model.onnx", "report.json", "manifest.json", "golden.json"])
def test_a_changed_byte_leaves_nothing_written(
    bundle: Made, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bundle.folder / name
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    for kind in ("html", "markdown"):
        assert run(["report", str(bundle.folder), "--format", kind]) == 2
        sentence = capsys.readouterr().err
        assert name in sentence and sentence.count("\n") == 1
    assert sorted(p.name for p in bundle.folder.parent.iterdir()) == ["linux-x86_64"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latency", None),
        ("latency", {"p50": float("nan")}),
        ("metrics", []),
        ("device", "here"),
        ("peak_memory", "much"),
        ("agreement", "all"),
    ],
)
def test_a_sealed_manifest_of_something_else_is_one_sentence(
    tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle(tmp_path / "a" / "b", proof={key: value}).folder
    place = tmp_path / "page.html"
    assert run(["report", str(folder), "--output", str(place)]) == 2
    assert "build the bundle again" in capsys.readouterr().err
    assert not place.exists()


def test_what_is_no_report_of_ours_is_not_written_over(bundle: Made, tmp_path: Path) -> None:
    place = tmp_path / "notes.html"
    place.write_text("<p>my own")
    with pytest.raises(OutputError, match="is no report of edgekit's"):
        edgekit.report(bundle.folder, output=place)
    assert place.read_text() == "<p>my own"
    with pytest.raises(OutputError, match="is a folder"):
        edgekit.report(bundle.folder, output=tmp_path)
    with pytest.raises(BundleError, match="holds none"):
        edgekit.report(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="html, markdown"):
        edgekit.report(bundle.folder, format="pdf")


def test_the_default_is_the_projects_output(
    bundle: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["report", "--format", "markdown"]) == 0
    assert Path("dist/model-card.md").is_file()
    bundle.folder.parent.rename(tmp_path / "out")
    (tmp_path / "edgekit.toml").write_text('output = "out"\n')
    assert edgekit.report(format="markdown") == Path("out/model-card.md")


def test_a_card_says_the_same_and_formats_nothing(two: Path) -> None:
    text = edgekit.report(two, format="markdown").read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in headings if line.startswith("##")] == [
        f"## {name}"
        for name in (
            "What it is",
            "How it was made",
            "Figures",
            "Limits",
            "How to run it",
            "How to repeat it",
        )
    ]
    assert len(headings) == 7
    assert not re.search(r"(?<!\\)<(script|img|/style)", text.partition("```sh")[0])
    assert "\u202e" not in text and "\x00" not in text
    assert "edgekit verify " in text.partition("```sh")[2]
    assert all(line.count("|") > 2 for line in text.splitlines() if line.startswith("|"))
