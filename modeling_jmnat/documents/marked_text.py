"""Text with markup in it, such as `Das ist <b>gut</b>.`: it is translated whole, then the markup is placed.

The text that a pair of marks encloses is also translated by itself. The marks go around that translation if it occurs
in the translation of the whole, otherwise around the text itself (a name) or the longest run of words that both
translations have, and otherwise around as many words at the same position in the sentence. A mark that encloses no
text is read as a stand-in, which models copy.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .pieces import has_words, one_line
from .placeholders import STAND_IN, stand_ins

EDGE_SIGNS = " .,:;!?"
SENTENCE = re.compile(r"\S.*?(?:[.!?…]+(?=\s)|$)", re.DOTALL)
JOINT = re.compile(r"[ \t]*[+/>→]?[ \t]*")  # of two keys, for example


@dataclass(frozen=True)
class Mark:
    """Markup as written: it opens or closes a stretch of text, or stands alone.

    Args:
        in_translation: the markup beside a translation, if that is another.
    """

    raw: str
    kind: Literal["open", "close", "alone"]
    in_translation: str = ""


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
        parts = [piece for part in _merge_alone(self.parts) for piece in _with_space_apart(part)]
        self.raw = "".join(map(_raw, parts))
        self.written = "".join(part for part in parts if isinstance(part, str))
        start, end = _core(parts)
        self.before, self.inner, self.after = parts[:start], parts[start:end], parts[end:]
        self.placeholders = _placeholders(self.written, [part for part in self.inner if isinstance(part, Mark)])
        self.added: dict[str, tuple[str, str]] = {}  # space before and after a placeholder that is not in the source
        self.runs = self._runs()
        if self.runs is None:
            texts = [self._read(part) for part in self.inner if isinstance(part, str)]
        else:
            enclosed = [one_line(run.text) for run in self.runs if run.depth]
            texts = [one_line("".join(run.text for run in self.runs)), *enclosed]
        self.texts = [text for text in dict.fromkeys(texts) if has_words(STAND_IN.sub("", text))]

    def _read(self, written: str) -> str:
        return one_line(self.decode(written))

    def _runs(self) -> list[Run] | None:
        """The text between opening and closing marks; None if these do not form pairs around text."""
        runs = [Run()]
        names = iter(self.placeholders)
        for part, following in zip(self.inner, [*self.inner[1:], ""], strict=False):
            if isinstance(part, str):
                runs[-1].text += self.decode(part)
            elif part.kind == "alone":
                runs[-1].text += self._apart(next(names), runs[-1].text, following)
            else:
                if runs[-1].text.strip() or len(runs) == 1:
                    runs.append(Run(runs[-1].depth))
                run = runs[-1]
                if part.kind == "close" and (run.opening or run.depth == 0):
                    return None
                run.depth += 1 if part.kind == "open" else -1
                (run.opening if part.kind == "open" else run.closing).append(_translated(part))
        return runs if runs[-1].depth == 0 else None

    def _apart(self, name: str, text: str, following: str | Mark) -> str:
        """A placeholder with a space where it touches a word: models copy no part of a word."""
        before = " " if re.search(r"[\w.,;:!?]$", text) else ""
        after = " " if isinstance(following, str) and following[:1].isalnum() else ""
        self.added[name] = (before, after)
        return f"{before}{name}{after}"

    def write(self, translations: Sequence[str]) -> str:
        known = dict(zip(self.texts, translations, strict=True))
        if all(text == translation for text, translation in known.items()):
            return self.raw
        if self.runs is None:
            inner = "".join(self._stretch(part, known) for part in self.inner)
        else:
            inner = self._with_marks(self._place(self.runs, known))
        return "".join([*map(_translated, self.before), inner, *map(_translated, self.after)])

    def _stretch(self, part: str | Mark, known: dict[str, str]) -> str:
        if isinstance(part, Mark):
            return _translated(part)
        text = self._read(part)
        return part if known.get(text, text) == text else self._encode(known[text].strip())

    def _place(self, runs: list[Run], known: dict[str, str]) -> str:
        """The translation of the whole, with the opening and closing marks inserted."""
        source = "".join(run.text for run in runs)
        translation = known.get(one_line(source), one_line(source)).strip()
        pieces: list[str] = []
        position = begin = 0
        for run in runs:
            if run.depth:
                text = one_line(run.text)
                span = (begin, begin + len(run.text))
                start, end = _place_of(known.get(text, text), source, span, translation, position)
                if run.depth > len(run.opening):  # in one and the same pair as the text before it
                    start = len(translation) - len(translation[position:].lstrip())
                pieces += [*run.closing, self._encode(translation[position:start]), *run.opening]
                pieces.append(self._encode(translation[start:end]))
                position = end
            else:
                pieces += run.closing
            begin += len(run.text)
        return "".join([*pieces, self._encode(translation[position:])])

    def _encode(self, text: str) -> str:
        return self.encode(text, self.written)

    def _with_marks(self, text: str) -> str:
        """Put each mark that stands alone where its placeholder occurs first, or at the end."""
        waiting = dict(self.placeholders)

        def mark_of(found: re.Match) -> str:
            before, name, after = found.groups()
            if name not in self.placeholders:
                return found[0]
            added = self.added[name]
            return f"{'' if added[0] else before}{waiting.pop(name, '')}{'' if added[1] else after}"

        text = re.sub(rf"( ?)({STAND_IN.pattern})( ?)", mark_of, text)
        return text + "".join(waiting.values())


def tags_apart(text: str, tag: re.Pattern) -> list[str | Mark]:
    """The text and its tags, such as those of HTML; a tag without its counterpart stands alone."""
    parts: list[str | Mark] = []
    position = 0
    for found in tag.finditer(text):
        name = re.match(r"</?([^\s.<>/]+)", found[0])
        is_pair = name is not None and not name[1][0].isdigit() and f"</{name[1]}" in text and f"<{name[1]}" in text
        kind = "alone" if not is_pair else "close" if found[0].startswith("</") else "open"
        parts += [text[position : found.start()], Mark(found[0], kind)]
        position = found.end()
    return [part for part in (*parts, text[position:]) if part]


def _merge_alone(parts: Sequence[str | Mark]) -> list[str | Mark]:
    """The same with neighbouring marks that stand alone as one: models garble a row of stand-ins."""
    merged: list[str | Mark] = []
    for part in parts:
        raw = _raw(part)
        if isinstance(part, Mark) and part.kind == "alone":
            if len(merged) > 1 and _kind(merged[-2]) == "alone" and JOINT.fullmatch(_raw(merged[-1])):
                raw = _raw(merged.pop()) + raw
            if merged and _kind(merged[-1]) == "alone":
                part = Mark(_raw(merged.pop()) + raw, "alone")
        merged.append(part)
    return merged


def _with_space_apart(part: str | Mark) -> list[str | Mark]:
    """A mark, or a text and the white space before and after it."""
    if isinstance(part, Mark) or not part.strip():
        return [part]
    core = part.strip()
    before, after = part.split(core, 1)
    return [piece for piece in (before, core, after) if piece]


def _raw(part: str | Mark) -> str:
    return part if isinstance(part, str) else part.raw


def _translated(part: str | Mark) -> str:
    return part if isinstance(part, str) else part.in_translation or part.raw


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


def _place_of(text: str, source: str, span: tuple[int, int], translation: str, position: int) -> tuple[int, int]:
    """Where in a translation, from `position` on, the words for a stretch of its source are.

    Args:
        text: the translation of the stretch by itself.
        span: where the stretch is in the source.
    """
    words = _words_at_same_place(source, span, translation)
    for wanted in (text, source[slice(*span)]):
        found = [place for place in _occurrences(wanted, translation) if place[0] >= position]
        if found:
            start, end = min(found, key=lambda place: abs(place[0] - words[0][0]))
            sign = source[slice(*span)].rstrip()[-1:]
            return start, end + (sign in EDGE_SIGNS and translation.startswith(sign, end) and sign != "")
    if run := _longest_run(text, translation, position):
        return run
    words = [word for word in words if word[0] >= position]
    if not words:
        return position, position
    start, end = words[0][0], words[-1][1]
    if not text.endswith(tuple(EDGE_SIGNS)):
        end = max(start, len(translation[:end].rstrip(EDGE_SIGNS)))
    return start, end


def _occurrences(text: str, translation: str) -> list[tuple[int, int]]:
    """Where a text occurs as whole words, ignoring case and white space."""
    core = text.strip(EDGE_SIGNS + "\n").split()
    if not core:
        return []
    pattern = r"\s+".join(map(re.escape, core))
    return [found.span() for found in re.finditer(rf"(?<!\w){pattern}(?!\w)", translation, re.IGNORECASE)]


def _longest_run(text: str, translation: str, position: int) -> tuple[int, int] | None:
    """Where the longest run of words of a text is in the translation, if it is at least half of the text."""
    words = [found for found in re.finditer(r"\S+", translation) if found.start() >= position]
    wanted, given = [
        [word.strip(EDGE_SIGNS).casefold() for word in each] for each in (text.split(), [word[0] for word in words])
    ]
    run = difflib.SequenceMatcher(None, wanted, given, autojunk=False).find_longest_match()
    size = len("".join(wanted[run.a : run.a + run.size]))
    if not size or 2 * size < len("".join(wanted)):
        return None
    end = words[run.b + run.size - 1].end()
    return words[run.b].start(), len(translation[:end].rstrip(EDGE_SIGNS))


def _words_at_same_place(source: str, span: tuple[int, int], translation: str) -> list[tuple[int, int]]:
    """The words of a translation, at least one, at the same place as a stretch of the source.

    It is looked for in the sentence of the same number, if source and translation have as many sentences.
    """
    begin, end = span
    sentences, others = list(SENTENCE.finditer(source)), list(SENTENCE.finditer(translation))
    first, last, start, stop = 0, len(source), 0, len(translation)
    if len(sentences) == len(others):
        for sentence, other in zip(sentences, others, strict=True):
            if sentence.start() <= begin and len(source[:end].rstrip()) <= sentence.end():
                first, last, start, stop = *sentence.span(), *other.span()
    words = [found.span() for found in re.compile(r"\S+").finditer(translation, start, stop)]
    num_words = [len(source[first:up_to].split()) for up_to in (begin, end, last)]
    low, high = (round(share * len(words) / num_words[2]) for share in num_words[:2])
    low = min(low, len(words) - 1)
    return words[low : max(high, low + 1)]
