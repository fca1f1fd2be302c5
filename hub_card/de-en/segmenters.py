"""Text to the pieces of a fixed vocabulary, for tokenizers that come from other toolkits.

Tokenizers trained here need only their tokenizer.json. Those of converted models use it to look up pieces that are
made before: by the merges of subword-nmt and fastBPE, or by a SentencePiece model for each language.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np
from tokenizers import Tokenizer, models

# Marks of subword-nmt and fastBPE.
END_OF_WORD = "</w>"
CONTINUATION = "@@"
CACHED_WORDS = 100_000
SPACE = "\u2581"  # SentencePiece's sign for it
UNKNOWN_PENALTY = np.float32(10)  # as in SentencePiece, below the log-probability of the rarest piece


class BytePairSegmenter:
    """Text to byte-pair pieces with spaces between them, by the merges of subword-nmt or fastBPE.

    Tokenizers of converted fairseq models need it: their vocabulary has pieces as in the dictionary (`wor@@`, `d`),
    and lacks intermediate results of merges.

    Args:
        merges: pairs of pieces such as `"t h"` and `"e r</w>"` in order of priority.
        end_of_word_pieces: mark the ends of words by `</w>` (`wor d</w>`) instead of continuations (`wor@@ d`).
    """

    def __init__(self, merges: Sequence[str], end_of_word_pieces: bool = False):
        self.end_of_word_pieces = end_of_word_pieces
        self.ranks: dict[tuple[str, ...], int] = {}
        for rank, merge in enumerate(merges):
            self.ranks.setdefault(tuple(merge.split(" ")), rank)
        # In subword-nmt 0.1 the end of the word was a separate piece.
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


class SentencePieceSegmenter:
    """Text to the pieces of a SentencePiece model, separated by spaces; identical to SentencePiece's own.

    Args:
        model: a `tokenizers.Tokenizer` as JSON, unigram (Kudo 2018) or byte pairs; its ids are not used.
    """

    def __init__(self, model: str):
        self.model = model
        self.tokenizer = Tokenizer.from_str(model)
        self.is_unigram = isinstance(self.tokenizer.model, models.Unigram)

    def normalize(self, text: str) -> str:
        """The text as normalised before segmentation, with spaces instead of SentencePiece's sign."""
        return self.tokenizer.normalizer.normalize_str(text).replace(SPACE, " ").strip(" ")

    def __call__(self, text: str) -> str:
        pieces = self.tokenizer.encode(text).tokens
        # Pieces that repeat one string, such as `0` and `00`, are equally likely in any order: rounding decides.
        tied = (one + other == other + one and one != other for one, other in itertools.pairwise(pieces))
        if self.is_unigram and any(tied):
            pieces = self.segment_in_single_precision(text)
        return " ".join(pieces)

    @cached_property
    def scores(self) -> dict[str, np.float32]:
        """Log-probabilities of the pieces, in the precision of SentencePiece."""
        pieces = json.loads(self.model)["model"]
        unknown = pieces["unk_id"]
        return {piece: np.float32(score) for i, (piece, score) in enumerate(pieces["vocab"]) if i != unknown}

    def segment_in_single_precision(self, text: str) -> list[str]:
        """As SentencePiece's own search, with its single-precision sums; `tokenizers` uses double precision."""
        text = self.tokenizer.normalizer.normalize_str(text)
        unknown = min(self.scores.values()) - UNKNOWN_PENALTY
        longest = max(map(len, self.scores))
        # The best path to each position: its score, the start of its last piece, and whether that piece is known.
        best = {0: (np.float32(0), 0, True)}
        for begin in range(len(text)):
            steps = {
                end: (score, True)
                for end in range(begin + 1, min(begin + longest, len(text)) + 1)
                if (score := self.scores.get(text[begin:end])) is not None
            }
            steps.setdefault(begin + 1, (unknown, False))
            for end, (score, known) in steps.items():
                if end not in best or best[begin][0] + score > best[end][0]:
                    best[end] = (best[begin][0] + score, begin, known)
        pieces: list[str] = []
        end, after_is_known = len(text), True
        while end:
            _, begin, known = best[end]
            if known or after_is_known:
                pieces.append(text[begin:end])
            else:
                pieces[-1] = text[begin:end] + pieces[-1]
            end, after_is_known = begin, known
        return pieces[::-1]


def moses_tool(tool: str, language: str, escape: bool = False, split_dashes: bool = False) -> Callable[[str], str]:
    """Moses `"tokenizer"` or `"detokenizer"` of a language, as a function from a string to a string.

    Without `escape`, entities are left alone in both directions (`&` does not become `&amp;`). With `split_dashes`,
    `well-known` becomes `well @-@ known`; the detokenizer always joins it. A language without a list of abbreviations
    uses the English one, as in Moses.

    Raises:
        ImportError: sacremoses is not installed.
        ValueError: `language` is not a language code.
    """
    if not re.fullmatch("[a-z]{2,3}", language):
        raise ValueError(f"Moses language {language!r} must be a code such as 'de' or 'en'")
    try:
        import sacremoses
    except ImportError:
        raise ImportError(
            "this tokenizer applies Moses tokenisation, which needs sacremoses: pip install sacremoses"
        ) from None
    if tool == "tokenizer":
        tokenizer = sacremoses.MosesTokenizer(lang=language)
        return lambda text: tokenizer.tokenize(text, split_dashes, return_str=True, escape=escape)
    detokenizer = sacremoses.MosesDetokenizer(lang=language)
    return lambda text: detokenizer.detokenize(text.split(), return_str=True, unescape=escape)
