"""Message catalogues of gettext (.po): empty translations are filled in, everything else stays as it is.

A message that has a translation, even a fuzzy one, keeps it, and so do obsolete messages. A message whose translation
would equal it stays empty; gettext then shows the message.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .pieces import Document, Piece, has_words, one_line

EMPTY = re.compile(r'(msgstr(?:\[(\d+)\])?)\s+""\s*')
CONTINUED = re.compile(r'\s*""\s*')


@dataclass
class Message:
    """The empty translation of a message, or of one of its plural forms.

    Args:
        raw: the lines as written.
        keyword: `msgstr`, or for example `msgstr[0]`.
        source: the message.
    """

    raw: str
    keyword: str
    source: str
    texts: Sequence[str] = field(init=False)

    def __post_init__(self):
        self.texts = [one_line(line) for line in self.source.split("\n") if has_words(line)]

    def write(self, translations: Sequence[str]) -> str:
        import polib

        if list(translations) == list(self.texts):
            return self.raw
        rest = iter(translations)
        lines = [_replaced(line, next(rest)) if has_words(line) else line for line in self.source.split("\n")]
        written = [f'"{polib.escape(line)}"' for line in "\n".join(lines).splitlines(keepends=True)]
        end = self.raw[len(self.raw.rstrip("\r\n")) :]
        newline = "\r\n" if "\r\n" in self.raw else "\n"
        if len(written) > 1:
            written.insert(0, '""')
        return f"{self.keyword} {newline.join(written)}{end}"


def _replaced(line: str, translation: str) -> str:
    """A line with its text replaced, between the same white space."""
    core = line.strip()
    before, after = line.split(core, 1)
    return before + translation.strip() + after


def read_po(text: str) -> Document:
    """Read a message catalogue; raise ValueError if the file is not one."""
    import polib

    try:
        catalogue = polib.pofile(text.removeprefix("\ufeff"))
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"not a gettext message catalogue: {error}") from None
    lines = text.splitlines(keepends=True)
    parts: list[str | Piece] = []
    done = 0
    for entry in sorted(catalogue, key=lambda entry: entry.linenum):
        if entry.obsolete or entry.fuzzy or entry.msgstr or any(entry.msgstr_plural.values()):
            continue
        number = max(0, entry.linenum - 1)
        for _ in range(max(1, len(entry.msgstr_plural))):
            number = next((at for at in range(number, len(lines)) if lines[at].startswith("msgstr")), len(lines))
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
