"""Capitals, and letters and signs in other forms, as a vocabulary knows them.

This file is saved along with a model.
"""

import operator
import re
import unicodedata
from collections.abc import Callable, Iterable
from html import unescape

WORD = re.compile(r"[^\W\d_]+")
COMPOUND = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)+")
SHORT_WORD = 3  # letters; such a word in capitals may be an abbreviation
LETTER_ENTITY = re.compile(r"&(?:#\d+|#x[0-9A-Fa-f]+|[A-Za-z]+);")
PLAIN_KINDS = ("<compat>", "<wide>", "<narrow>", "<font>", "<noBreak>")  # of decompositions that leave the meaning
PLAIN_FORMS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\ufe63\u2212", "-"),
    **dict.fromkeys("\u00b4\u2018\u2019\u201a\u201b\u2032\u02bc\u2039\u203a", "'"),
    **dict.fromkeys("“”„‟«»″", '"'),
    "\u1e9e": "ß",
}

# Capitals and small letters ------------------------------------------------------------------------------------------


def in_capitals(text: str) -> bool:
    """Whether a text is in capitals; a single word of up to four letters, perhaps an abbreviation, does not count."""
    letters = "".join(filter(str.isalpha, text))
    return is_upper(letters) and (len(letters) > 4 or len(text.split()) > 1 < len(letters))


def is_upper(letters: str) -> bool:
    """As `str.isupper`, but `ß` also counts as a capital among others (STRAßE)."""
    return letters.replace("ß", "").isupper()


def in_small_letters(text: str) -> bool:
    """Whether a text has at least two words and no capital."""
    return text == text.lower() != text.upper() and sum(any(map(str.isalpha, word)) for word in text.split()) > 1


def truecased(tokenizer, text: str) -> str:
    """A lower-case text with the capitals that the vocabulary suggests.

    A word is capitalised if it then has fewer pieces, or pieces that were merged earlier, which are more frequent. The
    first word of a sentence that ends in `.`, `!` or `?` is always capitalised.
    """

    text = WORD.sub(lambda word: in_usual_letters(tokenizer, word[0])[0], text)
    first = WORD.search(text) if text.rstrip("\"'“”»)").endswith((".", "!", "?")) else None
    if first is None or tokenizer.is_unknown(first[0][0].upper()):
        return text
    return text[: first.start()] + first[0][0].upper() + text[first.start() + 1 :]


def in_usual_letters(tokenizer, word: str) -> tuple[str, int]:
    """A word in small letters or with a capital, whichever the vocabulary suggests, and its number of pieces."""
    pieces = {
        form: tokenizer(form, add_special_tokens=False)["input_ids"] for form in (word, word[0].upper() + word[1:])
    }
    chosen = min(pieces, key=lambda form: (len(pieces[form]), pieces[form]))
    return chosen, len(pieces[chosen])


def calmed(tokenizer, text: str) -> str:
    """A text in which words in capitals (`Das ist WICHTIG`) are written as usual.

    A word of up to three letters counts only beside a longer one. The vocabulary must have half as many pieces for the
    usual letters, or a single one. Abbreviations stay, and capitals that are part of a compound with other letters
    (`ANSI-Zeichensatz`).
    """
    found = list(WORD.finditer(text))
    compounds = (compound for compound in COMPOUND.finditer(text) if not is_upper(compound[0]))
    parts = {part.start() for compound in compounds for part in WORD.finditer(text, *compound.span())}
    capitals = [is_upper(word[0]) and len(word[0]) > 1 and word.start() not in parts for word in found]
    loud = [is_capital and len(word[0]) > SHORT_WORD for is_capital, word in zip(capitals, found, strict=True)]
    pieces, position = [], 0
    for number, word in enumerate(found):
        if not capitals[number] or not any(loud[max(0, number - 1) : number + 2]):
            continue
        usual, count = in_usual_letters(tokenizer, word[0].lower())
        before = len(tokenizer(word[0], add_special_tokens=False)["input_ids"])
        if count < before and (count == 1 or 2 * count <= before):
            usual = usual if number else usual[0].upper() + usual[1:]
            pieces += [text[position : word.start()], usual]
            position = word.end()
    return "".join([*pieces, text[position:]])


# Letters and signs ---------------------------------------------------------------------------------------------------


def readable(tokenizer, text: str, kept: Iterable[tuple[int, int]]) -> str:
    """A text with letters and signs in plain forms that the vocabulary has, each character in the same place.

    These are ligatures, full-width letters, and kinds of quotation marks and hyphens.

    Args:
        kept: spans that stay as they are.
    """
    return changed_outside(text, lambda character: plain_form(tokenizer, character), kept)


def changed_outside(text: str, change: Callable[[str], str], kept: Iterable[tuple[int, int]]) -> str:
    """A text with each character changed outside the spans in `kept`, which are read only if there is a change."""
    changed = list(map(change, text))
    if any(map(operator.ne, changed, text)):
        for begin, end in kept:
            changed[begin:end] = text[begin:end]
    return "".join(changed)


def plain_form(tokenizer, character: str) -> str:
    """A letter or sign that the vocabulary lacks in a form that it has, if there is one."""
    if character.isascii() or not tokenizer.is_unknown(character):
        return character
    kind, *codes = unicodedata.decomposition(character).split() or [""]
    decomposed = "".join(chr(int(code, 16)) for code in codes) if kind in PLAIN_KINDS else ""
    form = PLAIN_FORMS.get(character, decomposed)
    return form if form and tokenizer.known_characters.issuperset(form) else character


def without_letter_entities(text: str) -> str:
    """A text with `ü` for `&uuml;`; entities of other characters stay, because markup needs them."""
    return LETTER_ENTITY.sub(lambda entity: letter if (letter := unescape(entity[0])).isalpha() else entity[0], text)
