"""HTML: text is translated element by element, inline tags are placed in the translation, all else is unchanged."""

import html
import itertools
from collections.abc import Iterator
from html.parser import HTMLParser

from ..pipeline import words
from .marked_text import Mark, MarkedText
from .pieces import Document, Piece, has_words

# Inline elements, which do not end a sentence; all others do.
INLINE = words(
    "a abbr acronym b bdi bdo big cite data del dfn em font i ins label mark q s small span strike strong sub sup "
    "time tt u"
)
ALONE = words("img input wbr")  # inline elements without text
# Elements whose text stays as it is; the first ones may be within a sentence.
KEPT_INLINE = words("code kbd samp var svg math")
KEPT = KEPT_INLINE | words("script style pre textarea template noscript object iframe")
VOID = ALONE | words("area base br col embed hr link meta param source track")


class _Tokens(HTMLParser):
    """Where each tag, comment and stretch of text begins: `(line, column), kind, name of the element, kept`."""

    def __init__(self):
        super().__init__(convert_charrefs=False)
        self.found: list[tuple[tuple[int, int], str, str, bool]] = []

    def _add(self, kind: str, name: str = "", kept: bool = False) -> None:
        self.found.append((self.getpos(), kind, name, kept))

    def handle_starttag(self, tag, attrs):
        given = {name: (value or "").lower() for name, value in attrs}
        kept = given.get("translate") == "no" or "notranslate" in given.get("class", "").split()
        self._add("void" if tag in VOID else "start", tag, kept or tag in KEPT)

    def handle_startendtag(self, tag, attrs):
        self._add("void", tag)

    def handle_endtag(self, tag):
        self._add("end", tag)

    def handle_data(self, data):
        self._add("text")

    def handle_entityref(self, name):
        self._add("text")

    def handle_charref(self, name):
        self._add("text")

    def handle_comment(self, data):
        self._add("other")

    def handle_decl(self, decl):
        self._add("other")

    def handle_pi(self, data):
        self._add("other")

    def unknown_decl(self, data):
        self._add("other")


def read_html(text: str) -> Document:
    """HTML, a page or a part of one, as a document.

    The text of elements such as `code`, `pre` and `script`, of those with `translate="no"` or the class `notranslate`,
    comments and all attributes stay as they are.
    """
    parts: list[str | Piece] = []
    sentence: list[str | Mark] = []

    def end_sentence() -> None:
        if any(isinstance(part, str) and has_words(part) for part in sentence):
            parts.append(MarkedText(_joined(sentence), html.unescape, _escape))
        else:
            parts.extend(part if isinstance(part, str) else part.raw for part in sentence)
        sentence.clear()

    for raw, kind, name in _merge_kept(_tokens(text)):
        if kind == "text":
            sentence.append(raw)
        elif kind in ("start", "end") and name in INLINE:
            sentence.append(Mark(raw, "open" if kind == "start" else "close"))
        elif name in {"kept": INLINE | KEPT_INLINE, "void": INLINE | ALONE}.get(kind, ()):
            sentence.append(Mark(raw, "alone"))
        else:
            end_sentence()
            parts.append(raw)
    end_sentence()
    return Document(parts)


def _tokens(text: str) -> list[tuple[str, str, str, bool]]:
    """The text in tokens as it is written, each with its kind, its element and whether that is kept."""
    parser = _Tokens()
    parser.feed(text)
    parser.close()
    starts = [0, *itertools.accumulate(len(line) + 1 for line in text.split("\n"))]
    found = [((1, 0), "other", "", False), *parser.found]  # the parser skips a few characters at the beginning
    places = [starts[line - 1] + column for (line, column), *_ in found]
    return [
        (text[begin:end], kind, name, kept)
        for (_, kind, name, kept), begin, end in zip(found, places, [*places[1:], len(text)], strict=True)
    ]


def _merge_kept(tokens: list[tuple[str, str, str, bool]]) -> Iterator[tuple[str, str, str]]:
    """The same with each element that is kept as one token, of the kind `kept`."""
    kept_pieces: list[str] = []
    depth, element = 0, ""
    for raw, kind, name, kept in tokens:
        if depth:
            kept_pieces.append(raw)
            depth += {"start": 1, "end": -1}.get(kind, 0) if name == element else 0
        elif kind == "start" and kept:
            depth, element, kept_pieces = 1, name, [raw]
        else:
            yield raw, kind, name
        if kept_pieces and not depth:
            yield "".join(kept_pieces), "kept", element
            kept_pieces = []
    if kept_pieces:  # an element without an end is kept to the end of the page
        yield "".join(kept_pieces), "kept", element


def _joined(parts: list[str | Mark]) -> list[str | Mark]:
    """The tokens, with adjacent stretches of text joined."""
    joined: list[str | Mark] = []
    for is_text, group in itertools.groupby(parts, lambda part: isinstance(part, str)):
        members = list(group)
        joined += ["".join(map(str, members))] if is_text else members
    return joined


def _escape(text: str, source: str) -> str:
    return html.escape(text, quote=False)
