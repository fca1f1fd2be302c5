"""Subtitles: SubRip (.srt) and WebVTT (.vtt). Times, numbers, settings, notes and styles stay as they are.

Consecutive cues that form a sentence are translated together, because a sentence cut in two would be translated badly.
The words of the translation are distributed among them by the length of their text. A cue that ends in a full stop or
another such sign ends a sentence. A cue with tags inside its text is translated by itself, and so is each line of a
dialogue, which begins with a dash.
"""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from .marked_text import MarkedText, tags_apart
from .pieces import LINE_END, Document, Piece, has_words, shortened

MOST_CUES = 4  # in one sentence
LONGEST_PAUSE = 2.0  # seconds within a sentence
TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
EDGE_TAGS = re.compile(rf"((?:{TAG.pattern}|[\s♪#*-])*)(.*?)((?:{TAG.pattern}|[\s♪#*])*)", re.DOTALL)
SENTENCE_END = re.compile(r"[.!?…。！？]['\"’”“»›)\]]*$")
WORD = re.compile(r"(?:<[^<>]*>|\S)+")  # tags are not cut at spaces


@dataclass
class Cue:
    """The lines of a cue, or one line of a dialogue.

    Args:
        spans: where the text of each line is in the document, without tags and signs around the cue's text.
        start, end: times in seconds.
        by_itself: whether it is translated without its neighbours.
    """

    spans: list[tuple[int, int]]
    start: float
    end: float
    by_itself: bool = False


@dataclass
class Sentence:
    """Cues that are translated together.

    Args:
        lines: the lines of each cue.
        between: the document's text between each two lines, in order.
    """

    lines: list[list[str]]
    between: list[str]
    decode: Callable[[str], str]
    encode: Callable[[str, str], str]
    texts: Sequence[str] = field(init=False)

    def __post_init__(self):
        written = [line for cue in self.lines for line in cue]
        self.marked = MarkedText(tags_apart(" ".join(written), TAG), self.decode, self.encode)
        self.texts = self.marked.texts

    def write(self, translations: Sequence[str]) -> str:
        words = WORD.findall(self.marked.write(translations))
        if list(translations) == self.texts or not words:
            lines = self.lines
        else:
            cues = share_out(words, [sum(map(len, cue)) for cue in self.lines])
            lines = [
                [" ".join(line) for line in share_out(of_cue, list(map(len, cue))[: len(of_cue)])]
                for of_cue, cue in zip(cues, self.lines, strict=True)
            ]
        between = iter(self.between)
        pieces: list[str] = []
        for number, (cue, before) in enumerate(zip(lines, self.lines, strict=True)):
            pieces += [next(between) if number else "", cue[0]]
            breaks = [next(between) for _ in before[1:]]
            pieces += [sign + line for sign, line in zip(breaks, cue[1:], strict=False)]  # there may be fewer lines
        return "".join(pieces)


def share_out(words: list[str], lengths: list[int]) -> list[list[str]]:
    """Words in as many parts as there are lengths, each as close to its share as whole words allow.

    Every part has a word. If there are fewer words than parts, the last parts repeat the last word.
    """
    total, all_length = sum(map(len, words)), sum(lengths)
    parts: list[list[str]] = []
    start = length_before = 0
    for number, length in enumerate(lengths, start=1):
        length_before += length
        wanted = total * length_before / all_length
        end, rest = start + 1, len(lengths) - number
        while end < len(words) - rest and sum(map(len, words[:end])) + len(words[end]) / 2 <= wanted:
            end += 1
        end = len(words) if not rest else end
        parts.append(words[start:end] or words[-1:])
        start = min(end, len(words))
    return parts


def read_srt(text: str) -> Document:
    """Read SubRip subtitles; raise ValueError if the file holds none."""
    import srt

    try:
        found = list(srt.parse(_plain(text)))
    except srt.SRTParseError as error:
        raise ValueError(f"not SubRip subtitles: no cue is in {shortened(error.unmatched_content)!r}") from None
    except srt.TimestampParseError as error:
        raise ValueError(f"not SubRip subtitles: {shortened(error)}") from None
    cues = [(cue.content.split("\n"), cue.start.total_seconds(), cue.end.total_seconds()) for cue in found]
    return _document(text, cues, str, lambda translation, source: translation)


def read_vtt(text: str) -> Document:
    """Read WebVTT subtitles; raise ValueError if the file holds none."""
    import webvtt
    from webvtt.errors import MalformedCaptionError, MalformedFileError

    try:
        found = list(webvtt.from_string(_plain(text)))
    except (MalformedCaptionError, MalformedFileError) as error:
        raise ValueError(f"not WebVTT subtitles: {shortened(error)}") from None
    cues = [(list(cue.lines), cue.start_in_seconds, cue.end_in_seconds) for cue in found]
    return _document(text, cues, html.unescape, lambda translation, source: html.escape(translation, quote=False))


def _plain(text: str) -> str:
    """The text for the parsers, which do not all know a byte order mark and every line end."""
    return LINE_END.sub("\n", text.removeprefix("\ufeff"))


def _document(text: str, cues: list[tuple[list[str], float, float]], decode, encode) -> Document:
    parts: list[str | Piece] = []
    position = 0
    for sentence in _sentences(text, list(_located(text, cues))):
        spans = [span for cue in sentence for span in cue.spans]
        lines = [[text[start:end] for start, end in cue.spans] for cue in sentence]
        between = [text[before[1] : after[0]] for before, after in zip(spans, spans[1:], strict=False)]
        parts += [text[position : spans[0][0]], Sentence(lines, between, decode, encode)]
        position = spans[-1][1]
    return Document([*parts, text[position:]])


def _located(text: str, cues: list[tuple[list[str], float, float]]) -> Iterator[Cue]:
    """The cues that have words, with the positions of their lines in the text."""
    position = 0
    for lines, start, end in cues:
        position = text.index("-->", position) + 3
        if any(lines):
            line_end = LINE_END.search(text, position)
            assert line_end is not None  # the text begins on the line after the times
            position = line_end.end()
        spans = []
        for line in filter(None, lines):
            begin = text.index(line, position)
            position = begin + len(line)
            spans.append((begin, position))
        is_dialogue = any(text[begin:].startswith(("-", "–")) for begin, _ in spans)
        for group in [[span] for span in spans] if is_dialogue else [spans]:
            if group := _without_edges(text, group):
                has_tags = any(TAG.search(text[slice(*span)]) for span in group)
                yield Cue(group, start, end, is_dialogue or has_tags)


def _without_edges(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Lines without the tags and signs around their whole text, and without lines that have nothing else."""
    spans = [span for span in spans if has_words(TAG.sub("", text[slice(*span)]))]
    if not spans:
        return []
    first, last = (EDGE_TAGS.fullmatch(text[slice(*spans[index])]) for index in (0, -1))
    assert first is not None
    assert last is not None
    begin, end = spans[0][0] + first.end(1), spans[-1][0] + last.start(3)
    enclosed = text[begin:end]
    if _depth(text[spans[0][0] : begin]) + _depth(text[end : spans[-1][1]]) or _depth(enclosed):
        return spans  # the tags around the text do not form pairs
    return [(begin, spans[0][1]), *spans[1:-1], (spans[-1][0], end)] if len(spans) > 1 else [(begin, end)]


def _depth(text: str) -> int:
    """Opening tags minus closing ones."""
    return sum({"open": 1, "close": -1}.get(_tag_kind(tag), 0) for tag in TAG.findall(text))


def _tag_kind(tag: str) -> str:
    return "close" if tag.startswith("</") else "open" if re.match(r"<[a-z]", tag) else "alone"


def _sentences(text: str, cues: list[Cue]) -> Iterator[list[Cue]]:
    """Group consecutive cues into sentences."""
    sentence: list[Cue] = []
    for cue in cues:
        far = sentence and (cue.start - sentence[-1].end > LONGEST_PAUSE or len(sentence) == MOST_CUES)
        if sentence and (cue.by_itself or far):
            yield sentence
            sentence = []
        sentence.append(cue)
        if cue.by_itself or SENTENCE_END.search(text[slice(*cue.spans[-1])]):
            yield sentence
            sentence = []
    if sentence:
        yield sentence
