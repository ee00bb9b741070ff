"""A text as a bag of n-grams, with nothing but the standard library: what an app has to do.

Rules:

1. A text is put into Unicode's form NFC and each of its characters into lower case.
2. A word is a run of letters, marks and digits (categories L, M and N), or one punctuation mark or
   symbol (P and S). All else only parts words.
3. The text's n-grams are its runs of 1 to ``LONGEST`` words, each written with one space between
   words, in the order in which they begin, short ones first. One that occurs twice is there twice.
4. An n-gram's id is its line in ``ngrams.txt``, from 0; those that are not in it are left out.
   Line 0 is the padding, line 1 stands for a text of which nothing is left.
5. The vocabulary is the most frequent n-grams of the training text; of those as frequent, first
   the ones of fewer words, then by code points. So whatever an n-gram begins with is there too.
"""

import collections
import functools
import unicodedata

LONGEST = 4
PADDING, NOTHING = "[PAD]", "[NONE]"


def split_words(text: str) -> list[str]:
    """Runs of letters, marks and digits, and punctuation one by one, in lower case."""
    words: list[str] = []
    open_word = False
    for character in unicodedata.normalize("NFC", text):
        category = unicodedata.category(character)[0]
        inside = category in "LMN"
        if inside and open_word:
            words[-1] += character.lower()
        elif inside or category in "PS":
            words.append(character.lower())
        open_word = inside
    return words


def ngrams(words: list[str]) -> list[str]:
    """Every run of up to ``LONGEST`` words, by where it begins and then by its length."""
    return [
        " ".join(words[start:end])
        for start in range(len(words))
        for end in range(start + 1, min(start + LONGEST, len(words)) + 1)
    ]


def ngram_ids(text: str, known: dict[str, int]) -> list[int]:
    """The ids of the n-grams that are known, or of ``NOTHING``."""
    found = [known[each] for each in ngrams(split_words(text)) if each in known]
    return found or [known[NOTHING]]


@functools.lru_cache(maxsize=4)
def most_frequent(texts: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Rules 4 and 5: the lines of ``ngrams.txt``, of at most ``size`` n-grams.

    Plans ask several times.
    """
    counts = collections.Counter(each for text in texts for each in ngrams(split_words(text)))
    order = sorted(counts, key=lambda each: (-counts[each], each.count(" "), each))
    return PADDING, NOTHING, *order[:size]
