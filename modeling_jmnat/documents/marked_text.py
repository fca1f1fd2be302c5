"""Text with markup in it, such as `Das ist <b>gut</b>.`: it is translated whole, then the markup is placed.

The text that a pair of marks encloses is also translated by itself. If that translation occurs exactly once in the
translation of the whole, the marks go around it; otherwise around as many words at the same position in the sentence.
A mark that encloses no text is read as a stand-in, which models copy.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .pieces import has_words, one_line
from .placeholders import STAND_IN, stand_ins

EDGE_SIGNS = " .,:;!?"


@dataclass(frozen=True)
class Mark:
    """Markup as written: it opens or closes a stretch of text, or stands alone."""

    raw: str
    kind: Literal["open", "close", "alone"]


@dataclass
class Run:
    """Text between marks; marks that stand alone are included as placeholders.

    Args:
        closing, opening: marks before it, as written.
        depth: number of pairs of marks that enclose it.
    """

    depth: int = 0
    text: str = ""
    closing: list[str] = field(default_factory=list)
    opening: list[str] = field(default_factory=list)


@dataclass
class MarkedText:
    """A piece of a document.

    Args:
        parts: text as written in the document, and marks.
        decode: turns text as written into text as read, for example by resolving escapes.
        encode: turns a translation into text as written; its second argument is the source as written.
    """

    parts: Sequence[str | Mark]
    decode: Callable[[str], str] = str
    encode: Callable[[str, str], str] = lambda text, source: text
    texts: list[str] = field(init=False)

    def __post_init__(self):
        parts = [piece for part in self.parts for piece in _with_space_apart(part)]
        self.raw = "".join(map(_raw, parts))
        self.written = "".join(part for part in parts if isinstance(part, str))
        start, end = _core(parts)
        self.before, self.inner, self.after = parts[:start], parts[start:end], parts[end:]
        self.placeholders = _placeholders(self.written, [part for part in self.inner if isinstance(part, Mark)])
        self.runs = self._runs()
        if self.runs is None:
            texts = [self._read(part) for part in self.inner if isinstance(part, str)]
        else:
            enclosed = [one_line(run.text) for run in self.runs if run.depth]
            texts = [one_line("".join(run.text for run in self.runs)), *enclosed]
        self.texts = [text for text in dict.fromkeys(texts) if has_words(text)]

    def _read(self, written: str) -> str:
        return one_line(self.decode(written))

    def _runs(self) -> list[Run] | None:
        """The text between opening and closing marks; None if these do not form pairs around text."""
        runs = [Run()]
        names = iter(self.placeholders)
        for part in self.inner:
            if isinstance(part, str):
                runs[-1].text += self.decode(part)
            elif part.kind == "alone":
                runs[-1].text += next(names)
            else:
                if runs[-1].text.strip() or len(runs) == 1:
                    runs.append(Run(runs[-1].depth))
                run = runs[-1]
                if part.kind == "close" and (run.opening or run.depth == 0):
                    return None
                run.depth += 1 if part.kind == "open" else -1
                (run.opening if part.kind == "open" else run.closing).append(part.raw)
        return runs if runs[-1].depth == 0 else None

    def write(self, translations: Sequence[str]) -> str:
        known = dict(zip(self.texts, translations, strict=True))
        if all(text == translation for text, translation in known.items()):
            return self.raw
        if self.runs is None:
            inner = "".join(self._stretch(part, known) for part in self.inner)
        else:
            inner = self._with_marks(self._place(self.runs, known))
        return "".join([*map(_raw, self.before), inner, *map(_raw, self.after)])

    def _stretch(self, part: str | Mark, known: dict[str, str]) -> str:
        if isinstance(part, Mark):
            return part.raw
        text = self._read(part)
        return part if known.get(text, text) == text else self._encode(known[text].strip())

    def _place(self, runs: list[Run], known: dict[str, str]) -> str:
        """The translation of the whole, with the opening and closing marks inserted."""
        source = one_line("".join(run.text for run in runs))
        translation = known.get(source, source).strip()
        num_words = [len(run.text.split()) for run in runs]
        pieces: list[str] = []
        position = 0
        for index, run in enumerate(runs):
            if run.depth:
                text = one_line(run.text)
                shares = (sum(num_words[:index]), sum(num_words[: index + 1]), sum(num_words))
                start, end = _place_of(known.get(text, text), translation, position, shares)
                if run.depth > len(run.opening):  # in one and the same pair as the text before it
                    start = len(translation) - len(translation[position:].lstrip())
                pieces += [*run.closing, self._encode(translation[position:start]), *run.opening]
                pieces.append(self._encode(translation[start:end]))
                position = end
            else:
                pieces += run.closing
        return "".join([*pieces, self._encode(translation[position:])])

    def _encode(self, text: str) -> str:
        return self.encode(text, self.written)

    def _with_marks(self, text: str) -> str:
        """Put each mark that stands alone where its placeholder occurs first, or at the end."""
        waiting = dict(self.placeholders)
        text = STAND_IN.sub(lambda name: waiting.pop(name[0], "" if name[0] in self.placeholders else name[0]), text)
        return text + "".join(waiting.values())


def _with_space_apart(part: str | Mark) -> list[str | Mark]:
    """A mark, or a text and the white space before and after it."""
    if isinstance(part, Mark) or not part.strip():
        return [part]
    core = part.strip()
    before, after = part.split(core, 1)
    return [piece for piece in (before, core, after) if piece]


def _raw(part: str | Mark) -> str:
    return part if isinstance(part, str) else part.raw


def _placeholders(text: str, marks: list[Mark]) -> dict[str, str]:
    """A placeholder that the text does not have for each mark that stands alone, and that mark."""
    free = stand_ins(text)
    return {next(free): mark.raw for mark in marks if mark.kind == "alone"}


def _core(parts: list[str | Mark]) -> tuple[int, int]:
    """Where the text begins and ends within marks that enclose all of it."""
    start, end = 0, len(parts)
    while start < end:
        first, last = parts[start], parts[end - 1]
        if _is_outside(first):
            start += 1
        elif _is_outside(last):
            end -= 1
        elif _kind(first) == "open" and _end_of_pair(parts, start) == end - 1:
            start, end = start + 1, end - 1
        else:
            break
    return start, end


def _kind(part: str | Mark) -> str:
    return "text" if isinstance(part, str) else part.kind


def _is_outside(part: str | Mark) -> bool:
    return not part.strip() if isinstance(part, str) else part.kind == "alone"


def _end_of_pair(parts: list[str | Mark], start: int) -> int | None:
    depth = 0
    for index in range(start, len(parts)):
        depth += {"open": 1, "close": -1}.get(_kind(parts[index]), 0)
        if depth == 0:
            return index
    return None


def _place_of(text: str, translation: str, position: int, shares: tuple[int, int, int]) -> tuple[int, int]:
    """Where a text occurs in a translation from `position` on, as whole words, ignoring case.

    If it does not occur exactly once, the words at the same relative position as in the source.

    Args:
        shares: number of source words before the text, up to its end, and in all.
    """
    core = text.strip(EDGE_SIGNS)
    found = list(re.finditer(rf"(?<!\w){re.escape(core)}(?!\w)", translation, re.IGNORECASE)) if core else []
    if len(found) == 1 and found[0].start() >= position:
        return found[0].span()
    words = [match.span() for match in re.finditer(r"\S+", translation)]
    first, last = (round(share * len(words) / shares[2]) for share in shares[:2])
    of_text = [(start, end) for start, end in words[first : max(last, first + 1)] if start >= position]
    if not of_text:
        return position, position
    start, end = of_text[0][0], of_text[-1][1]
    if not text.endswith(tuple(EDGE_SIGNS)):
        end = max(start, len(translation[:end].rstrip(EDGE_SIGNS)))
    return start, end
