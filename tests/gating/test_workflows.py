"""What continuous integration runs: the action's own steps, and this repository's own gate."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekit.cli import run
from edgekit.gating.baseline import read_baseline
from edgekit.gating.rules import read_rules
from tests.gating.bundles import write_bundle

_ROOT = Path(__file__).parents[2]
_ACTION = _ROOT / ".github" / "actions" / "gate" / "action.yml"
pytestmark = pytest.mark.skipif(not _ACTION.is_file(), reason="a source distribution has no CI")


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(_ACTION.read_text())
    return document


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("edgekit.toml").write_text('[gate.shipped-bytes]\ngrowth = "1% and 1kB"\n')
    write_bundle(Path("dist/one"), size=1000)
    assert run(["gate", "--update"]) == 0
    return tmp_path


def gate_step(action: dict[str, Any], folder: Path, **inputs: str) -> dict[str, str]:
    """Run the action's first step as a runner does; its outputs."""
    step = action["runs"]["steps"][0]
    given = {
        name: "" if "$" in each["default"] else each["default"]
        for name, each in action["inputs"].items()
    }
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    variables = {
        name: given[text.removeprefix("${{ inputs.").removesuffix(" }}")]
        for name, text in step["env"].items()
    }
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    command = bin_ / "edgekit"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgekit "$@"\n')
    command.chmod(0o755)
    (folder / "output").write_text("")
    environment = {
        **os.environ,
        **variables,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(_ROOT),
        "RUNNER_TEMP": str(folder),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary.md"),
    }
    subprocess.run(["bash", "-e", "-c", step["run"]], check=True, cwd=folder, env=environment)
    lines = (folder / "output").read_text().splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.slow
def test_the_actions_step(action: dict[str, Any], project: Path) -> None:
    outputs = gate_step(action, project)
    assert outputs["exit-code"] == "0"
    comment = Path(outputs["comment"])
    assert "✓ the rule passed" in comment.read_text()
    assert (project / "summary.md").read_text() == comment.read_text()
    assert (project / "edgekit-gate.xml").is_file()
    (project / "with space").mkdir()
    write_bundle(project / "with space/one", size=9000)
    assert gate_step(action, project, bundles="with space\n")["exit-code"] == "1"
    outputs = gate_step(action, project, bundles="nowhere")
    assert outputs["exit-code"] == "2"
    assert not comment.exists()


@pytest.mark.skipif(shutil.which("node") is None, reason="no node here")
def test_the_comment_is_updated_and_not_repeated(action: dict[str, Any], tmp_path: Path) -> None:
    """The action's script, with the three calls of GitHub's client that it makes."""
    script = action["runs"]["steps"][1]["with"]["script"]
    (tmp_path / "script.js").write_text(
        "const comments = [{id: 1, body: 'LGTM'}];\n"
        "const github = {paginate: async () => comments, rest: {issues: {\n"
        "  createComment: async (c) => comments.push({id: comments.length + 1, body: c.body}),\n"
        "  updateComment: async (c) => { comments[c.comment_id - 1].body = c.body; }}}};\n"
        "const context = {repo: {owner: 'o', repo: 'r'}, payload: {pull_request: {number: 3}}};\n"
        f"const once = async () => {{ {script} }};\n"
        "const fs_ = require('fs');\n"
        "(async () => {\n"
        "  for (const body of JSON.parse(process.argv[2])) {\n"
        "    if (body === null) fs_.rmSync(process.env.COMMENT);\n"
        "    else fs_.writeFileSync(process.env.COMMENT, body);\n"
        "    await once();\n"
        "  }\n"
        "  console.log(JSON.stringify(comments.map((each) => each.body)));\n"
        "})();\n"
    )
    mine, other = "<!-- edgekit-gate mine -->\n", "<!-- edgekit-gate other -->\n"
    bodies = [f"{mine}first", f"{other}x", f"{mine}{'y' * 70_000}", None]
    done = subprocess.run(
        ["node", str(tmp_path / "script.js"), json.dumps(bodies)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COMMENT": str(tmp_path / "comment.md")},
    )
    first, ours, others = json.loads(done.stdout)
    assert (first, others) == ("LGTM", f"{other}x")
    assert ours.startswith(f"{mine}### edgekit gate: ? no verdict")


def test_ci_gates_the_sample() -> None:
    ci = yaml.safe_load((_ROOT / ".github/workflows/ci.yml").read_text())
    assert ci["jobs"]["gate"]["uses"] == "./.github/workflows/gate.yml"
    called = yaml.safe_load((_ROOT / ".github/workflows/gate.yml").read_text())
    steps = called["jobs"]["gate"]["steps"]
    assert [step["run"] for step in steps if "run" in step][-1] == "edgekit build"
    assert any(step.get("uses") == "./.edgekit/.github/actions/gate" for step in steps)
    rules = read_rules(_ROOT / "edgekit.toml", [], datetime.date.today())
    assert {"shipped-bytes.growth", "accuracy.drop"} <= {each.name for each in rules.of("any")}
    sample = read_baseline(_ROOT / "edgekit.lock.json").bundles["android-arm64"]
    accuracy = sample.files["model.tflite"].accuracy
    assert accuracy is not None and accuracy.rows == 3080 and accuracy.score > 0.9


def test_the_examples_are_yaml_and_call_the_gate() -> None:
    (hook,) = yaml.safe_load((_ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "edgekit gate" and hook["pass_filenames"] is False
    gitlab = yaml.safe_load((_ROOT / "docs/gate.gitlab-ci.yml").read_text())["edgekit-gate"]
    assert gitlab["script"][-1].startswith("edgekit gate ")
