"""Pictures: a folder with one folder for each class, and pictures as arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import units
from edgekit.data.rows import Columns, Rows
from edgekit.data.wording import one_line
from edgekit.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
# Pictures are decoded into memory; of more than this, better give a part.
_MOST_BYTES = 2 * 10**9


def read_picture_folder(folder: Path, source: str, columns: Columns) -> Rows:
    """The pictures at any depth of each class's folder; hidden and other files are passed over."""
    if columns != Columns():
        raise DataError(f"{source} is a folder and has no columns; leave out --text and --label")
    files = [
        (kind.name, file)
        for kind in sorted(folder.iterdir())
        if kind.is_dir() and not kind.name.startswith(".")
        for file in sorted(kind.rglob("*"))
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise DataError(f"no pictures in {source}; put them into one folder for each class")
    return Rows(
        images=decode_pictures(len(files), lambda row: _open(files[row][1]), source),
        labels=tuple(kind for kind, _ in files),
        places=tuple(file.relative_to(folder).as_posix() for _, file in files),
    )


def decode_pictures(count: int, picture: Callable[[int], "Image.Image"], source: str) -> np.ndarray:
    """Pictures as ``Rows.images``: upright, one channel when all are grey, else RGB.

    ``picture(row)`` opens one; it is called twice for each. Raises DataError for a damaged one.
    """
    from PIL import ImageOps

    grey, size = True, 0
    for row in range(count):
        with picture(row) as image:  # only the header is read here
            grey = grey and image.mode in ("1", "L")
            size += image.width * image.height * 3
    if size > _MOST_BYTES:
        raise DataError(
            f"the {count:,} pictures of {source} take {units.format_bytes(size)} in memory; give "
            f"fewer or smaller ones, of at most {units.format_bytes(_MOST_BYTES)} in all"
        )
    decoded = []
    for row in range(count):
        with picture(row) as image:
            try:
                upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
            except (OSError, ValueError, SyntaxError) as error:
                name = getattr(image, "filename", None) or f"picture {row + 1} of {source}"
                raise DataError(
                    f"{name} is damaged ({one_line(error)}); remove or replace it"
                ) from None
        pixels = np.asarray(upright, dtype=np.uint8)
        decoded.append(pixels[..., None] if grey else pixels)
    if len({pixels.shape for pixels in decoded}) == 1:
        return np.stack(decoded)
    images = np.empty(count, dtype=object)
    for row, pixels in enumerate(decoded):
        images[row] = pixels
    return images


def _open(path: Path) -> "Image.Image":
    from PIL import Image

    try:
        return Image.open(path)
    except OSError as error:
        raise DataError(
            f"{path} is no picture that can be read ({one_line(error)}); remove or replace it"
        ) from None
