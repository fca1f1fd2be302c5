"""Format placeholders in a text, such as %s, %(n)d, {name} and ${x}: a translation must have the same ones.

A translator reads a stand-in for each, `XQ1`, `XQ2`, ..., which looks like a model number and is copied as such, and a
single percent sign for `%%`.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

CONVERSION = r"%[-+#0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh?|ll?|[zjtL])?[diouxXeEfFgGaAcsrp]"
PLACEHOLDER = re.compile(
    r"%\([A-Za-z_]\w*\)[-+ 0#]?\d*(?:\.\d+)?[a-zA-Z]|%\d+\$[-+ 0#]*\d*(?:\.\d+)?[a-zA-Z]+|%\d+(?!\w|\.\d)|"
    r"%[A-Za-z_]\w+%(?![\w%])|"
    # ICU's choices by number or gender, of which nothing is translated
    r"\{\s*\w+\s*,\s*(?:plural|select|selectordinal)\s*,(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}|"
    r"[$%#@]\{[^{}]*\}|\{\{[^{}]*\}\}|\{\$?[A-Za-z_0-9][^{}]*\}|\$[A-Za-z_]\w*|"
    # Filled in by their order. A unit may follow, as in %dMB, but 100%ige has none.
    rf"(?P<in_order>(?<!\d){CONVERSION}(?=\w{{0,3}}(?!\w))|{CONVERSION}(?!\w)|"
    r"\{(?:[:!][^{}]*)?\}|\{%[^{}]*%\})"
)
# A percent sign after a placeholder is part of it: models lose one that is joined to a stand-in.
GUARDED = re.compile(rf"(?:{PLACEHOLDER.pattern})(?:%%)?|(?P<percent>%%)")
STAND_IN = re.compile(r"XQ\d+")


def stand_ins(text: str) -> Iterator[str]:
    """Stand-ins that do not occur in a text."""
    number = 1
    while True:
        if f"XQ{number}" not in text:
            yield f"XQ{number}"
        number += 1


def same_placeholders(text: str, translation: str) -> bool:
    """Whether both have the same placeholders, those without a name or number in the same order.

    Where a percent sign begins one of them, any other sign could, too: both must have as many.
    """
    (names, in_order), (others, others_in_order) = map(_placeholders, (text, translation))
    is_format = any(name.startswith("%") for name in names)
    same_signs = not is_format or text.count("%") == translation.count("%")
    return names == others and in_order == others_in_order and same_signs


def _placeholders(text: str) -> tuple[list[str], list[str]]:
    found = list(GUARDED.finditer(text))
    return sorted(each[0] for each in found), [each[0] for each in found if each["in_order"]]


def translate_guarded(texts: list[str], translate: Callable[[list[str]], Iterable[str]]) -> tuple[list[str], int]:
    """Translate texts; a text whose translation lacks a placeholder or reorders them stays untranslated.

    The order matters for placeholders without a name or number.

    Returns:
        The translations, and how many texts stayed untranslated for that reason.
    """
    guarded = [GuardedText(text) for text in texts]
    translations = list(translate([each.read for each in guarded]))
    kept = sum(not each.accepts(found) for each, found in zip(guarded, translations, strict=True))
    return [each.write(found) for each, found in zip(guarded, translations, strict=True)], kept


@dataclass
class GuardedText:
    """A text whose placeholders a translator does not see.

    Args:
        text: the text with its placeholders.
        read: the text to translate, with stand-ins.
    """

    text: str
    read: str = field(init=False)

    def __post_init__(self):
        self.free = stand_ins(self.text)
        self.names: dict[str, str] = {}  # by stand-in
        self.in_order: list[str] = []  # stand-ins whose order matters
        # With a single sign in the text as well, both are read as they are written.
        self.is_doubled = "%" not in GUARDED.sub("", self.text)
        self.read = GUARDED.sub(self._name_of, self.text)

    def _name_of(self, found: re.Match) -> str:
        if found["percent"]:
            return "%" if self.is_doubled else found[0]
        name = next(self.free)
        self.names[name] = found[0]
        if found["in_order"]:
            self.in_order.append(name)
        return name

    def accepts(self, translation: str) -> bool:
        """Whether a translation of `read` has the placeholders of the text, and no rest of a stand-in."""
        rest = STAND_IN.sub("", translation)
        if self.names and "XQ" in rest and "XQ" not in self.text:
            return False
        if [name for name in STAND_IN.findall(translation) if name in self.in_order] != self.in_order:
            return False
        return same_placeholders(self.text, self._with_placeholders(translation))

    def write(self, translation: str) -> str:
        """The translation with placeholders; the text itself if they would be others, or if it has nothing else."""
        has_text = any(map(str.isalpha, STAND_IN.sub("", self.read)))
        return self._with_placeholders(translation) if has_text and self.accepts(translation) else self.text

    def _with_placeholders(self, translation: str) -> str:
        if self.is_doubled and "%%" in self.text:
            translation = translation.replace("%", "%%")
        return STAND_IN.sub(lambda name: self.names.get(name[0], name[0]), translation)
