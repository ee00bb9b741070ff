"""What other programs are told: well-formed whatever the names, and nothing but text."""

import html
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from edgekit.cli import run
from tests.gating.bundles import write_bundle

HOSTILE = "a|b`<img src=x onerror=alert(1)>`]]>&\"'::error::%0A\x00\x1b[31m\ud7ff@all --> x"
RULES = """
[gate]
inconclusive = "inconclusive"

[gate.shipped-bytes]
max = "1kB"
growth = "1% and 1kB"

[gate.latency]
growth = "10%"

[[gate.waivers]]
rule = "shipped-bytes.growth"
reason = "<script>alert(1)</script> | # it is \\u001b[31m known"
expires = 2999-01-01
"""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One rule passes, one is waived, one fails and one is inconclusive."""
    monkeypatch.chdir(tmp_path)
    Path("edgekit.toml").write_text(RULES)
    write_bundle(Path("dist/one"), target=HOSTILE, model=HOSTILE, size=1000)
    assert run(["gate", "--update"]) == 0
    write_bundle(Path("dist/one"), target=HOSTILE, model=HOSTILE, size=5000)
    return tmp_path


def test_junit(hostile: Path) -> None:
    assert run(["gate", "--format", "junit=gate.xml"]) == 1
    root = ET.parse("gate.xml").getroot()
    (suite,) = root
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "3", "failures": "1", "errors": "1", "skipped": "1"}
    kinds = [[child.tag for child in case] for case in suite]
    assert sorted(kinds) == [["error"], ["failure"], ["skipped"]]
    assert "<img src=x onerror=alert(1)>" in (suite.get("name") or "")


def test_markdown(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["gate", "--format", "markdown"]) == 1
    text = capsys.readouterr().out
    marker, title, _, *lines = text.splitlines()
    assert re.fullmatch(r"<!-- edgekit-gate [\w.:/ ]+ -->", marker)
    assert title == "### edgekit gate: ✗ 1 failed, 1 inconclusive, 1 waived of 3 rules"
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    assert {line.count("|") for line in table} == {8}
    rest = "\n".join(lines)
    assert "<" not in rest and "`" not in rest and "@" not in rest and "\x1b" not in rest
    assert "<script>alert(1)</script>" in html.unescape(rest)


def test_github(
    hostile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("summary.md").write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    capsys.readouterr()
    assert run(["gate", "--format", "github", "--format", "markdown=comment.md"]) == 1
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    heads = [command.split("::")[1] for command in commands]
    assert [head.split()[0] for head in heads] == ["error", "notice", "warning"]
    assert heads[0].split()[1].split(",")[:2] == ["file=edgekit.toml", "line=6"]
    assert Path("summary.md").read_text() == "before\n" + Path("comment.md").read_text()


def test_github_is_told_why_the_gate_cannot_judge(
    hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("edgekit.lock.json").unlink()
    capsys.readouterr()
    assert run(["gate", "--format", "github", "--format", "junit=gate.xml"]) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("::error title=edgekit gate::no baseline edgekit.lock.json;")
    assert not Path("gate.xml").exists()


def test_json(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["gate", "--json"]) == 1
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert printed.err == ""
    assert document["outcome"] == "fail"
    first = document["findings"][0]
    assert (first["rule"], first["outcome"], first["value"]) == ("shipped-bytes.max", "fail", 5000)
    assert run(["gate", "--format", "json=gate.json"]) == 1
    assert json.loads(Path("gate.json").read_text()) == document


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--format", "xml"], "--format: 'xml' is not a format; choose from text, markdown, junit"),
        (["--format", "junit="], "--format: 'junit=' is not a format"),
        (["--format", "text=x"], "--format: 'text=x' is not a format"),
        (["--format", "json", "--format", "junit"], "json and junit cannot both go to the termin"),
        (["--update", "--baseline-ref", "main"], "--update: goes with BUNDLE"),
        (["--format", "junit=no/such/folder.xml"], "cannot write no/such/folder.xml"),
        (["--against", "nowhere"], "nowhere holds no bundle"),
        (["--against", "dist", "--device", "hots"], "did you mean 'host'?"),
        (
            ["--against", "dist", "--device", "emulated:arm64-cortex-a53"],
            "times of emulated:arm64-cortex-a53 mean nothing, so they gate nothing",
        ),
        (["--device", "ssh:pi@board"], "give those with --against"),
        (["--project", "no.toml"], "no project file no.toml"),
    ],
)
def test_flags_that_cannot_be(
    flags: list[str], said: str, hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["gate", "dist", *flags]) == 2
    printed = capsys.readouterr()
    assert said in printed.err


def test_a_policy_is_seen_in_junit(hostile: Path) -> None:
    for policy, kind in (("pass", "skipped"), ("fail", "failure")):
        text = RULES.replace('"inconclusive"', f'"{policy}"')
        Path("edgekit.toml").write_text(text)
        assert run(["gate", "--format", "junit=gate.xml"]) == 1
        case = next(
            case
            for case in ET.parse("gate.xml").iter("testcase")
            if "latency" in case.get("name", "")
        )
        assert [child.tag for child in case] == [kind]
