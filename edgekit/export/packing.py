"""Integers of fewer than 8 bits in bytes. Rules:

1. Matrices: the first number in the lowest bits of a byte, as MatMulNBits and TFLite's INT4 and
   INT2 have them.
2. Rows of tables in 4 bits: operators that look them up are young (tflite-runtime 2.14 refuses a
   4-bit EMBEDDING_LOOKUP, ONNX Runtime has GatherBlockQuantized since 1.20). So a row of D numbers
   from -7 to 7 becomes D / 2 numbers of int8: 16 times number i + D / 2, plus number i. Float
   arithmetic that every runtime has takes a byte b apart, exactly: the second is r = round(b / 16),
   the first b - 16 r, because it is less than half of 16.
3. Word tables have 4 bits: those of 1,024 rows and more, of an even width. Tables of positions and
   token types are small, and each of their rows is in every text (all tables of MiniLM in 4 bits:
   error 0.18 of the spread; the words' alone: 0.07).
"""

import numpy as np
import numpy.typing as npt

from edgekit.artifact import TABLE_BITS, Scheme
from edgekit.steps.quantize.grid import Int8

STEP = 16.0  # of rule 2
_WORDS = 1024  # of rule 3


def pack_bits(numbers: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Numbers below 2^bits as bytes, 1-D (rule 1); the last byte is filled up with zeros."""
    each = 8 // bits
    filled = np.append(numbers.reshape(-1), np.zeros(-numbers.size % each, np.uint8))
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(filled.reshape(-1, each) << shifts, axis=1)
    return packed


def table_bits(scheme: Scheme, shape: tuple[int, ...]) -> int:
    """Bits of the integers of a table [rows, width] (rule 3)."""
    rows, width = shape
    return TABLE_BITS.get(scheme, 8) if rows >= _WORDS and width % 2 == 0 else 8


def pack_rows(integers: Int8) -> Int8:
    """Rows [..., D] of integers from -7 to 7 as [..., D / 2] (rule 2)."""
    first, second = np.split(integers, 2, axis=-1)
    return (16 * second + first).astype(np.int8)
