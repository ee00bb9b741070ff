"""The wheel: it holds all that edgekit reads at run time, and works away from its sources."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation, since the suite needs no network: hatchling is one of its requirements.
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(_ROOT)], check=True)
    (built,) = folder.glob("edgekit-*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_read_at_run_time(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    targets = {path.name for path in (_ROOT / "targets").iterdir() if path.is_dir()}
    assert {f"edgekit/targets/{name}/target.toml" for name in targets} <= names
    assert {
        "edgekit/bundle/manifest.schema.json",
        "edgekit/devices/agent.py",
        "edgekit/devices/page/agent.js",
        "edgekit/devices/page/index.html",
        "edgekit/measure/measurement.schema.json",
        "edgekit/py.typed",
        "edgekit/sample/banking77/test.csv",
        "edgekit/sample/banking77/train.csv",
    } <= names
    assert {Path(name).name for name in names} >= {"LICENSE", "NOTICE", "entry_points.txt"}
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


@pytest.mark.slow
def test_the_installed_wheel_finds_its_targets_and_its_command(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from edgekit import target\n"
        "print(target.targets_folder(), *target.target_names())\n"
        "from edgekit import cli; print(cli.main.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    folder, *names = done.stdout.split()
    assert Path(folder) == site / "edgekit" / "targets"
    assert "android-arm64" in names
    assert names[-1] == "main"
