"""Targets: the ones that come with edgekit, and folders of one's own."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.artifact import SCHEMES
from edgekit.errors import TargetError
from edgekit.target import Runtime, load_target, scheme_refusal, target_names

_GOOD = """\
description = "a board"
formats = ["onnx"]
scheme = "fp16"
instruction_set = "armv8"
threads = 1

[runtime]
package = "onnxruntime"
oldest = "1.17.0"
"""


def test_every_shipped_target_loads_and_has_the_readme_of_its_bundle() -> None:
    assert len(target_names()) == 9
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        assert "$file" in (target.folder / "README.md").read_text() or name == "cuda"


def test_android_arm64_promises_the_oldest_runtime() -> None:
    target = load_target("android-arm64")
    assert (target.runtime.package, target.runtime.oldest) == ("tflite-runtime", "2.14.0")
    assert target.formats == ("tflite",)


def test_a_folder_is_a_target_by_path(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text(_GOOD)
    assert load_target(str(tmp_path)).scheme == "fp16"


def test_every_shipped_target_takes_its_own_scheme_and_says_why_no_others() -> None:
    for name in target_names():
        target = load_target(name)
        assert target.scheme in target.schemes
        for scheme in SCHEMES:
            refused = scheme_refusal(target, target.formats, scheme)
            assert (refused is None) == (scheme in target.schemes)
            assert refused is None or target.no_others in refused != ""


def test_a_format_that_cannot_hold_the_scheme_is_refused() -> None:
    target = load_target("linux-x86_64")
    assert scheme_refusal(target, ("onnx", "tflite"), "int4-weights") is None
    refused = scheme_refusal(target, ("onnx", "torchscript"), "int4-weights")
    assert refused is not None and refused.startswith("torchscript cannot hold int4-weights: ")


def test_a_target_without_a_list_names_every_scheme(tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text(_GOOD)
    assert load_target(str(tmp_path)).schemes == SCHEMES


def test_integer_ends_are_for_static_tflite(tmp_path: Path) -> None:
    assert load_target("integer-only").integer_ends
    text = _GOOD.replace("threads = 1", "threads = 1\ninteger_ends = true")
    (tmp_path / "target.toml").write_text(text)
    with pytest.raises(TargetError, match="integer_ends: is for TFLite and for the schemes"):
        load_target(str(tmp_path))


@pytest.mark.parametrize(
    ("package", "oldest", "runs"),
    [
        ("onnxruntime", "1.23.2", False),
        ("onnxruntime", "1.31.0", True),
        ("ai-edge-litert", "2.1.6", False),
        ("ai-edge-litert", "2.2.0", True),
        ("tflite-runtime", "2.14.0", False),
    ],
)
def test_a_scheme_that_the_oldest_runtime_lacks_is_refused(
    package: str, oldest: str, runs: bool, tmp_path: Path
) -> None:
    (tmp_path / "target.toml").write_text(_GOOD)
    target = replace(load_target(str(tmp_path)), runtime=Runtime(package, oldest))
    refused = scheme_refusal(target, ("onnx",), "int2-weights")
    assert (refused is None) == runs
    assert runs or (refused is not None and f"promises {package} {oldest}" in refused)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(TargetError, match="did you mean 'android-arm64'"):
        load_target("andriod-arm64")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('scheme = "fp16"', 'scheme = "banana"'), r"line 3: scheme: .*banana"),
        (("threads = 1", 'threads = "many"'), r"line 5: threads"),
        (("threads = 1", "threads = 0"), "threads: must be at least 1"),
        (("threads = 1", "treads = 1"), "line 5: treads: unknown key"),
        (('formats = ["onnx"]', "formats = ["), "not valid TOML"),
        (('oldest = "1.17.0"', ""), "oldest: this key is missing"),
        (('formats = ["onnx"]', "formats = []"), "at least one format"),
        (("threads = 1", 'threads = 1\nschemes = ["int4"]'), "line 6: schemes: .*int4"),
        (("threads = 1", 'threads = 1\nschemes = ["fp32"]'), "scheme: .* takes fp32, not fp16"),
        (
            (
                'formats = ["onnx"]\nscheme = "fp16"',
                'formats = ["torchscript"]\nscheme = "int4-weights"',
            ),
            "scheme: torchscript cannot hold int4-weights",
        ),
    ],
)
def test_a_malformed_target_names_line_and_key(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    (tmp_path / "target.toml").write_text(_GOOD.replace(*change))
    with pytest.raises(TargetError, match=message):
        load_target(str(tmp_path))
