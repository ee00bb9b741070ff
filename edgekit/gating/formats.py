"""A verdict for other programs: Markdown for comments, JUnit, and GitHub's annotations.

Names and reasons come from bundles and project files that anybody may have written, so each
format gets them as text and nothing else.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from pathlib import Path

from edgekit.errors import OutputError
from edgekit.gating.gate import GateResult
from edgekit.gating.subject import Finding

MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "waived": "–"}
_LEVELS = {"fail": "error", "inconclusive": "warning", "waived": "notice"}


def headline(result: GateResult) -> str:
    """One line: how many rules came out how."""
    total = len(result.findings)
    rules = "rules" if total > 1 else "rule"
    counts = [
        f"{result.count(outcome)} {word}"
        for outcome, word in (
            ("fail", "failed"),
            ("inconclusive", "inconclusive"),
            ("waived", "waived"),
        )
        if result.count(outcome)
    ]
    if counts:
        return f"{', '.join(counts)} of {total} {rules}"
    return f"all {total} rules passed" if total > 1 else "the rule passed"


def marker(result: GateResult) -> str:
    """What a comment begins with, so that the next one for the same model replaces it."""
    models = sorted({bundle.figures.model for bundle in result.bundles})
    return f"<!-- edgekit-gate {re.sub(r'[^A-Za-z0-9_.:/ ]', '_', ' '.join(models))} -->"


def markdown(result: GateResult) -> str:
    """A comment: the marker, the table, and a line for all that did not pass."""
    rows = [
        (
            MARKS[each.outcome],
            each.where,
            each.rule,
            each.before,
            each.now,
            each.change,
            each.limit,
        )
        for each in result.findings
    ]
    head = ("", "bundle", "rule", "before", "now", "change", "limit")
    lines = [
        marker(result),
        f"### edgekit gate: {MARKS[result.outcome]} {headline(result)}",
        "",
        _row(head),
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        *(_row(tuple(map(_markdown, row))) for row in rows),
        "",
        *(
            f"- {MARKS[each.outcome]} **{_markdown(each.where)}**: {_markdown(each.reason)}"
            for each in result.findings
            if each.outcome != "pass"
        ),
    ]
    if result.against is not None:
        lines += ["", f"Against {_markdown(result.against)}."]
    return "\n".join(lines) + "\n"


def junit(result: GateResult) -> str:
    """A test suite for each target, a case for each rule.

    Inconclusive is an error, or skipped where the project lets it pass.
    """
    root = ET.Element("testsuites", name="edgekit gate")
    for bundle in result.bundles:
        found = [each for each in result.findings if each.target == bundle.target]
        states = [_state(result, each) for each in found]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=_xml(bundle.target),
            tests=str(len(found)),
            failures=str(states.count("failure")),
            errors=str(states.count("error")),
            skipped=str(states.count("skipped")),
        )
        for each, state in zip(found, states, strict=True):
            name = f"{each.rule} of {each.file}" if each.file else each.rule
            case = ET.SubElement(
                suite, "testcase", classname=_xml(each.target), name=_xml(name), time="0"
            )
            if state is not None:
                ET.SubElement(case, state, message=_xml(each.reason))
            else:
                ET.SubElement(case, "system-out").text = _xml(each.reason)
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def annotations(result: GateResult) -> str:
    """GitHub's workflow commands, at the rule's line: nothing for what passed."""
    lines = []
    for each in result.findings:
        level = _LEVELS.get(each.outcome)
        if level is None:
            continue
        place = [f"file={_property(result.rules.as_posix())}"]
        place += [f"line={each.line}"] if each.line else []
        place.append(f"title={_property(f'{each.rule} ({each.outcome})')}")
        text = f"{each.where}: {each.reason}"
        lines.append(f"::{level} {','.join(place)}::{_command(text)}\n")
    return "".join(lines)


def refusal(sentence: str) -> str:
    """The annotation of a gate that could not judge."""
    return f"::error title=edgekit gate::{_command(' '.join(sentence.split()))}\n"


def document(result: GateResult) -> str:
    """All of it, as JSON."""
    return json.dumps(result.to_json(), indent=2, ensure_ascii=False) + "\n"


def summarize(path: Path, text: str) -> None:
    """Add Markdown to the summary of GitHub's job. Raises OutputError."""
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(f"cannot write to $GITHUB_STEP_SUMMARY: {error.strerror}") from None


FORMATS: Mapping[str, Callable[[GateResult], str]] = {
    "markdown": markdown,
    "junit": junit,
    "json": document,
    "github": annotations,
}


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    """Text that Markdown, HTML and mentions do nothing to, on one line."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~#>!@])", lambda found: f"&#{ord(found[1])};", plain)


def _state(result: GateResult, finding: Finding) -> str | None:
    if finding.outcome == "fail":
        return "failure"
    if finding.outcome == "waived":
        return "skipped"
    if finding.outcome == "inconclusive":
        return {"pass": "skipped", "fail": "failure"}.get(result.policy, "error")
    return None


def _xml(text: str) -> str:
    """Without what no XML may hold: controls, surrogates and non-characters."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def _command(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _command(text).replace(":", "%3A").replace(",", "%2C")
