"""Byte-pair pieces of words by the merges of subword-nmt or fastBPE, as their own programs give them.

Tokenizers of converted fairseq models need this: their vocabulary holds pieces as the dictionary writes them
(`wor@@`, `d`), and not every piece that a merge passes through.
"""

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

END_OF_WORD = "</w>"
CONTINUATION = "@@"
CACHED_WORDS = 100_000


class BytePairSegmenter:
    """Text to pieces with spaces between them.

    Args:
        merges: pairs of pieces such as `"t h"` and `"e r</w>"`, the first ones are merged first.
        end_of_word_pieces: pieces end words with `</w>` (`wor d</w>`) instead of marking continuations (`wor@@ d`).
    """

    def __init__(self, merges: Sequence[str], end_of_word_pieces: bool = False):
        self.end_of_word_pieces = end_of_word_pieces
        self.ranks: dict[tuple[str, ...], int] = {}
        for rank, merge in enumerate(merges):
            self.ranks.setdefault(tuple(merge.split(" ")), rank)
        # subword-nmt 0.1 let the end of the word be a piece of its own.
        self.end_stands_alone = any(END_OF_WORD in pair for pair in self.ranks)
        self.segment_word = lru_cache(CACHED_WORDS)(self._segment_word)

    def __call__(self, text: str) -> str:
        return " ".join(self.segment_word(word) for word in text.split())

    def _segment_word(self, word: str) -> str:
        pieces = [*word, END_OF_WORD] if self.end_stands_alone else [*word[:-1], word[-1] + END_OF_WORD]
        while len(pieces) > 1:
            pair = min(itertools.pairwise(pieces), key=lambda pair: self.ranks.get(pair, math.inf))
            if pair not in self.ranks:
                break
            pieces = _merge(pieces, pair)
        if self.end_of_word_pieces:
            return " ".join(pieces)
        pieces[-1] = pieces[-1].removesuffix(END_OF_WORD)
        pieces = [piece for piece in pieces if piece]
        return f"{CONTINUATION} ".join(pieces)


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """`pieces` with every occurrence of `pair` joined, from left to right."""
    merged, position = [], 0
    while position < len(pieces):
        joined = tuple(pieces[position : position + 2]) == pair
        merged.append("".join(pair) if joined else pieces[position])
        position += 1 + joined
    return merged
