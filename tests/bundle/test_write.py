"""The README of a bundle: it says how this very file is called."""

from pathlib import Path

import pytest

import edgekit
from tests.tiny import tiny_checkpoint


@pytest.mark.slow
def test_a_file_with_fixed_lengths_says_so(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    for name, lengths in (("any", None), ("fixed", (16, 64))):
        edgekit.build(checkpoint, target="android-arm64", lengths=lengths, output=tmp_path / name)
    readmes = [
        (tmp_path / name / "android-arm64" / "README.md").read_text() for name in ("any", "fixed")
    ]
    assert ["length_N" in readme for readme in readmes] == [False, True]
    assert "token lengths: any" in readmes[0] and "token lengths: 16, 64" in readmes[1]
