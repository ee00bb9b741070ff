"""The baseline: its file, and what git has of it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgekit.cli import run
from edgekit.errors import BaselineError, UsageError
from edgekit.gating.baseline import baseline_at, read_baseline
from tests.gating.bundles import write_bundle

LOCK = Path("edgekit.lock.json")
_GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("edgekit.toml").write_text('[gate.shipped-bytes]\ngrowth = "1% and 1kB"\n')
    return tmp_path


def git(*arguments: str) -> str:
    environment = {**os.environ, **_GIT}
    done = subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True, env=environment
    )
    return done.stdout.strip()


def update(size: int, target: str = "linux-x86_64") -> dict[str, Any]:
    write_bundle(Path("dist", target), target=target, size=size)
    assert run(["gate", f"dist/{target}", "--update"]) == 0
    document: dict[str, Any] = json.loads(LOCK.read_text())
    return document


def test_it_is_sorted_and_says_nothing_of_times(capsys: pytest.CaptureFixture[str]) -> None:
    document = update(2000)
    text = LOCK.read_text()
    assert text == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert "latency" not in text and "seconds" not in text
    assert len(text) < 3000
    assert "shipped-bytes" in capsys.readouterr().out
    before = LOCK.read_bytes()
    update(2000)
    assert "nothing changed" in capsys.readouterr().out
    assert LOCK.read_bytes() == before
    update(2500)
    line = next(line for line in capsys.readouterr().out.splitlines() if "shipped" in line)
    assert line.split() == ["shipped-bytes", "linux-x86_64", "2", "kB", "2.5", "kB"]


def test_an_update_keeps_the_targets_that_it_is_not_given() -> None:
    update(2000)
    document = update(3000, "web-wasm")
    sizes = {name: each["shipped_bytes"] for name, each in document["bundles"].items()}
    assert sizes == {"linux-x86_64": 2000, "web-wasm": 3000}


def test_an_update_that_is_stopped_leaves_the_old_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(2000)
    before = LOCK.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    write_bundle(Path("dist/linux-x86_64"), size=9000)
    assert run(["gate", "dist", "--update"]) == 130
    assert LOCK.read_bytes() == before
    monkeypatch.undo()
    assert [path.name for path in here.glob(".edgekit*")] == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged or no JSON"),
        (b'{"schema_version": 1, "bundles": {', "is damaged or no JSON"),
        (b"\xff\xfe", "is damaged or no JSON"),
        (b"[" * 100_000, "is damaged or no JSON"),
        (b'{"schema_version": 1, "bundles": NaN}', "is damaged or no JSON"),
        (b"[]", "is no baseline"),
        (b'{"bundles": {}}', "is no baseline"),
        (b'{"schema_version": 0}', "is of an older edgekit; write it anew with: edgekit gate --up"),
        (b'{"schema_version": 2}', "is of a newer edgekit; upgrade this one"),
        (b'{"schema_version": 1, "bundles": {"x": 3}}', "bundles.x: input should be"),
        (b'{"schema_version": 1}', "bundles: field required"),
    ],
)
def test_a_damaged_one_is_said_to_be_that(content: bytes, said: str) -> None:
    LOCK.write_bytes(content)
    write_bundle(Path("dist/linux-x86_64"), size=2000)
    with pytest.raises(BaselineError) as caught:
        read_baseline(LOCK)
    assert said in str(caught.value)
    assert run(["gate"]) == 2
    older = b'"schema_version": 0' in content
    assert run(["gate", "--update"]) == (0 if older else 2)
    assert (LOCK.read_bytes() == content) is not older


def test_it_is_read_from_the_merge_base() -> None:
    git("init", "-b", "main")
    update(2000)
    git("add", "edgekit.lock.json", "edgekit.toml")
    git("commit", "-m", "one")
    git("switch", "-c", "change")
    update(9000)
    git("commit", "-am", "a baseline that was bent with the change")
    git("switch", "main")
    update(4000)
    git("commit", "-am", "main went on")
    git("switch", "change")
    write_bundle(Path("dist/linux-x86_64"), size=9000)
    assert run(["gate"]) == 0
    assert run(["gate", "--baseline-ref", "main"]) == 1
    found, where = baseline_at(LOCK, "main")
    assert found.bundles["linux-x86_64"].shipped_bytes == 2000
    assert git("rev-parse", "--short=12", "main~1") in where
    assert git("status", "--porcelain", "--untracked-files=no") == ""


def test_a_project_in_a_folder_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    git("init", "-b", "main")
    Path("apps").mkdir()
    Path("edgekit.toml").rename("apps/edgekit.toml")
    monkeypatch.chdir("apps")
    update(2000)
    git("add", "edgekit.lock.json")
    git("commit", "-m", "one")
    assert run(["gate", "--baseline-ref", "HEAD"]) == 0


def test_what_git_cannot_give_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(Path("dist/linux-x86_64"), size=2000)

    def refused(reference: str) -> str:
        assert run(["gate", "--baseline-ref", reference]) == 2
        return capsys.readouterr().err

    assert "git knows no 'main'" in refused("main")  # no repository at all
    git("init", "-b", "main")
    git("commit", "--allow-empty", "-m", "one")
    assert "git knows no 'origin/main'" in refused("origin/main")
    assert "there is no edgekit.lock.json at" in refused("main")
    git("switch", "--orphan", "other")
    git("commit", "--allow-empty", "-m", "two")
    assert "no commit in common here; fetch the whole history" in refused("main")
    for hostile in ("--output=x", "", "main; touch x", "main^{tree}"):
        assert "--baseline-ref: " in refused(hostile)
    assert not Path("x").exists()


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="git is not installed"):
        baseline_at(LOCK, "main")
