"""A document as text to translate and everything else, which stays the same to the byte."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

Translate = Callable[[list[str]], Iterable[str]]  # a translation for each text, which is one line
LINE_END = re.compile(r"\r\n?|\n")
LONGEST_QUOTE = 80  # characters of a document in an error message


class Piece(Protocol):
    """A stretch of a document that has text.

    Args:
        texts: the texts to translate, each one line.
    """

    texts: Sequence[str]

    def write(self, translations: Sequence[str]) -> str:
        """The stretch with translations in place of `texts`; given the texts themselves, it is unchanged."""


@dataclass(frozen=True)
class Document:
    """A document as pieces to translate, and text between them that stays as it is."""

    parts: list[str | Piece]

    @property
    def texts(self) -> list[str]:
        return [text for part in self.parts if not isinstance(part, str) for text in part.texts]

    def write(self, translations: Iterable[str]) -> str:
        """The document with translations in place of `texts`, in the same order."""
        rest = iter(translations)
        return "".join(
            part if isinstance(part, str) else part.write([next(rest) for _ in part.texts]) for part in self.parts
        )


def one_line(text: str) -> str:
    return " ".join(text.split())


def line_end(text: str) -> str:
    """The first line end of a text; a line feed if it has none."""
    found = LINE_END.search(text)
    return found[0] if found else "\n"


def shortened(text: object) -> str:
    """The beginning of a text in one line, for error messages."""
    line = one_line(str(text))
    return line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + "…"


def has_words(text: str) -> bool:
    return any(map(str.isalpha, text))
