"""The main job, seen from outside: files re-read by independent code, figures recomputed."""

import base64
import collections
import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import edgekit
from edgekit import recipe
from edgekit.bundle.manifest import read_manifest
from edgekit.errors import BudgetError, BundleError, OutputError, ProofError, RecipeError
from edgekit.events import Event
from edgekit.pipeline import BuildResult
from tests.export.test_onnx import session as onnx_session
from tests.fresh import Fresh, run_fresh
from tests.tiny import tiny_checkpoint
from tests.tiny_project import TinyProject, plain_module, tiny_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> TinyProject:
    return tiny_project(tmp_path_factory.mktemp("project"))


def _build(project: TinyProject, output: Path, **options: Any) -> BuildResult:
    settings = {"data": project.train, "eval": project.eval, "target": "linux-x86_64", **options}
    return edgekit.build(project.checkpoint, output=output, **settings)


_FILES = {
    "linux-x86_64": "model.onnx",
    "android-arm64": "model.tflite",
    "torchscript-cpu": "model.pt",
}
each_target = pytest.mark.parametrize(
    "target",
    [
        "linux-x86_64",
        pytest.param("android-arm64", marks=pytest.mark.slow),
        pytest.param("torchscript-cpu", marks=pytest.mark.slow),
    ],
)


@pytest.fixture(scope="module")
def built_onnx(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("dist")
    assert _build(project, output, budget="2MB").outcome == "pass"
    return output


@pytest.fixture(scope="module")
def built(built_onnx: Path, project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle for three targets at once: ONNX, TFLite and TorchScript."""
    output = tmp_path_factory.mktemp("dist")
    assert _build(project, output, target=list(_FILES), budget="2MB").outcome == "pass"
    return output


@pytest.fixture
def bundle(target: str, request: pytest.FixtureRequest) -> Path:
    """The target's."""
    folder: Path = request.getfixturevalue("built_onnx" if target == "linux-x86_64" else "built")
    return folder / target


@pytest.mark.slow
def test_a_build_writes_a_page_about_its_bundles(built: Path) -> None:
    page = (built / "report.html").read_text(encoding="utf-8")
    for target in _FILES:
        folder = built / target
        manifest = json.loads((folder / "manifest.json").read_text())
        listed = {entry["path"]: entry for entry in manifest["files"]}
        assert (listed["report.json"]["role"], listed["report.json"]["shipped"]) == (
            "report",
            False,
        )
        seen = json.loads((folder / "report.json").read_text())["files"][_FILES[target]]
        (model,) = manifest["models"]
        changes, proof = seen["changes"], model["proof"]
        assert changes["answers"] == proof["rows"]
        assert changes["changed"] == round((1 - proof["agreement"]) * proof["rows"])
        # The original is always right, so whatever changed became wrong.
        assert (changes["lost"], changes["won"]) == (changes["changed"], 0)
        assert proof["metrics"]["drop"] == pytest.approx(changes["lost"] / proof["rows"])
        assert sum(each["samples"] for each in seen["lengths"]) == proof["latency"]["samples"]
        assert [each["when"] for each in seen["memory"]][:2] == ["start", "loaded"]
        assert bool(seen["profile"]["layers"]) == (target != "torchscript-cpu")
        assert "timeline" not in proof["memory"]
        assert target in page and f"edgekit verify {folder}" in page
    again = edgekit.report([built / target for target in _FILES], output=built / "again.html")
    assert again.read_text(encoding="utf-8") == page


@each_target
def test_a_bundle_holds_what_its_manifest_says(bundle: Path, target: str) -> None:
    folder = bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    schema_file = Path(edgekit.__file__).parent / "bundle" / "manifest.schema.json"
    jsonschema.validate(manifest, json.loads(schema_file.read_text()))
    listed = {entry["path"]: entry for entry in manifest["files"]}
    found = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert found == set(listed)
    assert {_FILES[target], "tokenizer.json", "labels.json", "golden.json", "README.md"} <= found
    for name, entry in listed.items():
        content = (folder / name).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    shipped = sum(entry["bytes"] for entry in listed.values() if entry["shipped"])
    assert manifest["shipped_bytes"] == shipped
    assert "$" not in (folder / "README.md").read_text().replace("length_$n", "")


def test_the_files_accuracy_is_what_independent_code_finds(
    built_onnx: Path, project: TinyProject
) -> None:
    from tokenizers import Tokenizer

    folder = built_onnx / "linux-x86_64"
    manifest = json.loads((folder / "manifest.json").read_text())
    session = onnx_session(folder / "model.onnx")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    labels = json.loads((folder / "labels.json").read_text())
    with project.eval.open() as stream:
        rows = list(csv.DictReader(stream))
    right = []
    for row in rows:
        ids = np.array([tokenizer.encode(row["text"]).ids], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        right.append(int(labels[session.run(None, feed)[0].argmax()] == row["label"]))
    proof = manifest["models"][0]["proof"]
    metrics = proof["metrics"]
    assert metrics["file"]["accuracy"] == pytest.approx(np.mean(right))
    assert metrics["original"]["accuracy"] == 1.0
    bits = np.unpackbits(np.frombuffer(base64.b64decode(proof["right"]), np.uint8))
    assert bits[: len(rows)].tolist() == right
    commonest = collections.Counter(row["label"] for row in rows).most_common(1)[0][1]
    assert metrics["chance"] == pytest.approx(commonest / len(rows))


@each_target
def test_the_figures_that_a_gate_needs_are_recorded(
    bundle: Path, target: str, tmp_path: Path
) -> None:
    folder = bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    shipped = [entry["path"] for entry in manifest["files"] if entry["shipped"]]
    with zipfile.ZipFile(tmp_path / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in shipped:
            archive.write(folder / name, name)
        found = sum(entry.compress_size for entry in archive.infolist())
    assert manifest["download_bytes"] == pytest.approx(found, rel=0.01)
    found = {
        each.rule: each for each in edgekit.gate(folder, project=_gate_rules(tmp_path)).findings
    }
    assert {each.outcome for each in found.values()} == {"pass"}
    assert found["shipped-bytes.max"].value == manifest["shipped_bytes"]
    static = manifest["models"][0]["proof"]["static"]
    assert found["ops.max"].value == sum(static["ops"].values()) > 10
    if target == "linux-x86_64":
        import onnx

        nodes = onnx.load(folder / "model.onnx").graph.node
        assert static["ops"] == collections.Counter(node.op_type for node in nodes)


def _gate_rules(folder: Path) -> Path:
    path = folder / "gate.toml"
    path.write_text('[gate.shipped-bytes]\nmax = "2MB"\n[gate.ops]\nmax = 10_000\n')
    return path


@each_target
def test_verify_passes_and_finds_one_flipped_byte_in_any_file(
    bundle: Path, target: str, tmp_path: Path
) -> None:
    bundle = shutil.copytree(bundle, tmp_path / "bundle")
    assert edgekit.verify(bundle).verdict.outcome == "pass"
    for path in sorted(bundle.iterdir()):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(BundleError):
            edgekit.verify(bundle)
        path.write_bytes(content)
    (bundle / "extra.txt").write_text("")
    with pytest.raises(BundleError, match=r"extra\.txt"):
        edgekit.verify(bundle)


def test_verify_fails_a_file_that_answers_otherwise(built_onnx: Path, tmp_path: Path) -> None:
    """Golden answers that are not the file's, under a manifest that is sealed again."""
    from edgekit.bundle.golden import read_golden, write_golden
    from edgekit.bundle.manifest import read_manifest, write_manifest

    bundle = tmp_path / "bundle"
    shutil.copytree(built_onnx / "linux-x86_64", bundle)
    golden = read_golden(bundle)
    for row in golden["rows"]:
        row["outputs"]["model.onnx"] = row["outputs"]["model.onnx"][::-1]
    write_golden(golden, bundle)
    content = (bundle / "golden.json").read_bytes()
    manifest = read_manifest(bundle)
    entries = [
        entry.model_copy(
            update={"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        )
        if entry.path == "golden.json"
        else entry
        for entry in manifest.files
    ]
    write_manifest(manifest.model_copy(update={"files": entries}), bundle)
    assert edgekit.verify(bundle).verdict.outcome == "fail"


def test_bench_measures_the_bundle(built_onnx: Path) -> None:
    found = edgekit.bench(built_onnx / "linux-x86_64", seconds=0.2)
    (figures,) = found.measurements
    assert (figures.file, figures.device, figures.timed) == ("model.onnx", "host", True)
    assert figures.latency is not None and figures.throughput is not None
    assert 0 < figures.latency.low <= figures.latency.p50 <= figures.latency.p90
    assert figures.latency.p50 <= figures.latency.high
    assert figures.latency.samples >= 16
    assert figures.memory.empty is not None and figures.memory.peak is not None
    assert figures.memory.above_empty == figures.memory.peak - figures.memory.empty > 0
    assert found.tokenization_seconds is not None and found.tokenization_seconds > 0
    schema = Path(edgekit.__file__).parent / "measure" / "measurement.schema.json"
    for each in found.to_json()["measurements"]:
        jsonschema.validate(json.loads(json.dumps(each)), json.loads(schema.read_text()))


@pytest.mark.slow
def test_bench_measures_a_file_by_itself(built: Path, tmp_path: Path) -> None:
    """With the tokenizer beside it on texts, without it on noise."""
    for name in ("model.tflite", "tokenizer.json"):
        shutil.copyfile(built / "android-arm64" / name, tmp_path / name)
    found = edgekit.bench(tmp_path / "model.tflite", seconds=0.2)
    assert found.inputs == "made-up texts"
    assert found.measurements[0].latency is not None
    assert sorted(found.measurements[0].latency.lengths) == [8, 16, 32, 64]
    (tmp_path / "tokenizer.json").unlink()
    assert edgekit.bench(tmp_path / "model.tflite", seconds=0.2).inputs == "made-up inputs"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["android-arm64"])
def test_every_runtime_from_the_promised_one_to_ours_runs_the_file(
    built: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgekit.cli import run

    assert run(["verify", str(built / target), "--matrix", "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["verdict"]["checks"]
    reasons = [check["reason"] for check in checks if check["name"] == "golden"]
    oldest = {"android-arm64": "tflite-runtime==2.14.0", "linux-x86_64": "onnxruntime==1.17.0"}
    assert any(oldest[target] in reason for reason in reasons)
    assert len(reasons) >= 4


def test_a_build_proves_its_files_on_other_devices(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this host by another name, so that it needs no set-up."""
    from edgekit.devices import host

    elsewhere = host.Host(name="another host")
    monkeypatch.setattr("edgekit.pipeline.ready", lambda name: elsewhere)
    result = _build(project, tmp_path / "dist", device="somewhere")
    (found,) = result.bundles[0].figures["model.onnx"]["elsewhere"]
    assert (found["device"], found["max_difference"], found["agreement"]) == (
        "another host",
        0.0,
        1.0,
    )
    manifest = json.loads((tmp_path / "dist" / "linux-x86_64" / "manifest.json").read_text())
    assert manifest["models"][0]["proof"]["elsewhere"] == [found]
    assert manifest["settings"]["devices"] == ["somewhere"]


@pytest.mark.slow
def test_bench_compares_two_files(built: Path) -> None:
    one, other = built / "linux-x86_64", built / "android-arm64" / "model.tflite"
    found = edgekit.bench(one, against=other, seconds=1).comparison
    assert found is not None
    assert found.outcome in ("faster", "slower", "same", "inconclusive")
    assert 0 < found.low <= found.ratio <= found.high
    assert len(found.noise) > 1


def test_a_rebuild_uses_every_stage_and_gives_the_same_bytes(
    built_onnx: Path, project: TinyProject, tmp_path: Path
) -> None:
    reused = []
    edgekit.build(
        project.checkpoint,
        data=project.train,
        eval=project.eval,
        target="linux-x86_64",
        output=tmp_path,
        budget="2MB",
        on_event=lambda event: reused.append(event.reused) if event.kind == "stage-end" else None,
    )
    # The report names the folders of its bundles.
    assert all(reused[:-1])
    first = (built_onnx / "linux-x86_64" / "model.onnx").read_bytes()
    assert (tmp_path / "linux-x86_64" / "model.onnx").read_bytes() == first


@pytest.mark.slow
def test_replacing_the_eval_file_changes_no_byte_of_the_model(
    built: Path, project: TinyProject, tmp_path: Path
) -> None:
    with project.eval.open() as stream:
        rows = stream.read().splitlines()
    other = tmp_path / "other.csv"
    other.write_text("\n".join(rows[:31]) + "\n")
    _build(project, tmp_path / "dist", eval=other, target="android-arm64", budget="2MB")
    changed = tmp_path / "dist" / "android-arm64" / "model.tflite"
    assert changed.read_bytes() == (built / "android-arm64" / "model.tflite").read_bytes()


@pytest.mark.slow
def test_a_tight_budget_trims_the_vocabulary_by_itself(
    project: TinyProject, tmp_path: Path
) -> None:
    whole = _build(project, tmp_path / "a", dry_run=True, budget="9MB").plan
    assert whole.steps == ()
    total = whole.predicted[0].total
    result = _build(project, tmp_path / "b", budget=f"{total - 200}B")
    assert [step.name for step in result.plan.steps] == ["trim-vocabulary"]
    assert result.bundles[0].shipped_bytes < total
    assert not (tmp_path / "a").exists()  # a dry run writes nothing


def test_nothing_fits_names_the_best_and_writes_nothing(
    project: TinyProject, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match="the smallest within reach is") as caught:
        _build(project, tmp_path / "dist", budget="1kB")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "dist").exists()


def test_a_broken_limit_is_a_failed_verdict_in_a_written_bundle(
    project: TinyProject, tmp_path: Path
) -> None:
    result = _build(project, tmp_path, budget="size=2MB,latency=1us")
    assert result.outcome == "fail"
    manifest = json.loads((tmp_path / "linux-x86_64" / "manifest.json").read_text())
    assert manifest["verdict"]["outcome"] == "fail"
    reasons = [check["reason"] for check in manifest["verdict"]["checks"]]
    assert any("latency" in reason and "above the limit" in reason for reason in reasons)


@pytest.mark.slow
def test_without_data_it_builds_and_says_what_is_not_proven(
    project: TinyProject, tmp_path: Path
) -> None:
    result = _build(project, tmp_path, data=None, eval=None)
    assert any("accuracy" in note and "--data" in note for note in result.plan.notes)
    proof = result.bundles[0].figures["model.onnx"]
    assert proof["metrics"]["file"] == {} and proof["parity"]["alone"]["rows"] > 0
    assert _build(
        project, tmp_path, data=None, eval=None, budget="size=2MB,accuracy-drop=1%"
    ).outcome == ("inconclusive")


def test_a_baseline_at_chance_is_refused_as_proof(project: TinyProject, tmp_path: Path) -> None:
    with project.eval.open() as stream:
        rows = list(csv.reader(stream))
    shifted = tmp_path / "shifted.csv"
    labels = sorted({row[1] for row in rows[1:]})
    wrong = {label: labels[(i + 1) % len(labels)] for i, label in enumerate(labels)}
    with shifted.open("w", newline="") as stream:
        csv.writer(stream).writerows([rows[0], *([text, wrong[label]] for text, label in rows[1:])])
    with pytest.raises(ProofError, match="proves nothing"):
        _build(project, tmp_path / "dist", eval=shifted)
    assert not (tmp_path / "dist").exists()


def test_an_output_folder_that_is_not_ours_is_left_alone(
    project: TinyProject, tmp_path: Path
) -> None:
    theirs = tmp_path / "linux-x86_64"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="did not write"):
        _build(project, tmp_path, overwrite=True)
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_a_bundle_of_another_model_needs_overwrite(project: TinyProject, tmp_path: Path) -> None:
    _build(project, tmp_path)
    other = tiny_checkpoint(tmp_path / "other", "bert", seed=3)
    with pytest.raises(OutputError, match="--overwrite"):
        edgekit.build(other, target="linux-x86_64", output=tmp_path)
    result = edgekit.build(other, target="linux-x86_64", output=tmp_path, overwrite=True)
    assert result.outcome == "pass"


def test_a_step_that_does_not_fit_the_model_is_refused_before_work(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "xlnet", "xlnet")
    with pytest.raises(RecipeError, match="prune-heads"):
        edgekit.build(
            checkpoint,
            target="linux-x86_64",
            output=tmp_path / "dist",
            steps=["prune-heads:ratio=0.5"],
        )
    assert not (tmp_path / "dist").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        [
            "drop-layers:count=1",
            "prune-heads:ratio=0.25,importance=magnitude,even=true",
            "prune-ffn:ratio=0.25,importance=taylor",
            "prune-accuracy-driven:groups=4,hard-attention=4",
            "prune-neurons:count=16",
            "factorize-embedding:rank=12",
            "tie-layers:groups=2",
            "sparsify:sparsity=0.5,epochs=0",
            "postprocess:kind=unit-length",
        ],
        ["trim-vocabulary", "factorize:method=III,rank=16", "distill:epochs=0.5"],
        ["prune-contrastive:ratio=0.25,step=0.25,epochs=0.5"],
    ],
)
def test_a_recipe_of_steps_ends_in_files_and_in_a_model_that_loads(
    steps: list[str], tmp_path: Path
) -> None:
    """Every step of text models: from a recipe file to each format, and back without it."""
    project = tiny_project(tmp_path, rows=360, layers=4, intermediate_size=48)
    tables = []
    for step in steps:
        name, _, options = step.partition(":")
        lines = [f'name = "{name}"']
        for each in filter(None, options.split(",")):
            key, value = each.split("=")
            plain = value in ("true", "false") or value.replace(".", "").isdigit()
            lines.append(f"{key} = {value}" if plain else f'{key} = "{value}"')
        tables.append("[[steps]]\n" + "\n".join(lines))
    (tmp_path / "recipe.toml").write_text("\n\n".join(tables))
    targets = ("linux-x86_64", "android-arm64", "torchscript-cpu")
    command = ["-m", "edgekit", "build", str(project.checkpoint), "--scheme", "fp32"]
    for option, value in (
        ("data", project.train),
        ("eval", project.eval),
        ("recipe", tmp_path / "recipe.toml"),
        ("output", tmp_path / "dist"),
        ("save-model", tmp_path / "saved"),
        *(("target", target) for target in targets),
    ):
        command += [f"--{option}", str(value)]
    said = run_fresh(command)
    manifests = [read_manifest(tmp_path / "dist" / target) for target in targets]
    for line in manifests[0].model.lineage:
        assert line.startswith("tried in ") or f"  {line}\n" in said
    # Each file beside the changed model, in the build; the model by itself, in another process.
    assert all(each.models[0].proof["parity"]["alone"]["max"] < 1e-3 for each in manifests)
    code = (
        "import sys, numpy as np, edgekit; from edgekit.data import Rows;"
        "from edgekit.model import identify, load_model, reference_outputs;"
        "model = load_model(identify(sys.argv[1]));"
        "assert type(edgekit.load(sys.argv[1])) is type(model.module);"
        "rows = model.preprocessor.encode(Rows(texts=('my card is lost',)));"
        "np.savez(sys.argv[2], answers=reference_outputs(model, rows), **rows.arrays)"
    )
    run_fresh(["-c", code, str(tmp_path / "saved"), str(tmp_path / "found.npz")])
    with np.load(tmp_path / "found.npz") as found:
        session = onnx_session(tmp_path / "dist" / "linux-x86_64" / "model.onnx")
        feeds = {each.name: found[each.name].astype(np.int64) for each in session.get_inputs()}
        np.testing.assert_allclose(session.run(None, feeds)[0], found["answers"], atol=1e-3)


@pytest.mark.slow
def test_a_file_that_strays_is_refused_with_the_stage_that_left_first(
    project: TinyProject, tmp_path: Path
) -> None:
    """A target whose tolerance no int8 file meets."""
    target = tmp_path / "strict"
    target.mkdir()
    shipped = Path(edgekit.__file__).parent.parent / "targets" / "linux-x86_64"
    text = (shipped / "target.toml").read_text()
    (target / "target.toml").write_text(text.replace("[parity]", "[parity]\ndifference = 1e-6"))
    with pytest.raises(ProofError, match="first stage that diverges is the int8-dynamic quantiz"):
        _build(project, tmp_path / "dist", target=str(target))
    assert not (tmp_path / "dist").exists()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plain module, which a process of its own builds soonest."""
    folder = tmp_path_factory.mktemp("plain")
    plain_module(folder)
    return folder


def _command(output: Path) -> list[str]:
    flags = ["--target", "linux-x86_64", "--output", str(output)]
    return ["-m", "edgekit", "build", "mine:small", *flags]


@pytest.mark.slow
def test_a_build_killed_at_any_moment_resumes_to_the_same_bytes(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an export, and of a proof."""
    monkeypatch.chdir(plain)
    edgekit.build("mine:small", target="linux-x86_64", output=tmp_path / "expected")
    expected = (tmp_path / "expected" / "linux-x86_64" / "model.onnx").read_bytes()
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "killed"))
    output = tmp_path / "dist"
    for done in ("loading", "running the fp32 original"):
        with Fresh(_command(output)) as process:
            assert any(done in line for line in process.stdout)
            time.sleep(0.3)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert not (output / "linux-x86_64").exists()
    run_fresh(_command(output))
    assert (output / "linux-x86_64" / "model.onnx").read_bytes() == expected
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_two_builds_at_once_both_succeed(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(plain)
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    with Fresh(_command(tmp_path / "dist")) as one, Fresh(_command(tmp_path / "dist")) as other:
        for process in (one, other):
            assert process.wait() == 0, process.stderr.read()
    assert edgekit.verify(tmp_path / "dist" / "linux-x86_64").verdict.outcome == "pass"


@pytest.mark.slow
@pytest.mark.parametrize("full", ["dist", "cache"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """On a real small disk, in a mount namespace of its own."""
    alone = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"]).returncode:
        pytest.skip("this machine lets no process mount a disk of its own")
    if full == "cache":
        monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    disk, left = tmp_path / full, tmp_path / "left"
    disk.mkdir()
    inside = (
        'disk=$1 left=$2; shift 2; mount -t tmpfs -o size=24k none "$disk" && "$@"; code=$?; '
        'ls -A "$disk" >"$left"; exit $code'
    )
    build = [sys.executable, *_command(tmp_path / "dist")]
    command = [*alone, "sh", "-c", inside, "sh", str(disk), str(left), *build]
    done = subprocess.run(command, cwd=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("edgekit: ") and "full" in last
    assert left.read_text() == "" if full == "dist" else "prove" not in left.read_text()
    assert not list((tmp_path / "dist").glob("*"))


@pytest.mark.slow
def test_a_build_killed_while_it_learns_goes_on_there(
    project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step gets a folder that outlives a kill, and a sink for how far it is."""
    known = recipe._entries()
    added = EntryPoint("relearn", "tests.learning_step:Relearn", "edgekit.steps")
    monkeypatch.setattr(recipe, "_entries", lambda: known | {"relearn": added})
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    texts: list[str] = []

    def interrupt(event: Event) -> None:
        if event.kind == "progress":
            texts.append(event.text)
            if len(texts) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _build(project, tmp_path / "dist", steps=["relearn"], on_event=interrupt)
    scratch = tmp_path.glob("cache/compress/*/*.scratch/step-0/*")
    assert {path.name for path in scratch} == {"teacher.npy", "training"}
    assert texts[-1].startswith("step 5 of 16, loss ")
    events: list[Event] = []
    result = _build(project, tmp_path / "dist", steps=["relearn"], on_event=events.append)
    assert result.outcome == "pass"
    told = [event for event in events if event.kind == "progress"]
    assert told[0].name == "compress" and told[0].text.startswith("step 5 of 16")
    assert told[-1].fraction == 1
    manifest = json.loads((tmp_path / "dist" / "linux-x86_64" / "manifest.json").read_text())
    assert manifest["model"]["lineage"] == ["relearn: 16 steps, 4"]
    assert not list(tmp_path.glob("cache/compress/*/*.scratch"))
