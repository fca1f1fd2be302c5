"""Message catalogues of gettext (.po): empty translations are filled in, everything else stays as it is.

A message that has a translation, even a fuzzy one, keeps it, and so do obsolete messages. A message whose translation
would equal it stays empty; gettext then shows the message. So does one whose translation would have other
placeholders, which can crash a program. Tags such as <b> find their place; the texts between line ends, tabs and tags
such as <br> are translated each by itself.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .marked_text import MarkedText, tags_apart
from .pieces import Document, Piece, has_words, line_end, shortened
from .placeholders import same_placeholders

EMPTY = re.compile(r'(\s*msgstr(?:\[(\d+)\])?)\s+""\s*')
CONTINUED = re.compile(r'\s*""\s*')
TAG = re.compile(r"</?[A-Za-z][^<>]*>")
BETWEEN = re.compile(r"((?:[\t\n\v\f\r]|</?(?:br|p|div|li|ol|ul|h\d|hr|table|td|th|tr)\b[^<>]*>)+)", re.IGNORECASE)


@dataclass
class Message:
    """The empty translation of a message, or of one of its plural forms.

    Args:
        raw: the lines as written.
        keyword: `msgstr`, or for example `msgstr[0]`, after its indent.
        source: the message.
    """

    raw: str
    keyword: str
    source: str
    texts: Sequence[str] = field(init=False)

    def __post_init__(self):
        parts = BETWEEN.split(self.source)
        self.document = Document([MarkedText(tags_apart(part, TAG)) if has_words(part) else part for part in parts])
        self.texts = self.document.texts

    def write(self, translations: Sequence[str]) -> str:
        import polib

        written = self.document.write(translations)
        if written == self.source or not same_placeholders(self.source, written):
            return self.raw
        lines = [f'"{polib.escape(line)}"' for line in re.findall(r"[^\n]*\n|[^\n]+", written)]
        end = self.raw[len(self.raw.rstrip("\r\n")) :]
        if len(lines) > 1:
            lines.insert(0, '""')
        return f"{self.keyword} {line_end(self.raw).join(lines)}{end}"


def read_po(text: str) -> Document:
    """Read a message catalogue; raise ValueError if the file is not one."""
    import polib

    try:
        catalogue = polib.pofile(text.removeprefix("\ufeff"))
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"not a gettext message catalogue: {shortened(error)}") from None
    lines = text.splitlines(keepends=True)
    parts: list[str | Piece] = []
    done = 0
    for entry in sorted(catalogue, key=lambda entry: entry.linenum):
        if entry.obsolete or entry.fuzzy or entry.msgstr or any(entry.msgstr_plural.values()):
            continue
        number = max(0, entry.linenum - 1)
        for _ in range(max(1, len(entry.msgstr_plural))):
            while number < len(lines) and not lines[number].lstrip().startswith("msgstr"):
                number += 1
            found = EMPTY.fullmatch(lines[number]) if number < len(lines) else None
            if found is None:
                raise ValueError(f"not a gettext message catalogue: {entry.msgid[:40]!r} has no msgstr")
            end = number + 1
            while end < len(lines) and CONTINUED.fullmatch(lines[end]):
                end += 1
            is_plural = found[2] is not None and (found[2] != "0" or len(entry.msgstr_plural) == 1)
            source = entry.msgid_plural if is_plural else entry.msgid
            parts += ["".join(lines[done:number]), Message("".join(lines[number:end]), found[1], source)]
            number = done = end
    return Document([*parts, "".join(lines[done:])])
