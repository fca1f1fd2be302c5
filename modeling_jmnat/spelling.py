"""Characters of a text: clean, and letters and signs in forms that a vocabulary knows.

This file is saved along with a model.
"""

import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from html import unescape
from typing import Any

from tokenizers import Regex, normalizers

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

# Clean text ----------------------------------------------------------------------------------------------------------

# Patterns of the normalizer, written as ranges so that all regular expression engines agree.
SPACES = "[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u2800\u3000]+"
# Control and format characters (except the visible ones of Arabic and Kaithi), fillers, replacement characters.
INVISIBLE = (
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufeff\uffa0\ufff9-\ufffb\ufffd\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001]"
)
# Joiners are kept between letters of Arabic, Indic and Mongolian scripts and between emoji, even with combining marks
# (\p{M}); tags are kept after a black flag. Removed characters do not count as neighbours, so cleaning is idempotent.
JOINED = (
    "\u0600-\u061b\u061d-\u08ff\u0900-\u109f\u1780-\u180d\u180f-\u18af\u2190-\u27ff\u2801-\u2bff\u3030-\u303d"
    "\u3297-\u3299\ufe0f\U0001f000-\U0001faff"
)
# Patterns that begin with the characters they remove are found faster.
AFTER_JOINED = "|".join(rf"[{JOINED}]" + r"\p{M}" * marks + "." for marks in range(4))
JOINERS = rf"[\u180e\u200c\u200d](?:(?<!{AFTER_JOINED})|(?!(?!\u034f)[{JOINED}\p{{M}}]))"
AFTER_FLAG = "|".join("\U0001f3f4" + "[\U000e0020-\U000e007e]" * tags + "." for tags in range(7))
TAGS = f"[\U000e0020-\U000e007f](?<!{AFTER_FLAG})"


def text_normalizer(unicode_form: str = "NFC", lowercase: bool = False) -> normalizers.Sequence:
    """A normalizer to NFC or NFKC that also collapses white space, strips it, and removes invisible characters."""
    if unicode_form not in ("NFC", "NFKC"):
        raise ValueError(f"unicode_form={unicode_form!r} must be 'NFC' or 'NFKC'")
    steps: list[Any] = [normalizers.NFKC()] if unicode_form == "NFKC" else []
    steps += [normalizers.Lowercase()] if lowercase else []  # after NFKC, which spells out letters; before NFC
    # Which characters are invisible depends on their neighbours in NFC; removing them may call for NFC again.
    invisible = normalizers.Replace(Regex("|".join((INVISIBLE, JOINERS, TAGS))), "")
    steps += [normalizers.NFC(), invisible, normalizers.NFC()]
    return normalizers.Sequence([*steps, normalizers.Replace(Regex(SPACES), " "), normalizers.Strip()])


def clean_text(text: str) -> str:
    """The text as normalised by newly trained tokenizers."""
    return CLEAN.normalize_str(text)


CLEAN = text_normalizer()
BULLETS = "•‣⁃∙ℹ‼⁉§¶†‡"  # signs that Unicode does not class as symbols
# Selectors of variants of a letter; those of pictograms and of Mongolian and Khmer letters belong to them.
VARIANT = re.compile(
    rf"(?<![#*\d©®{BULLETS}\u2122{JOINED}])[\u17b4\u17b5\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

MONTHS = (
    "Jan(?:uary?)?|Feb(?:ruary?)?|Mär(?:z)?|Mrz|Mar(?:ch)?|Apr(?:il)?|Mai|May|Jun[ei]?|Jul[iy]?|Aug(?:ust)?|"
    "Sept?(?:ember)?|O[ck]t(?:ober)?|Nov(?:ember)?|De[cz](?:ember)?"
)
RULE = r"[-–—*+·<>|#~=_/\\]+"
# Dashes, boxes, numbers and letters in front of the points of a list; not days (`3. Mai`).
LIST_MARKS = re.compile(
    rf"\A(?:{RULE}\s+|\[(?:\d{{1,3}}|[ xX]?)\]\s+|\(?(?:\d{{1,3}}|[A-Za-z]|[IVXivx]{{2,4}})\)\s+|"
    rf"(?:\d{{1,3}}|[IVX]{{2,4}}|[a-h])\.\s+(?=[A-ZÄÖÜ]\w)(?!(?:{MONTHS})\b))+"
)
LAST_SIGNS = re.compile(rf"(?<!\s)\s+{RULE}\Z")


@lru_cache(maxsize=4096)
def is_invisible(character: str) -> bool:
    """Whether cleaning removes a character. Tested after a flag, where tags are kept."""
    return clean_text(f"\U0001f3f4{character}") == "\U0001f3f4"


def cleaned_signs(text: str) -> str:
    """Bullets and emoji without stray invisible characters; white space is kept."""
    return re.sub(r"\S+", lambda signs: clean_text(signs[0]), text)


def is_unknown_sign(character: str, tokenizer) -> bool:
    """Whether a character is a bullet or (part of) a pictogram that would become bytes."""
    of_signs = unicodedata.category(character) in ("So", "Sk", "Sm", "Co") or character in BULLETS
    return of_signs and tokenizer.is_unknown(character)


# Capitals and small letters ------------------------------------------------------------------------------------------


def in_capitals(text: str) -> bool:
    """Whether a text is in capitals; a single word of up to four letters, perhaps an abbreviation, does not count."""
    letters = "".join(filter(str.isalpha, text))
    return is_upper(letters) and (len(letters) > 4 or len(text.split()) > 1 < len(letters))


def is_loud_word(tokenizer, text: str) -> bool:
    """Whether a text is one word in capitals (`JA!`) that is several pieces, but one in other letters."""
    found = WORD.findall(text)
    if len(found) != 1 or len(found[0]) < 2 or not is_upper(found[0]):
        return False
    is_several = len(tokenizer(found[0], add_special_tokens=False)["input_ids"]) > 1
    return is_several and in_usual_letters(tokenizer, found[0].lower())[1] == 1


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
    """A lower-case word in the letters that the vocabulary suggests, and its number of pieces.

    These are small letters, a capital, or capitals (`USA`), and `ß` for `ss`, which has no capital.
    """
    spelled = (word, word.replace("ss", "ß"))
    forms = dict.fromkeys(form for one in spelled for form in (one, one[0].upper() + one[1:], one.upper()))
    pieces = {form: tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms}
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


def plainly_spelled(tokenizer, text: str, copied: re.Pattern) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A text in letters and signs that the vocabulary knows, as far as it can be, and the spellings that this changed.

    Args:
        copied: matches what keeps its letters.

    Returns:
        The text, and what `respelled` needs to spell copied words as before.
    """
    if text.isascii() and "&" not in text:
        return text, ()
    plain = without_letter_entities(VARIANT.sub("", text))
    plain = readable(tokenizer, plain, (match.span() for match in copied.finditer(plain)))
    words = [
        (clean_text(read).casefold(), clean_text(word))
        for read, word in zip(plain.split(), text.split(), strict=False)
    ]
    changed = {read for read, word in words if read != word.casefold()}
    return plain, tuple(pair for pair in words if pair[0] in changed)


def respelled(text: str, spellings: Sequence[tuple[str, str]]) -> str:
    """A translation in which copied words are spelled as in the source.

    Args:
        spellings: cleaned words as the model read them, in small letters, and as they stand in the source, in order.
    """
    waiting: dict[str, list[str]] = {}
    for read, original in spellings:
        waiting.setdefault(read, []).append(original)

    def spelling(word: re.Match) -> str:
        left = waiting.get(clean_text(word[0]).casefold(), [word[0]])
        return left.pop(0) if len(left) > 1 else left[0]

    return re.sub(r"\S+", spelling, text) if spellings else text
