"""Which tokens of a text are hidden, and behind what.

Devlin et al. 2018, arXiv 1810.04805, section 3.1, task 1.

Rules:

1. Of a row's tokens, special ones apart, ``share`` are chosen: at least one, rounded.
2. Of those, 80 % become the mask token, 10 % a random token that is not special, 10 % stay.
3. The choice is a function of the seed, the batch's place in the training and the row: it is
   another one in each epoch, and the same one when a killed training goes on, whatever the number
   of processes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RecipeError

if TYPE_CHECKING:
    from edgekit.preprocess import Array, TextPreprocessor

# As the families' tokenizers call it.
_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True)
class Masking:
    """mask: the id of the mask token. special: ids that are never hidden. tokens: all ids."""

    mask: int
    special: tuple[int, ...]
    tokens: int
    share: float
    seed: int

    def apply(self, ids: Array, real: Array, rows: Array, place: int) -> tuple[Array, Array]:
        """The ids [B, L] with some hidden, and which [B, L] (bool) were chosen.

        real: [B, L], not zero where a row has a token. rows: [B], the rows' numbers.
        """
        hidden, chosen = ids.copy(), np.zeros(ids.shape, bool)
        free = (real != 0) & ~np.isin(ids, self.special)
        plain = np.setdiff1d(np.arange(self.tokens), self.special)
        for number, row in enumerate(rows):
            chance = np.random.default_rng([self.seed, place, int(row)])
            (places,) = np.nonzero(free[number])
            if len(places) == 0:
                continue
            count = max(1, round(self.share * len(places)))
            picked = chance.permutation(places)[:count]
            fate = chance.random(count)
            strange = chance.choice(plain, count)
            chosen[number, picked] = True
            hidden[number, picked[fate < 0.8]] = self.mask
            hidden[number, picked[fate >= 0.9]] = strange[fate >= 0.9]
        return hidden, chosen


def masking_of(
    preprocessor: TextPreprocessor, tokens: int, share: float, seed: int, step: str
) -> Masking:
    """For texts of this tokenizer. Raises RecipeError when it has no mask token."""
    added = json.loads(preprocessor.tokenizer_json).get("added_tokens", [])
    special = {each["content"]: each["id"] for each in added if each.get("special")}
    mask = next((special[name] for name in _MASKS if name in special), None)
    if mask is None:
        raise RecipeError(
            f"{step}: this model's tokenizer has no mask token ({' or '.join(_MASKS)}); leave the "
            "step out"
        )
    return Masking(mask, tuple(sorted(special.values())), tokens, share, seed)
