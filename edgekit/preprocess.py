"""Rows into model inputs: text by the checkpoint's own tokenizer, pictures by its own settings.

Needs the ``tokenizers`` library or Pillow and numpy, not transformers: what happens here is what
an app does on the device.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import DataError, ModelError
from edgekit.ngrams import NOTHING, PADDING, ngram_ids

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from edgekit.data import Rows

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Encoded:
    """Model inputs for N rows, by input name.

    arrays: text as int32 [N, L] padded on the right to the longest row, pictures as
        ``pixel_values`` float32 [N, C, H, W].
    lengths: int32 [N], the true number of tokens of each text; ``None`` for anything else.
    word_starts: for each row the position of every word's first token, -1 for a word that has
        no token (nothing left after normalization, or cut off); token classification only.
    """

    arrays: dict[str, Array]
    lengths: Array | None
    word_starts: tuple[Array, ...] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def rows(self, index: Any) -> "Encoded":
        """The rows that a slice, a mask or an array of positions picks; the padding stays."""
        picked = np.arange(len(self))[index]
        return Encoded(
            arrays={name: array[picked] for name, array in self.arrays.items()},
            lengths=None if self.lengths is None else self.lengths[picked],
            word_starts=(
                None if self.word_starts is None else tuple(self.word_starts[i] for i in picked)
            ),
        )


@dataclass(frozen=True)
class TextPreprocessor:
    """Texts into token ids.

    tokenizer_json: a ``tokenizers`` tokenizer without truncation and padding.
    max_length: the most tokens of a row, special tokens included.
    inputs: names of the model's inputs in the order that its file takes them.
    pairs_apart: a row of two texts becomes two rows, all first texts before all second ones
        (sentence-embedding), instead of one row that holds both.
    """

    tokenizer_json: str
    max_length: int
    pad_id: int
    inputs: tuple[str, ...]
    pairs_apart: bool = False

    def encode(self, rows: "Rows", *, max_length: int | None = None) -> Encoded:
        """Token ids of every row, cut to ``max_length`` tokens (at most the model's own)."""
        limit = min(max_length or self.max_length, self.max_length)
        tokenizer = _tokenizer(self.tokenizer_json, limit)
        if rows.words is not None:
            encodings = tokenizer.encode_batch(list(map(list, rows.words)), is_pretokenized=True)
            starts = tuple(map(_word_starts, encodings, map(len, rows.words)))
            return self._arrays(encodings, starts)
        texts: Sequence[Any] = rows.texts or ()
        if rows.pairs is not None:
            texts = (
                (*texts, *rows.pairs)
                if self.pairs_apart
                else tuple(zip(texts, rows.pairs, strict=True))
            )
        return self._arrays(tokenizer.encode_batch(list(texts)), None)

    def random_texts(self, count: int, chance: np.random.Generator) -> list[str]:
        """Texts of 1 to 64 random tokens."""
        tokenizer = _tokenizer(self.tokenizer_json, self.max_length)
        size = tokenizer.get_vocab_size()
        lengths = chance.integers(1, 65, count)
        return [tokenizer.decode(chance.integers(0, size, n).tolist()) for n in lengths]

    def _arrays(self, encodings: "Sequence[Encoding]", starts: tuple[Array, ...] | None) -> Encoded:
        lengths = np.array([len(encoding) for encoding in encodings], np.int32)
        shape = (len(encodings), int(lengths.max(initial=0)))
        columns = {
            "input_ids": "ids",
            "attention_mask": "attention_mask",
            "token_type_ids": "type_ids",
        }
        arrays = {}
        for name in self.inputs:
            array = np.full(shape, self.pad_id if name == "input_ids" else 0, np.int32)
            for row, encoding in zip(array, encodings, strict=True):
                row[: len(encoding)] = getattr(encoding, columns[name])
            arrays[name] = array
        return Encoded(arrays, lengths, starts)


@dataclass(frozen=True)
class NgramPreprocessor:
    """Texts into ids of n-grams, by the rules of ``edgekit.ngrams``.

    ngrams: by id. max_length: the most n-grams of a row; the rest is left out. inputs: as a
    ``TextPreprocessor`` has them; where ``token_type_ids`` is one, a row holds two texts, whose
    n-grams have the types 0 and 1.
    """

    ngrams: tuple[str, ...]
    max_length: int
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    pad_id = 0

    def encode(self, rows: "Rows", *, max_length: int | None = None) -> Encoded:
        """N-gram ids of every row, cut to ``max_length`` (at most the model's own)."""
        limit = min(max_length or self.max_length, self.max_length)
        known = _numbered(self.ngrams)
        pairs = "token_type_ids" in self.inputs
        columns = [rows.texts or ()] + ([rows.pairs or rows.texts or ()] if pairs else [])
        # Of two texts each gets half, or what the other leaves.
        found = [_within([ngram_ids(text, known) for text in row], limit) for row in zip(*columns)]
        lengths = np.array([sum(map(len, row)) for row in found], np.int32)
        shape = (len(found), int(lengths.max(initial=0)))
        arrays = {name: np.zeros(shape, np.int32) for name in self.inputs}
        for number, row in enumerate(found):
            length = lengths[number]
            arrays["input_ids"][number, :length] = [each for bag in row for each in bag]
            arrays["attention_mask"][number, :length] = 1
            if pairs:
                arrays["token_type_ids"][number, len(row[0]) : length] = 1
        return Encoded(arrays, lengths)

    def random_texts(self, count: int, chance: np.random.Generator) -> list[str]:
        """Texts of 1 to 16 random n-grams."""
        lengths = chance.integers(1, 17, count)
        return [" ".join(chance.choice(self.ngrams[2:] or ("",), n)) for n in lengths]


TextReader = TextPreprocessor | NgramPreprocessor


@dataclass(frozen=True)
class ImagePreprocessor:
    """Pictures into ``pixel_values``: resize, crop, rescale and normalize.

    height, width: of the model's input, in pixels. shortest_edge: resize the shorter side to
    this and cut the middle out; ``None`` stretches the picture to height x width.
    mean, std: one number per channel, in units of rescaled pixels (pixel * rescale).
    resample: Pillow's number of the filter (2 bilinear, 3 bicubic).
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    resample: int
    shortest_edge: int | None = None

    inputs = ("pixel_values",)

    def encode(self, rows: "Rows") -> Encoded:
        """``pixel_values`` float32 [N, C, H, W] of uint8 pictures [N, H, W, C]."""
        pictures = rows.images if rows.images is not None else ()
        pixels = np.zeros((len(pictures), self.channels, self.height, self.width), np.float32)
        mean = np.array(self.mean, np.float32)
        std = np.array(self.std, np.float32)
        for index, picture in enumerate(pictures):
            fitted = self._fit(picture).astype(np.float32)
            normal = (fitted * np.float32(self.rescale) - mean) / std
            pixels[index] = normal.transpose(2, 0, 1)
        return Encoded({"pixel_values": pixels}, None)

    def _fit(self, picture: Array) -> Array:
        """uint8 [H, W, C] of any size and 1 or 3 channels to this model's size and channels."""
        from PIL import Image

        if picture.ndim != 3 or picture.shape[2] not in (1, 3):
            raise DataError(
                f"a picture has the shape {picture.shape}; give height x width x 1 or 3 channels"
            )
        image = Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture)
        image = image.convert("RGB" if self.channels == 3 else "L")
        if self.shortest_edge is None:
            width, height = self.width, self.height
        else:
            shorter = min(image.size)
            width, height = (int(self.shortest_edge * side / shorter) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling(self.resample))
        left, top = (width - self.width) // 2, (height - self.height) // 2
        image = image.crop((left, top, left + self.width, top + self.height))
        return np.asarray(image).reshape(self.height, self.width, self.channels)


def read_ngrams(path: Any) -> tuple[str, ...]:
    """The lines of ``ngrams.txt``. Raises ModelError."""
    try:
        text: str = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}); save the model again") from None
    lines = tuple(text.removesuffix("\n").split("\n"))
    if lines[:2] != (PADDING, NOTHING) or len(set(lines)) < len(lines):
        raise ModelError(
            f"{path} is no list of n-grams: it begins with {PADDING} and {NOTHING} and has each "
            "n-gram once; save the model again"
        )
    return lines


def image_preprocessor(
    settings: Mapping[str, Any], channels: int, source: str
) -> ImagePreprocessor:
    """From a checkpoint's ``preprocessor_config.json``.

    Raises ModelError when it asks for something that we do not do.
    """
    size = _edges(settings.get("size", 224))
    crop = _edges(settings.get("crop_size", 224)) if settings.get("do_center_crop") else None
    shortest = size.get("shortest_edge")
    if not settings.get("do_resize", True):
        raise ModelError(f"{source} does not resize pictures; a file needs one size: set do_resize")
    if shortest is not None and "crop_pct" in settings:
        # ConvNeXT's way, used by ResNet: enlarge by 1 / crop_pct, then cut the middle out.
        crop = {"height": shortest, "width": shortest}
        shortest = int(shortest / settings["crop_pct"]) if shortest < 384 else None
    target = crop or size
    if "height" not in target or (shortest or 10**9) < max(target["height"], target["width"]):
        raise ModelError(f"{source} has a size that gives no fixed picture: {settings.get('size')}")
    if crop is not None and shortest is None and crop != size and "height" in size:
        raise ModelError(f"{source} crops after stretching; give size as shortest_edge")
    normal = settings.get("do_normalize", True)
    return ImagePreprocessor(
        height=target["height"],
        width=target["width"],
        channels=channels,
        mean=_per_channel(settings.get("image_mean", 0.5) if normal else 0.0, channels),
        std=_per_channel(settings.get("image_std", 0.5) if normal else 1.0, channels),
        rescale=settings.get("rescale_factor", 1 / 255)
        if settings.get("do_rescale", True)
        else 1.0,
        resample=int(settings.get("resample", 2)),
        shortest_edge=shortest,
    )


def _edges(size: Any) -> dict[str, int]:
    return dict(size) if isinstance(size, Mapping) else {"height": int(size), "width": int(size)}


def _per_channel(value: Any, channels: int) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Sequence) else (float(value),) * channels


@functools.lru_cache(maxsize=4)
def _numbered(ngrams: tuple[str, ...]) -> dict[str, int]:
    return {each: number for number, each in enumerate(ngrams)}


def _within(bags: list[list[int]], limit: int) -> list[list[int]]:
    """The bags of a row, at most ``limit`` n-grams together."""
    if len(bags) == 1:
        return [bags[0][:limit]]
    half = limit // 2
    first = bags[0][: max(half, limit - len(bags[1]))]
    return [first, bags[1][: limit - len(first)]]


@functools.lru_cache(maxsize=4)
def _tokenizer(tokenizer_json: str, max_length: int) -> "Tokenizer":
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _word_starts(encoding: "Encoding", words: int) -> Array:
    starts = np.full(words, -1, np.int32)
    for position, word in enumerate(encoding.word_ids):
        if word is not None and starts[word] < 0:
            starts[word] = position
    return starts
