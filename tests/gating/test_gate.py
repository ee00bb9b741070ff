"""Every rule, from outside: bundles and a project file in, an exit code and a reason out."""

import base64
import datetime
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.cli import run
from edgekit.errors import EdgekitError
from tests.gating.bundles import DEVICE, write_bundle


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rules(text: str) -> None:
    Path("edgekit.toml").write_text(text, encoding="utf-8")


def judged(now: dict[str, Any], before: dict[str, Any] | None = None) -> tuple[str, str]:
    """The outcome of the only rule, and its reason."""
    if before is not None:
        write_bundle(Path("before"), **before)
        assert run(["gate", "before", "--update"]) == 0
    write_bundle(Path("now"), **now)
    (finding,) = edgekit.gate("now").findings
    return finding.outcome, finding.reason


def test_an_absolute_limit() -> None:
    rules('[gate.shipped-bytes]\nmax = "2MB"')
    assert judged({"size": 2_000_000})[0] == "pass"
    assert judged({"size": 2_000_001})[0] == "fail"
    assert run(["gate", "now"]) == 1
    assert not Path("edgekit.lock.json").exists()


@pytest.mark.parametrize(
    ("size", "outcome"),
    [
        (10_100_001, "fail"),  # above 1 % and above 50 kB
        (10_100_000, "pass"),  # 1 % exactly
        (9_000_000, "pass"),
    ],
)
def test_growth_of_a_large_file(size: int, outcome: str) -> None:
    rules('[gate.shipped-bytes]\ngrowth = "1% and 50kB"')
    assert judged({"size": size}, {"size": 10_000_000})[0] == outcome


def test_growth_of_a_small_file_needs_the_bytes_too() -> None:
    rules('[gate.shipped-bytes]\ngrowth = "1% and 50kB"')
    assert judged({"size": 90_000}, {"size": 60_000})[0] == "pass"  # half as much again
    outcome, reason = judged({"size": 110_001}, {"size": 60_000})
    assert outcome == "fail"
    assert reason == "shipped-bytes grew by 50 kB (83 %); the limit is 1 % and 50 kB"


def test_growth_from_nothing() -> None:
    rules('[gate.float32-bytes]\ngrowth = "1% and 50kB"')
    before = {"dtype_bytes": {"int8": 3}}
    assert judged({"dtype_bytes": {"int8": 3, "float32": 50_001}}, before)[0] == "fail"
    assert judged({"dtype_bytes": {"int8": 3, "float32": 50_000}}, before)[0] == "pass"


def test_headroom_to_the_budget_of_the_build() -> None:
    rules('[gate.shipped-bytes]\nheadroom = "5%"')
    assert judged({"size": 9_500_000, "budget": {"size": 1e7}})[0] == "pass"
    outcome, reason = judged({"size": 9_500_001, "budget": {"size": 1e7}})
    assert (outcome, "leaves 5 % of the budget" in reason) == ("fail", True)


def test_a_ratchet_may_only_improve() -> None:
    rules("[gate.ops]\nratchet = true")
    assert judged({"static": {"ops": {"Add": 9}}}, {"static": {"ops": {"Add": 9}}})[0] == "pass"
    assert judged({"static": {"ops": {"Add": 10}}})[0] == "fail"
    assert judged({"static": {"ops": {"Add": 8}}})[0] == "pass"


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("download-bytes]\nmax = '9MB'", {"download": 9_000_000}, {"download": 9_000_001}),
        ("int8-bytes]\nmax = '9B'", {"dtype_bytes": {"int8": 9}}, {"dtype_bytes": {"int8": 10}}),
        ("parameters]\nmax = 9", {"static": {"parameters": 9}}, {"static": {"parameters": 10}}),
        ("macs]\nmax = 9_000_000", {"static": {"macs": 9e6}}, {"static": {"macs": 9_000_001}}),
        ("peak-memory]\nmax = '9MB'", {"peak_memory": 9_000_000}, {"peak_memory": 9_000_001}),
        ("agreement]\nmin = '99%'", {"agreement": 0.999}, {"agreement": 0.98}),
    ],
)
def test_each_recorded_figure(rule: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
    rules(f"[gate.{rule}")
    assert judged(good)[0] == "pass"
    assert judged(bad)[0] == "fail"


def test_what_an_accelerator_leaves_to_the_cpu() -> None:
    rules('[gate.delegated-ops]\nmin = "100%"')
    ops = {"ops": {"ADD": 3, "SLICE": 1}}

    def elsewhere(whole: bool, left: list[str]) -> dict[str, Any]:
        coverage = {"fully_accelerated": whole, "on_cpu": left}
        return {"static": ops, "elsewhere": [{"coverage": None}, {"coverage": coverage}]}

    assert judged(elsewhere(True, []))[0] == "pass"
    outcome, reason = judged(elsewhere(False, ["SLICE (output is too large)"]))
    assert outcome == "fail"
    assert "75.00 %, below 100.00 %" in reason


def test_an_accuracy_drop_on_the_same_rows() -> None:
    rules('[gate.accuracy]\ndrop = "1 point"')
    assert judged({}, {})[0] == "pass"
    assert judged({"wrong": range(2, 234)}, {})[0] == "pass"  # 2 rows won, 4 lost
    outcome, reason = judged({"wrong": range(258)}, {})  # 0.9 points: within what noise makes
    assert outcome == "inconclusive"
    assert "on the same 3080 rows" in reason
    assert run(["gate", "now"]) == 3
    assert judged({"wrong": range(330)}, {})[0] == "fail"
    assert judged({"wrong": range(100)}, {})[0] == "pass"


def test_rows_that_are_others_tell_less() -> None:
    rules('[gate.accuracy]\ndrop = "1.5 points"')
    same, other = {"rows_digest": "a" * 64}, {"rows_digest": "b" * 64}
    assert judged(same, same)[0] == "pass"
    outcome, reason = judged({**other, "wrong": range(250)}, same)
    assert outcome == "inconclusive"
    assert "on 3080 rows" in reason
    assert judged({**other, "wrong": range(400)}, same)[0] == "fail"
    counts = {"right": None}  # of an older bundle, or of a metric without rows
    assert judged({**counts, "wrong": range(250)}, counts)[0] == "inconclusive"


def test_accuracy_as_a_ratchet_fails_only_what_the_rows_can_tell() -> None:
    rules("[gate.accuracy]\nratchet = true")
    assert judged({}, {})[0] == "pass"
    assert judged({"wrong": range(231)}, {})[0] == "inconclusive"
    assert judged({"wrong": range(260)}, {})[0] == "fail"
    assert judged({"wrong": range(229)}, {})[0] == "pass"


def test_the_least_accuracy() -> None:
    rules('[gate.accuracy]\nmin = "90%"')
    assert judged({"wrong": range(230)})[0] == "pass"
    assert judged({"wrong": range(300)})[0] == "inconclusive"
    assert judged({"wrong": range(400)})[0] == "fail"


def test_a_correlation_has_an_interval_of_its_own() -> None:
    rules('[gate.accuracy]\ndrop = "2 points"')

    def spearman(score: float, rows: int = 30_000) -> dict[str, Any]:
        metrics = {"primary": "spearman", "file": {"spearman": score}, "chance": 0.0}
        return {"metrics": metrics, "right": None, "rows": rows, "wrong": ()}

    assert judged(spearman(0.85), spearman(0.85))[0] == "pass"
    assert judged(spearman(0.835), spearman(0.85))[0] == "pass"
    assert judged(spearman(0.832), spearman(0.85))[0] == "inconclusive"
    assert judged(spearman(0.80), spearman(0.85))[0] == "fail"


def test_memory_is_compared_on_one_machine_only() -> None:
    rules('[gate.peak-memory]\ngrowth = "10% and 1MB"')
    assert judged({"peak_memory": 43_000_000}, {})[0] == "pass"
    assert judged({"peak_memory": 45_000_000})[0] == "fail"
    outcome, reason = judged({"peak_memory": 45_000_000, "device": {**DEVICE, "cpu": "Another"}})
    assert outcome == "inconclusive"
    assert "not to be compared" in reason


def test_an_absolute_latency_is_judged_by_its_interval() -> None:
    rules('[gate.latency]\nmax = "2ms"')

    def latency(low: float | None, high: float | None) -> dict[str, Any]:
        return {"latency": {"p50": 2e-3, "low": low, "high": high}}

    assert judged(latency(1.8e-3, 2e-3))[0] == "pass"
    assert judged(latency(1.9e-3, 2.1e-3))[0] == "inconclusive"
    assert judged(latency(2.01e-3, 2.1e-3))[0] == "fail"
    assert judged(latency(None, None))[0] == "inconclusive"
    rules('[gate.latency]\nheadroom = "50%"')
    budget = {"latency": 3e-3}
    assert judged({**latency(1.8e-3, 2e-3), "budget": budget})[0] == "fail"


def test_what_is_inconclusive_is_what_the_project_says() -> None:
    rule = '[gate.latency]\ngrowth = "10%"'
    for policy, code in (("", 3), ('inconclusive = "pass"', 0), ('inconclusive = "fail"', 1)):
        rules(f"[gate]\n{policy}\n{rule}")
        outcome, reason = judged({})
        assert outcome == "inconclusive"
        assert "--against" in reason
        assert run(["gate", "now"]) == code


def test_a_rule_for_one_target_takes_the_place_of_the_figures() -> None:
    rules(
        '[gate.shipped-bytes]\nmax = "10MB"\nratchet = true\n'
        '[gate.shipped-bytes.web-wasm]\nmax = "5MB"\n'
    )
    write_bundle(Path("dist/web-wasm"), target="web-wasm", size=6_000_000)
    write_bundle(Path("dist/server"), size=6_000_000)
    assert run(["gate", "--update"]) == 0
    found = {(each.target, each.rule): each.outcome for each in edgekit.gate().findings}
    assert found == {
        ("web-wasm", "shipped-bytes.max"): "fail",
        ("web-wasm", "shipped-bytes.ratchet"): "pass",
        ("linux-x86_64", "shipped-bytes.max"): "pass",
        ("linux-x86_64", "shipped-bytes.ratchet"): "pass",
    }


def test_a_waiver_says_why_and_until_when() -> None:
    today = datetime.date.today()
    waiver = f'rule = "shipped-bytes.max"\nreason = "the new head"\nexpires = {today}'
    rules(f'[gate.shipped-bytes]\nmax = "1MB"\n[[gate.waivers]]\n{waiver}\n')
    outcome, reason = judged({})
    assert outcome == "waived"
    assert reason.endswith(f"waived until {today}: the new head")
    assert run(["gate", "now"]) == 0
    rules(f'[gate.shipped-bytes]\nmax = "1MB"\n[[gate.waivers]]\n{waiver}\ntarget = "web-wasm"\n')
    assert judged({})[0] == "fail"


# What cannot be judged: exit 2, one sentence, nothing written.

_ONE = '[gate.shipped-bytes]\nmax = "30MB"\n'
_WAIVER = '[[gate.waivers]]\nrule = "shipped-bytes.max"\nreason = "x"\nexpires = 2999-01-01\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "edgekit.toml has no rules to judge by"),
        ('[gate]\ninconclusive = "pass"', "edgekit.toml has no rules to judge by"),
        ("[gate]\nshipped-bytes = 3", "edgekit.toml, line 2: gate.shipped-bytes: is a table"),
        ('[gate.shiped-bytes]\nmax = "3MB"', "no figure 'shiped-bytes'; did you mean 'shipped-by"),
        ('[gate.download-bytes]\nmaks = "3MB"', "line 2: gate.download-bytes.maks: there is no ru"),
        ('[gate.ops]\nheadroom = "3%"', "no rule of ops 'headroom'; "),
        ("[gate.peak-memory]\nratchet = true", "no rule of peak-memory 'ratchet'"),
        (
            '[gate.ops]\nmax = 3\n\n[gate.macs]\nmax = "3MB"',
            "line 5: gate.macs.max: '3MB' is not a",
        ),
        ('[gate.shipped-bytes]\nmax = "3ms"', "'3ms' is not a size; write it as 30MB"),
        ("[gate.shipped-bytes]\nmax = 3000", "3000 has no unit; write it as '30MB'"),
        ("[gate.shipped-bytes]\nmax = nan", "nan has no unit"),
        ("[gate.ops]\nmax = nan", "nan is not a count"),
        ("[gate.ops]\nmax = -3", "-3 is not a count"),
        ("[gate.ops]\nmax = 1e99", "1e+99 is not a count"),
        ('[gate.ops]\ngrowth = "3%"', "write both limits"),
        ('[gate.shipped-bytes]\ngrowth = "3% and 4"', "'4' is not a size"),
        ('[gate.shipped-bytes]\ngrowth = "300% and 4kB"', "'300%' is above 100 %"),
        ('[gate.latency]\ngrowth = "10ms"', "'10ms' is not a percentage"),
        ('[gate.latency]\nmax = "10MB"', "'10MB' is not a time"),
        ('[gate.accuracy]\ndrop = "1%"', "'1%' is not a drop; write it in points"),
        ('[gate.accuracy]\ndrop = "nan points"', "'nan points' is not a drop"),
        ('[gate.accuracy]\nmax = "1%"', "no rule of accuracy 'max'"),
        ("[gate.ops]\nratchet = false", "False is not true; leave the ratchet out"),
        ("[gate.ops.web-wams]\nmax = 3", "no target 'web-wams'; did you mean 'web-wasm'?"),
        (f'{_ONE}[gate]\ninconclusive = "maybe"', "line 4: gate.inconclusive: 'maybe' is not"),
        (f'[gate]\ninconclusive = "maybe"\n{_ONE}', "line 2: gate.inconclusive: 'maybe' is not"),
        (
            _ONE + _WAIVER.replace("2999", "2020"),
            "the waiver of shipped-bytes.max ended on 2020-01",
        ),
        (_ONE + _WAIVER.replace("bytes.max", "bytes.min"), "did you mean 'shipped-bytes.max'?"),
        (_ONE + _WAIVER.replace("2999-01-01", '"2999"'), "a waiver needs a date"),
        (_ONE + _WAIVER.replace('reason = "x"', ""), "a waiver needs its reason"),
        (_ONE + _WAIVER + _WAIVER.replace("reason", "raeson"), "line 9: gate.waivers.raeson: "),
        (f"{_ONE}[gate.waivers]\nx = 1", "waivers are tables; write [[gate.waivers]]"),
        ('[gate.shipped-bytes]\nheadroom = "5%"', "built without a budget for size"),
        ('[gate.delegated-ops]\nmin = "1%"', "delegated-ops is not recorded in the bundle"),
        ("[gate.ops]\nratchet = true", "no baseline edgekit.lock.json; write the first one with"),
    ],
)
def test_rules_that_cannot_be(
    text: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules(text)
    write_bundle(Path("dist/linux-x86_64"), size=1000)
    before = sorted(here.rglob("*"))
    assert run(["gate"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.startswith("edgekit: ") and printed.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"model": "checkpoints/other"}, {}, "the baseline is of checkpoints/other"),
        ({"target": "web-wasm"}, {}, "the baseline does not know linux-x86_64"),
        ({"file": "other.onnx"}, {}, "the baseline knows no model.onnx of linux-x86_64"),
        ({"metrics": {}}, {}, "accuracy is not recorded in the baseline"),
        ({}, {"metrics": {}}, "accuracy is not recorded in the bundle; build it with labelled"),
        (
            {"metrics": {"primary": "f", "file": {"f": 0.9}, "chance": 0}},
            {},
            "is accuracy in the bundle and f in the baseline",
        ),
        ({"right": "AAAA"}, {}, "the rows recorded as right do not make up the accuracy"),
        ({"right": "no base64"}, {}, "the rows recorded as right do not make up the accuracy"),
        (
            {"metrics": {"primary": "accuracy", "file": {"accuracy": 0.02}, "chance": 0.0195}},
            {},
            "is not above chance (0.0195), so nothing can fall below it; 293",
        ),
        (
            {"metrics": {"primary": "accuracy", "file": {"accuracy": 0.01}, "chance": 0.0195}},
            {},
            "mend the model or its labels first",
        ),
    ],
)
def test_baselines_that_prove_nothing(
    before: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    rules('[gate.accuracy]\ndrop = "1 point"')
    with pytest.raises(EdgekitError, match=said.replace("(", r"\(").replace(")", r"\)")) as caught:
        judged(now, before)
    assert caught.value.exit_code == 2


def test_too_few_rows_are_refused_with_the_number_that_would_do() -> None:
    rules('[gate.accuracy]\ndrop = "1 point"')
    few = {"rows": 200, "wrong": range(14)}
    with pytest.raises(
        EdgekitError, match=r"200 eval rows tell a drop to ±.* rows would do"
    ) as told:
        judged({"rows": 200, "wrong": range(2, 16)}, few)
    enough = int(str(told.value).partition("about ")[2].split()[0])
    # The same shares on so many rows are judged.
    scale = math.ceil(enough / 200)
    lost = range(2 * scale, 16 * scale)
    many = {"rows": 200 * scale, "wrong": range(14 * scale)}
    assert judged({"rows": 200 * scale, "wrong": lost}, many)[0] == "pass"


def test_too_few_rows_for_an_absolute_limit() -> None:
    rules('[gate.accuracy]\nmin = "95%"')
    with pytest.raises(EdgekitError, match=r"20 eval rows cannot show 95 %.*; 73 rows would do"):
        judged({"rows": 20, "wrong": ()})
    assert judged({"rows": 73, "wrong": ()})[0] == "pass"


@pytest.mark.parametrize(
    ("proof", "said"),
    [
        ({"agreement": 1.5}, "agreement is no figure"),
        ({"peak_memory": -1}, "peak_memory is no figure"),
        ({"metrics": {}, "rows": "many"}, "rows is no figure"),
        ({"static": "none"}, "the proof in its manifest is malformed"),
        ({"static": {"ops": {"Add": "x"}}}, "the proof in its manifest is malformed"),
        ({"latency": {}, "elsewhere": [3]}, "the proof in its manifest is malformed"),
    ],
)
def test_figures_that_are_none(proof: dict[str, Any], said: str) -> None:
    rules(_ONE)
    with pytest.raises(EdgekitError, match=said):
        judged(proof)
    assert run(["gate", "now", "--update"]) == 2
    assert not Path("edgekit.lock.json").exists()


def test_not_a_number() -> None:
    rules(_ONE)
    manifest = write_bundle(Path("now"), agreement=None) / "manifest.json"
    text = manifest.read_text()
    assert '"agreement": null' in text
    # As some writers of JSON do; what the seal covers is the same.
    manifest.write_text(text.replace('"agreement": null', '"agreement": NaN'))
    with pytest.raises(EdgekitError, match=r"agreement is no figure .*finite"):
        edgekit.gate("now")


def test_bundles_that_are_not_what_their_manifest_says(here: Path) -> None:
    rules(_ONE)
    write_bundle(Path("good"), size=1000)
    shutil.copytree("good", "changed")
    Path("changed/model.onnx").write_bytes(b"\1" + bytes(999))
    shutil.copytree("good", "sealed")
    text = Path("sealed/manifest.json").read_text().replace('"bytes": 1000', '"bytes": 100')
    Path("sealed/manifest.json").write_text(text)
    shutil.copytree("good", "extra")
    Path("extra/more").write_text("")
    for name in ("changed", "sealed", "extra", "nowhere", "edgekit.toml"):
        assert run(["gate", name]) == 2
        assert run(["gate", name, "--update"]) == 2
    assert run(["gate", "good", "good"]) == 2  # which of the two is it?
    assert not Path("edgekit.lock.json").exists()
    assert run(["gate", "good"]) == 0


def test_names_that_would_steer_a_terminal_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    rules(_ONE)
    write_bundle(Path("now"), target="evil\x1b[2J\ntarget", size=1000)
    assert run(["gate", "now"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_agreement_falls_within_its_interval() -> None:
    rules('[gate.agreement]\ndrop = "1 point"')
    assert judged({"agreement": 0.99}, {"agreement": 0.99})[0] == "pass"
    assert judged({"agreement": 0.96}, {"agreement": 0.99})[0] == "fail"


def test_the_bits_are_the_rows_in_order() -> None:
    """A bundle whose bits are flipped end to end is still judged by them, row by row."""
    rules('[gate.accuracy]\ndrop = "1 point"')
    right = np.ones(16 * 1000, bool)
    right[:800] = False
    bits = base64.b64encode(np.packbits(right[::-1]).tobytes()).decode()
    before = {"rows": len(right), "wrong": range(800)}
    outcome, reason = judged({**before, "right": bits}, before)
    assert outcome == "pass"
    low, high = (
        float(part) for part in reason.partition("points, ")[2].split(" on")[0].split(" to ")
    )
    # 800 rows won and 800 lost: sqrt(1600) / 16000 = 0.25 points a deviation.
    assert (low, high) == (pytest.approx(-0.49, abs=0.02), pytest.approx(0.49, abs=0.02))
