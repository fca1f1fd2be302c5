"""Markdown beyond CommonMark, as GitHub and site generators read it: rules for the parser of markdown-it.

Emoji, formulas, template tags, attributes, keys and references of notes stand alone in a sentence (tokens of the type
`kept`). Lines of containers, alerts and link definitions, whole formulas and blocks of templates stay as they are. The
body of an admonition (`!!! note`) is read as Markdown. Notes, abbreviations and definitions begin a paragraph.
"""

import re
from typing import Any

from .html import KEPT_INLINE

EVERYWHERE = ("paragraph", "reference", "blockquote", "list")  # blocks that these rules may end

KEPT = re.compile(
    # The beginning of a note, an abbreviation, a task and a definition.
    r"^(?:\[\^[^\[\]\s]+\]:|\*\[[^\[\]]+\]:|\[[ xX]\](?=\s)|:(?=\s))[ \t]*|"
    r"\[\^[^\[\]\s]+\]|"
    r"(?<![^\W_])(?<!:):(?:[+-]1|(?=[\d_+-]*[a-z])[a-z0-9_+-]+):(?![^\W_]|:)|"
    r"\{\{[<%].*?[>%]\}\}|\{%.*?%\}|\{#.*?#\}|\{[:.#][^{}]*\}|"
    # Formulas; the others are amounts, as in `$5 to $9` and `$5 or 9$`, and variables.
    r"\$\$[^$]+\$\$|\$`[^`]+`\$|(?<![^\W_])(?<!\$)\$(?![\s{]|\d[\d.,]*\s+[^\W\d_]{2})[^$`\n]+(?<![\s\\])\$(?![^\W_]|[${])|"
    rf"(?i:<({'|'.join(sorted(KEPT_INLINE))})\b[^<>]*>.*?</\1\s*>|"
    r"<(\w+)\b[^<>]*\s(?:translate=[\"']?no\b|class=[\"']?[^\"'<>]*\bnotranslate\b)[^<>]*>.*?</\2\s*>)",
    re.DOTALL,
)
TEMPLATE_VALUE = re.compile(r"\{\{.*?\}\}", re.DOTALL)  # a placeholder: it is text, but has no markup inside

KEPT_LINE = re.compile(
    r":{3,}.*|\[!\w+\](?![(\[]).*|\[(?:TOC|\[_?TOC_?\])\]|(?:\{%[^{}]*%\}|\{[:.#][^{}]*\}|\{\{[^{}]*\}\})"
)
ADMONITION = re.compile(
    r"(?:!!!|\?\?\?\+?)[ \t]*[\w-]+(?:[ \t]+[\w-]+)*(?:[ \t]+\"[^\"]*\")?|===[!+]?[ \t]+\"[^\"]*\""
)
REGION = re.compile(r"\$\$|\{%-?\s*(highlight|raw|comment|verbatim)\b")
NOTE = re.compile(r"\[\^[^\[\]\s]+\]:\s")
DEFINITION = re.compile(
    r"\[[^\[\]]+\]:[ \t]+(?:<[^<>]*>|\S*[/#.]\S+)(?:[ \t]+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?|"
    r"\*\[[^\[\]]+\]:\s.*|:[ \t].*"
)


def add_extensions(parser: Any) -> Any:
    """Add the rules to a `MarkdownIt`, and return it."""
    for rule in (_kept_lines, _admonition, _note):
        parser.block.ruler.before("table", rule.__name__, rule, {"alt": list(EVERYWHERE)})
    parser.inline.ruler.before("text", "kept", _kept)
    return parser


def _kept(state: Any, silent: bool) -> bool:
    """Inline: what stands alone, and template values as text."""
    for kind, pattern in (("kept", KEPT), ("text", TEMPLATE_VALUE)):
        found = pattern.match(state.src, state.pos, state.posMax)
        if found:
            if not silent:
                state.push(kind, "", 0).content = found[0]
            state.pos = found.end()
            return True
    return False


def _kept_lines(state: Any, start: int, end: int, silent: bool) -> bool:
    """Block: lines without a token, so that they stay as they are."""
    if state.is_code_block(start):
        return False
    last = _end_of_region(state, start, end)
    if last is None and KEPT_LINE.fullmatch(_text(state, start)):
        last = start
    if last is None:
        return False
    if not silent:
        state.line = last + 1
    return True


def _end_of_region(state: Any, start: int, end: int) -> int | None:
    """The last line of a formula or a template's block that begins at `start`."""
    line = _text(state, start)
    region = REGION.match(line)
    if region is None:
        return None
    closing = re.compile(rf"\{{%-?\s*end{region[1]}\b.*" if region[1] else r"\$\$")
    for number in range(start, end):
        text = line[region.end() :] if number == start else _text(state, number)
        found = closing.search(text)
        if found:
            return number if found.end() == len(text) else None
        if state.sCount[number] < state.blkIndent and not state.isEmpty(number):
            return None
    return None


def _admonition(state: Any, start: int, end: int, silent: bool) -> bool:
    """Block: the heading of an admonition or a tab stays; the indented lines below it are blocks."""
    if state.is_code_block(start) or not ADMONITION.fullmatch(_text(state, start)):
        return False
    if not silent:
        indent = state.blkIndent
        state.line = start + 1
        state.blkIndent = state.sCount[start] + 4
        state.md.block.tokenize(state, start + 1, end)
        state.blkIndent = indent
    return True


def _note(state: Any, start: int, end: int, silent: bool) -> bool:
    """Block: notes and definitions end the paragraph before them."""
    from markdown_it.rules_block import paragraph

    line = _text(state, start)
    if state.is_code_block(start):
        return False
    if DEFINITION.fullmatch(line):
        return silent  # the parser knows link definitions; others are paragraphs
    if not NOTE.match(line):
        return False
    # The parser would take `[^1]: Word.` for a link definition.
    return silent or paragraph(state, start, end, silent)


def _text(state: Any, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]].rstrip()
