"""Markdown: the text of headings, paragraphs, lists, quotes, tables, admonitions and notes is translated.

Code, formulas, HTML, addresses, link definitions, template tags, front matter and the alternative text of images stay
as they are. Emphasis and links are placed in the translation. A paragraph of several lines becomes one line. What is
read beyond CommonMark is in `markdown_extensions`.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .markdown_extensions import add_extensions
from .marked_text import Mark, MarkedText
from .pieces import LINE_END, Document, Piece, has_words, line_end, one_line

# It may follow a byte order mark.
FRONT_MATTER = re.compile(r"\A\ufeff?(?:(---|\+\+\+)[ \t]*(?:\r\n?|\n).*?[\r\n]\1[ \t]*(?:\r\n?|\n|\Z))?", re.DOTALL)
SPECIAL = re.compile(r"[\\`*_\[\]<|]")
BLOCK_START = re.compile(r"^(\d+)(?=[.)]\s)|^(?=[#>+-])")
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")
TARGET = re.compile(r"\]\((?:[^()\\<>]|\\.|<[^<>]*>|\([^()]*\))*\)|\](?:\[[^\[\]]*\])?")
NOWHERE = "\0"  # CommonMark replaces this character, so no parsed text has it
NO_PAIR = re.compile(r"<(?:!|\?|(?:br|img|input|wbr)\b)|.*/>$", re.IGNORECASE | re.DOTALL)


@dataclass
class Block:
    """The text of a heading, a paragraph or a cell.

    Args:
        raw: the text as written, including the prefixes of its further lines.
    """

    raw: str
    document: Document
    texts: Sequence[str] = field(init=False)

    def __post_init__(self):
        self.texts = self.document.texts

    def write(self, translations: Sequence[str]) -> str:
        if list(translations) == self.texts:
            return self.raw
        return self.document.write(translations).replace("\n", line_end(self.raw))


class NotFound(Exception):
    """The parser's result could not be located in the text."""


def read_markdown(text: str) -> Document:
    """A page as a document. What cannot be located in the text after parsing stays as it is."""
    from markdown_it import MarkdownIt

    parser = add_extensions(MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable("text_join"))
    front = FRONT_MATTER.match(text)
    assert front is not None
    position = front.end()
    starts = [position]
    body = text[position:]
    starts += [position + found.end() for found in LINE_END.finditer(body)]
    parts: list[str | Piece] = [text[:position]]
    for token in parser.parse(body):
        if token.type != "inline" or not token.content.strip():
            continue
        spans = _lines(text, token, starts, position)
        try:
            block = Document(list(_pieces(token)))
        except NotFound:
            continue
        if spans:
            start, end = spans[0][0], spans[-1][1]
            parts += [text[position:start], Block(text[start:end], block)]
            position = end
    return Document([*parts, text[position:]])


def _lines(text: str, token: Any, starts: list[int], position: int) -> list[tuple[int, int]]:
    """Where the lines of a token's text are; nothing if one of them is not there."""
    first, last = token.map
    lines = token.content.split("\n")
    spans: list[tuple[int, int]] = []
    for number, line in zip(range(first, last), lines, strict=False):
        end = starts[number + 1] if number + 1 < len(starts) else len(text)
        begin = text.find(line, max(position, starts[number]), end)
        if begin < 0:
            return []
        position = begin + len(line)
        spans.append((begin, position))
    return spans if len(spans) == len(lines) else []


def _pieces(token: Any) -> Iterator[str | Piece]:
    """The text of a block, one piece up to each hard line break; a part without words stays as plain text."""
    parts: list[str | Mark] = []
    for part in _parts(token.content, token.children):
        if isinstance(part, Mark) and part.raw.endswith("\n"):
            yield _piece(parts)
            yield part.raw
            parts = []
        elif isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    yield _piece(parts)


def _piece(parts: list[str | Mark]) -> str | Piece:
    if any(isinstance(part, str) and has_words(part) for part in parts):
        return MarkedText(parts, _decode, _encode)
    return "".join(part if isinstance(part, str) else part.raw for part in parts)


def _parts(content: str, children: list[Any]) -> Iterator[str | Mark]:
    """The children of an inline token as written; raises NotFound if they cannot be located."""
    position = 0
    is_autolink = False
    labels: list[int] = []  # where the text of each link begins that has not ended
    for child in children:
        if is_autolink:
            is_autolink = child.type != "link_close"
            continue
        raw = _written(child, content, position)
        if not content.startswith(raw, position):
            raise NotFound
        position += len(raw)
        is_autolink = child.markup == "autolink"
        if child.type == "link_open":
            labels.append(position)
        if child.type in ("text", "text_special", "softbreak"):
            yield raw
        elif child.type == "link_close" and raw in ("]", "][]"):
            # Its text is the name of its definition, which is not translated.
            label = one_line(content[labels.pop() : position - len(raw)])
            yield Mark(raw, "close", f"][{label}]")
        else:
            yield Mark(raw, "alone" if is_autolink else _kind(child, raw))
    if content[position:].strip():
        raise NotFound


def _written(child: Any, content: str, position: int) -> str:
    """The source text of a child of an inline token at this position."""
    if child.type == "text":
        return child.content
    if child.type == "text_special":
        return child.markup
    if child.type == "code_inline":
        ticks = re.escape(child.markup)
        found = re.compile(rf"{ticks}.*?(?<!`){ticks}(?!`)", re.DOTALL).match(content, position)
    elif child.type == "softbreak":
        found = re.compile(r" ?\n *").match(content, position)
    elif child.type == "hardbreak":
        found = re.compile(r"(?: {2,}|\\)\n *").match(content, position)
    elif child.markup == "autolink":
        found = re.compile("<[^<>]*>").match(content, position)
    elif child.type == "link_open":
        return "["
    elif child.type == "link_close":
        found = TARGET.match(content, position)
    elif child.type == "image":
        begin = content.find("]", position + 2 + len(child.content))
        found = TARGET.match(content, begin) if begin > 0 else None
        return content[position : found.end()] if found else NOWHERE
    elif child.type in ("html_inline", "kept"):
        return child.content
    else:
        return child.markup
    return found[0] if found else NOWHERE


def _kind(child: Any, raw: str) -> Any:
    if child.type == "html_inline":
        return "alone" if NO_PAIR.match(raw) else "close" if raw.startswith("</") else "open"
    return {1: "open", -1: "close"}.get(child.nesting, "alone")


def _decode(written: str) -> str:
    return html.unescape(ESCAPED.sub(r"\1", written))


def _encode(text: str, source: str) -> str:
    """Escape characters that would become markup; those that are no markup in the source, unescaped, are none here."""
    escaped = set(ESCAPED.findall(source))
    plain = set(ESCAPED.sub("", source)) - escaped
    text = SPECIAL.sub(lambda sign: sign[0] if sign[0] in plain else f"\\{sign[0]}", text)
    return text if BLOCK_START.match(source) else BLOCK_START.sub(r"\1\\", text)
