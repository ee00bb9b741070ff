"""What a person reads of bundles: one page, or a model card.

The room is not called ``report``, because ``edgekit.report`` is the function.
"""

import hashlib
from pathlib import Path


def source_digest() -> str:
    """The digest of this room: a page is written again when what writes it has changed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
