"""The manifest and its published schema."""

import json
from pathlib import Path

from edgekit.bundle import manifest


def test_the_published_schema_is_that_of_the_code() -> None:
    """Write it again with: python -m edgekit.bundle.manifest"""
    published = Path(manifest.__file__).with_name("manifest.schema.json")
    assert json.loads(published.read_text()) == manifest.schema()
