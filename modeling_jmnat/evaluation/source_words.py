"""The words of a source text, which noise drops or replaces and by whose number sentences are grouped."""

import re
import unicodedata
from collections.abc import Callable, Sequence

from ..utils.bleu import language_without_spaces

# Vowel signs and other marks of the scripts from Thai to Khmer, which belong to the character before them.
MARKS = "".join(chr(code) for code in range(0x0E00, 0x1800) if unicodedata.category(chr(code)).startswith("M"))
WORD = re.compile(r"(\S+)(\s*)")
CHARACTER = re.compile(rf"((?:[^\s\u0e00-\U0010ffff]+|\S)[{MARKS}]*)(\s*)")  # or a word of letters as in Europe


def word_finder(lines: Sequence[str]) -> Callable[[str], list[tuple[str, str]]]:
    """A function from a line to its words, each with the white space behind it.

    In languages without spaces between words (Chinese, Japanese, Thai, ...), recognised by the script of `lines`,
    every character counts as a word. Korean has spaces.
    """
    unspaced = language_without_spaces(lines) not in (None, "ko")
    return (CHARACTER if unspaced else WORD).findall
