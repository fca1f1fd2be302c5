"""Text before and after the model: cleaned, with marks for what is copied, and with letters that the model knows.

This file is saved along with a model.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import count
from typing import Any

from .spelling import (
    BULLETS,
    INVISIBLE,
    LAST_SIGNS,
    LIST_MARKS,
    VARIANT,
    calmed,
    changed_outside,
    clean_text,
    cleaned_signs,
    in_capitals,
    in_small_letters,
    is_invisible,
    is_loud_word,
    is_unknown_sign,
    plainly_spelled,
    respelled,
    truecased,
)

# Characters of the private use area that stand for text to be copied.
MARKS = tuple(map(chr, range(0xE000, 0xE00A)))
REPLACEMENT = "\ufffd"  # left by a failed decoding
SURROGATES = re.compile("[\ud800-\udfff]")
Pairs = tuple[tuple[str, str], ...]

# Text that a translation copies --------------------------------------------------------------------------------------

BLANK = "\u2800"  # white space in Braille, which is a symbol to Python
NAMES = re.compile(r"\b[A-Z]\w{2,}\b")
UNSEEN = re.compile(rf"{INVISIBLE}|\s|[\u180e\u200c\u200d\ufe0f\U000e0020-\U000e007f]")  # including emoji joiners
ANY_MARK, ALL_MARKS = (re.compile(f"[{''.join(MARKS)}]{several}") for several in ("", "+"))
NO_SPACE = re.compile(r"\S+")
OPENING_SIGNS, CLOSING_SIGNS = "\"'“”„«»([", "\"'“”«»)],.;:!?…"  # around a word
LONE_LETTER = re.compile(r"[\W\d_]*[A-HJ-Zb-zÄÖÜäöüß][\W\d_]*")  # of a list or a formula; "I" and "a" are words
LETTER = r"[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ud7ff]"  # or digit, where words have spaces between
SHORT_NUMBER = re.compile(r"\d{1,2}")
PLAIN_NUMBER = re.compile(r"[+−-]?\d+(?:[.,:/]\d+)?|[A-Z]{1,3}\d{1,3}")  # (or `A4`) is as easy to read as a name
MOST_NAMES = 30  # in a sentence; mending many takes long
MENDED_FROM = 0.5  # least similarity (0 to 1) of a garbled copy to the item that it should be
ADDRESS_END = r"""[^\s<>"'“”«».,:;!?)\]}…]"""
FILE_TYPES = (
    "bak|c|cfg|conf|cpp|css|csv|deb|dll|docx?|exe|gif|gz|h|html?|ini|jpe?g|js|json|log|md|mp[34]|od[pst]|pdf|png|pptx?|"
    "py|rpm|sh|so|svg|tar|toml|tsv|txt|xlsx?|xml|ya?ml|zip|com|de|io|net|org"
)
# Signs and units after an amount, and signs and codes before one.
UNITS = (
    r"(?:[€$£¥₹₽₺₿%‰]|(?:EUR|USD|CHF|GBP|JPY|CNY|PLN|CZK|SEK|NOK|DKK)\b|°[CF]?|km/h|m/s|[cdkmµn]?m[²³]?|[kmµ]?g|"
    r"[cm]?l|m?s|[kKMGT]i?B|[kMG]?Hz|[kM]?Wh?|k?V|m?A)(?!\w)"
)
CURRENCIES = r"(?:[€$£¥₹₽₺₿]|\b(?:EUR|USD|CHF|GBP|JPY|CNY|PLN|CZK|SEK|NOK|DKK)\b)"
GAP = r"[ \xa0\u202f]?"
NUMBER = r"\d+(?:[.,:/'’–-]\d+)*"
NO_CENTS = r"(?:[.,][-–]{1,2})?"  # 19,-- EUR
AMOUNT = re.compile(rf"({CURRENCIES}{GAP})?[+−-]?(\d+(?:[.,]\d+)*){NO_CENTS}({GAP}[^\s\d]{{1,4}})?")
SOME_UNIT = rf"(?:[.,]?[-–]{{0,2}}{GAP}(?:{UNITS}|°?{GAP}[CF]\b)(?:[.,]\d+)?|[.,][-–]{{1,2}})?"
# Text that a translation copies, the most specific patterns first. `find_copied` adds words with unknown characters.
# Patterns for long runs match only at the start of a run, so that they are not tried at each of its characters.
COPIED = re.compile(
    "|".join(
        (
            rf"""(?:(?:https?|ftps?|file|git|ssh)://|mailto:|www\.)[^\s<>"]*{ADDRESS_END}""",
            rf"""(?<![\w.@-])(?:[A-Za-z0-9-]+\.)+[a-z]{{2,}}/[^\s<>"]*{ADDRESS_END}""",
            r"(?<![\w.+-])[\w.+-]*\w@\w[\w-]*(?:\.\w[\w-]*)+",  # e-mail
            r"</?[A-Za-z][^<>]*>|&(?:#\d+|#x[0-9A-Fa-f]+|[A-Za-z]\w*);",  # markup
            r"(?<![\w`])`[^`\s](?:[^`]*[^`\s])?`(?![\w`])",  # code in Markdown
            # Placeholders of shells, templates, C and Python; the messages of ICU.
            r"\$\{[^{}\s]*\}|\$\([A-Za-z_]\w*\)|\$[A-Za-z_]\w*\$?|%[A-Za-z_]\w+%|@[A-Za-z_]\w*@|\[\[[^\[\]]*\]\]",
            r"\{\{[^{}]*\}\}|[#$]?\{[\w.:!,%<>^+=#-]*\}|<%[^%<>]*%>|%\([A-Za-z_]\w*\)[-+ 0#]?\d*[a-z]|%\d+(?![\w$])",
            r"\{\w+,\s*(?:plural|select|selectordinal|number|date|time)\b(?:[^{}]|\{[^{}]*\})*\}",
            r"%(?:\d+\$)?[-+0#]*\d*(?:\.\d+)?(?:hh?|ll?|z)?[diouxXeEfgGcsp@](?!\w)",
            r"(?<![\w&@#/.])[@#](?=\d*[^\W\d])\w+|[0-9#*]\ufe0f?\u20e3",  # names, hashtags, keys
            # Paths, options, identifiers, calls, file names and host names.
            r"(?<![\w/~.-])(?:~|\.{1,2})?(?:/[\w.+@-]*\w)+/?|(?<![\w-])--[A-Za-z][\w-]*\w",
            r"\b[A-Za-z]:\\(?:[^\s\\\"<>|:]+(?: [^\s\\\"<>|:]+){0,3}\\)*[^\s\"<>|]*[\w\\]",
            rf"\b(?<!\w-)(?<![\w-]\.)(?=\w)[\w-]+(?:\.[\w-]+)*\.(?:{FILE_TYPES}|{FILE_TYPES.upper()})\b",
            r"(?<![^\s(\"'“„])\.[A-Za-z]\w{2,}(?:\.\w+)*(?![\w-])",  # .gitignore
            r"\b(?:[a-z]\w*?(?:_[a-z0-9]+)+|[A-Z]\w*?(?:_[A-Z0-9]+)+)\b|\b__\w+__\b",
            r"(?<![\w.:>])[A-Za-z_]\w*(?:(?:\.|::|->)\w+)*\(\)|(?<![\w:])[A-Za-z_]\w*(?:::\w+)+(?:<[\w:,* ]*>)?",
            r"\b[a-z]+[A-Z][a-z0-9]{2,}(?:[A-Z][a-z0-9]*)*\b|\b[A-Z]\w{0,9}&[A-Z]\w{0,9}\b",  # `camelCase` and `R&D`
            r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b|\b0x[0-9A-Fa-f]+\b",
            r"(?<![\w:])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![\w:])",  # addresses of devices, IPv6
            r"(?<![\w:])(?:(?:[0-9A-Fa-f]{1,4}:){7}|(?:(?:[0-9A-Fa-f]{1,4}:){1,6}|:):(?:[0-9A-Fa-f]{1,4}:){0,5})"
            r"[0-9A-Fa-f]{1,4}(?![\w:])",
            # Amounts, account and telephone numbers, dates and times, numbers. A short ordinal ("3. Mai") is a word.
            r"\b[A-Z]{2}\d{2}(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?\b",
            r"(?<![\w.,])(?:0\d+(?:[ \xa0]\d{2,})+|\d{4}(?:[ \xa0]\d{4}){2,})(?!\w)",
            rf"(?<![\w.,]){CURRENCIES}{GAP}{NUMBER}{NO_CENTS}",
            rf"(?<![\w.,])[+-]?\d{{1,3}}(?:[ \xa0\u2009\u202f]\d{{3}})+(?!\d)(?:[.,]\d+)?(?:{GAP}{UNITS})?",
            rf"(?<![\w.,])(?<!\d[:/'’–-])[+−-]?{NUMBER}{NO_CENTS}{GAP}{UNITS}",
            # Telephone numbers with the area code in brackets or before a stroke.
            r"(?<![\w.,])(?:\(0\d{1,5}\)[ \xa0]?|0\d{2,5} ?[/–-] ?)\d{3,}(?:[ \xa0/-]\d{2,})*(?!\w)",
            r"(?<![\w.,])\+\d{1,3}(?:[ /-]?(?:\(\d+\)|\d+))+|§{1,2}[ \xa0]?\d+[a-z]?\b",
            r"\b\d{4}-\d\d-\d\dT[\d:.]*\d(?:Z|[+-]\d\d:?\d\d)?|(?<!\w)[A-Z]{1,5}-?\d[\w-]*(?:\.\d+)*",
            r"\b(?=[IVX]{2,}\b)X{0,3}(?:IX|IV|V?I{0,3})\b(?<=[IVX])|(?<!\w)\d+(?:[x×]\d+)+(?!\w)",  # VIII, 1920x1080
            r"(?<![\w.,])[v+-]?\d+(?:[.,:/'’–-]\d+)+(?:-?(?:alpha|beta|dev|post|pre|rc)\.?\d*\b)?",
            r"(?:(?<![\w)\]])[+-])?(?<![^\W_])(?:\d{3,}|\d{1,2}(?!\d|\.\s))",
        )
    )
)


def find_copied(tokenizer, text: str) -> list[tuple[int, int]]:
    """Spans of the text that a translation should copy, in order.

    These are matches of `COPIED`, and words with unknown characters, which would be predicted byte by byte; several
    such words in a row form one span.
    """
    spans = [_with_bracket(text, *match.span()) for match in COPIED.finditer(text)]
    taken = {position for span in spans for position in range(*span)}
    kinds = "".join("-" if position in taken else _kind(tokenizer, text[position]) for position in range(len(text)))
    spans += [match.span() for match in re.finditer("w*ut*(?:i?[uw]t*)*(?: ut*(?:i?[uw]t*)*)*", kinds)]
    return sorted(spans)


def _with_bracket(text: str, begin: int, end: int) -> tuple[int, int]:
    """A span with the bracket that closes one inside it, as in `wiki/House_(film)`."""
    is_open = text.count("(", begin, end) > text.count(")", begin, end)
    return begin, end + (is_open and text[end : end + 1] == ")")


def _kind(tokenizer, character: str) -> str:
    """u: unknown, i: invisible, t: tag of a flag, w: part of a word, a space, or - for any other sign.

    Models without marks translate ASCII and punctuation themselves.
    """
    if character.isspace():
        return " "
    if is_invisible(character):
        return "i"
    if "\U000e0020" <= character <= "\U000e007f":
        return "t"
    is_plain = character.isascii() or (unicodedata.category(character)[0] == "P" and character not in BULLETS)
    if is_plain and not tokenizer.has_marks:
        return "w" if character.isalnum() else "-"
    return "u" if tokenizer.is_unknown(character) else "w" if character.isalnum() else "-"


def put_marks(text: str, spans: Sequence[tuple[int, int]], items: Sequence[str], first: int = 0) -> str:
    """Replace each span that equals one of the first ten `items` by that item's mark.

    Args:
        first: index of the first item's mark.
    """
    marks = {item: MARKS[(first + number) % len(MARKS)] for number, item in enumerate(items[: len(MARKS)])}
    pieces, position = [], 0
    for begin, end in spans:
        pieces += [text[position:begin], marks.get(text[begin:end], text[begin:end])]
        position = end
    return "".join([*pieces, text[position:]])


def protect(tokenizer, text: str) -> tuple[str, list[str]]:
    """Replace text to be copied (numbers, addresses, markup, words in unknown characters) by marks.

    Returns:
        The text with marks, and the items they stand for (see `restore`), at most ten; equal items share a mark. If
        the vocabulary has no marks, the unchanged text and an empty list.
    """
    if not tokenizer.has_marks:
        return text, []
    spans = find_copied(tokenizer, text)
    items = list(dict.fromkeys(text[begin:end] for begin, end in spans))[: len(MARKS)]
    return put_marks(text, spans, items), items


def protect_pair(tokenizer, source: str, target: str) -> tuple[str, str]:
    """Source and target of a training pair with marks for text that both contain.

    In one pair of eight, names are marked too, so that the model learns marks anywhere in a sentence. A hash of the
    source chooses these pairs and the first mark, so that all marks are trained equally often.
    """
    if not tokenizer.has_marks:
        return source, target
    drawn = zlib.crc32(source.encode())
    items = protect(tokenizer, source)[1]
    if drawn % 8 == 0:
        items += [name for name in NAMES.findall(source) if name not in items]
    items = [item for item in items if spans_of([item], target)]
    first = drawn // 8
    marked = (put_marks(text, spans_of(items, text), items, first) for text in (source, target))
    return next(marked), next(marked)


def spans_of(items: Sequence[str], text: str) -> list[tuple[int, int]]:
    """Spans of the items in a text, except inside another word or number; of overlapping items, the longest."""
    longest_first = "|".join(map(re.escape, sorted(items, key=len, reverse=True)))
    return [match.span() for match in re.finditer(rf"(?<![^\W_])(?:{longest_first})(?!\d)", text)] if items else []


def restore(text: str, items: Sequence[str]) -> str:
    """A translation in which each mark is replaced by its item.

    A mark without an item, or repeated while another item's mark is missing, takes the first item that is missing.
    """
    of_items = dict(zip(MARKS, items, strict=False))
    waiting = [item for mark, item in of_items.items() if mark not in text]
    seen: set[str] = set()

    def item_of(match: re.Match) -> str:
        mark = match[0]
        if mark in of_items and not (mark in seen and waiting):
            seen.add(mark)
            return of_items[mark]
        return waiting.pop(0) if waiting else ""

    return ANY_MARK.sub(item_of, text)


def mend_copies(translation: str, source: str, items: Sequence[str], kept: Sequence[str] = ()) -> str:
    """A translation that contains each of the source's `items` unchanged.

    A missing item replaces the words most similar to it, if they are similar enough. Otherwise it is inserted at its
    relative position in the source, counted in words; except numbers of up to two digits, which may be spelled out.

    Args:
        kept: pieces of the translation that no item replaces.
    """
    for item in dict.fromkeys(items):
        cleaned = clean_text(item)
        if cleaned not in ("", item) and item not in translation:  # they differ in the kind of white space
            translation = translation.replace(cleaned, item)
        if places(item, translation) or (item in translation and not places(item, clean_text(source))):
            continue
        stay = (*items, *kept)
        taken = {place for other in stay for span in places(other, translation) for place in range(*span)}
        words = [match.span() for match in NO_SPACE.finditer(translation)]
        spoilt = bare_number(item, translation, taken) or most_alike(item, translation, words, taken)
        if spoilt is not None:
            translation = translation[: spoilt[0]] + item + translation[spoilt[1] :]
        elif not SHORT_NUMBER.fullmatch(item):
            before, _, after = source.partition(item)
            lost = {word for other in items if not places(other, translation) for word in other.split()}
            sides = (before, after.lstrip(CLOSING_SIGNS))
            left, right = (sum(word not in lost for word in side.split()) for side in sides)
            share = left / max(1, left + right)
            starts = [begin for begin, _ in words if not {begin - 1, begin} <= taken]  # not within another item
            place = round(share * len(starts))
            if place < len(starts):
                translation = f"{translation[: starts[place]]}{item} {translation[starts[place] :]}"
            else:
                end = len(translation.rstrip(".!?"))
                translation = f"{translation[:end]}{' ' if words else ''}{item}{translation[end:]}"
    return translation


def bare_number(item: str, text: str, taken: set[int]) -> tuple[int, int] | None:
    """The span, outside `taken`, of an amount's number (`10` for `10 m²`) with whatever sign and unit it has."""
    amount = AMOUNT.fullmatch(item)
    if amount is None or not (amount[1] or amount[3]):  # a number alone
        return None
    number = rf"(?<!\w)(?<!\d[.,])(?:{CURRENCIES}{GAP})?[+−-]?{re.escape(amount[2])}(?![.,]?\d){SOME_UNIT}"
    spans = (match.span() for match in re.finditer(number, text))
    return next((span for span in spans if taken.isdisjoint(range(*span))), None)


def most_alike(item: str, text: str, words: list[tuple[int, int]], taken: set[int]) -> tuple[int, int] | None:
    """The span of consecutive words, outside `taken`, most similar to an item; None if none is similar enough."""
    best, chosen = MENDED_FROM, None
    cleaned = clean_text(item)
    matcher = SequenceMatcher(None, "", cleaned, autojunk=False)
    opening, closing = OPENING_SIGNS.replace(cleaned[:1], ""), CLOSING_SIGNS.replace(cleaned[-1:], "")
    for first in range(len(words)):
        for last in range(first, min(first + len(item.split()) + 2, len(words))):
            found = text[words[first][0] : words[last][1]].lstrip(opening)
            begin = words[last][1] - len(found)
            found = found.rstrip(closing)
            matcher.set_seq1(clean_text(found))
            if matcher.real_quick_ratio() <= best or matcher.quick_ratio() <= best:  # bounds of the ratio
                continue
            if matcher.ratio() > best and taken.isdisjoint(range(begin, begin + len(found))):
                best, chosen = matcher.ratio(), (begin, begin + len(found))
    return chosen


def places(item: str, text: str) -> list[tuple[int, int]]:
    """Spans of an item in a text, except inside a longer word or number; a number may have an ending (`1990s`)."""
    first, last = item[0], item[-1]
    before = f"(?<!{LETTER})" * first.isalnum() + r"(?<!\d[.,])" * first.isdecimal()
    is_number = last.isdecimal() or (first.isdecimal() and not last.isalnum())
    after = r"(?![.,]?\d)" if is_number else f"(?!{LETTER})" * last.isalnum()
    return [match.span() for match in re.finditer(before + re.escape(item) + after, text)]


# A sentence and its translation --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """A sentence as the model reads it, and what its translation needs.

    Args:
        text: input of the tokenizer, with marks and in letters that the model knows.
        source: the sentence as given, without the signs `around` it.
        items: pieces of the source that the translation copies.
        has_marks: whether the vocabulary has marks; they stand for the first ten items.
        around: signs before and after the sentence (a bullet, an emoji, `1.`), with their spaces.
        capitals: whether the translation is to be in capitals.
        translation: set where no model is needed: "" for an empty sentence, the sentence itself if it has no words.
        spellings: words that `text` has in other letters, see `respelled`.
        stand_ins: what `text` has in place of items if there are no marks, see `with_stand_ins`.
        kept: words of the translation that stay as they are: the target terms of a glossary.
    """

    text: str
    source: str = ""
    items: tuple[str, ...] = ()
    has_marks: bool = False
    around: tuple[str, str] = ("", "")
    capitals: bool = False
    translation: str | None = None
    spellings: Pairs = ()
    stand_ins: Pairs = ()
    kept: tuple[str, ...] = ()

    @classmethod
    def read(cls, sentence: str, tokenizer: Any, glossary: Any = None) -> "Sentence":
        """Prepare a sentence without outer white space. For tokenizers of other models it stays as it is.

        Args:
            glossary: see `inference.glossary`; its source terms are left to the model.
        """
        if not hasattr(tokenizer, "is_unknown") or SURROGATES.search(sentence):  # the tokenizer refuses surrogates
            return cls(sentence, translation=None if sentence else "")
        if code := tokenizer.language_code(sentence):
            read = cls.read(sentence.removeprefix(code).strip(), tokenizer, glossary)
            return replace(read, text=f"{code} {read.text}")
        sentence = sentence.replace(REPLACEMENT, "")
        if not tokenizer.normalize_text(VARIANT.sub("", sentence)):
            return cls("", translation="")
        # A letter followed by a combining accent is known if the composed character is.
        composed = unicodedata.normalize("NFC", sentence).replace(BLANK, " ")
        before, given, after = without_edges(composed, tokenizer)
        core, spellings = plainly_spelled(tokenizer, given, COPIED)
        if not core:
            return cls(sentence, translation=cleaned_signs(sentence))
        found = () if glossary is None else glossary.pattern.finditer(core)
        terms = {place for match in found for place in range(*match.span())}
        spans = [span for span in find_copied(tokenizer, core) if terms.isdisjoint(range(*span))]
        items = tuple(dict.fromkeys(core[begin:end] for begin, end in spans))
        marked = put_marks(core, spans, items)
        if not terms and (LONE_LETTER.fullmatch(core) or not any(map(str.isalpha, marked))):
            return cls(sentence, translation=cleaned_signs(sentence))
        capitals = not tokenizer.lowercase and (in_capitals(marked) or is_loud_word(tokenizer, marked))
        if capitals or (not tokenizer.lowercase and in_small_letters(marked)):
            marked = truecased(tokenizer, marked.lower())
        elif not tokenizer.lowercase:
            marked = calmed(tokenizer, marked)
        kept = () if glossary is None else tuple(glossary.found(marked))
        has_marks = tokenizer.has_marks
        text, stand_ins = (marked, ()) if has_marks else with_stand_ins(tokenizer, marked, items, kept)
        return cls(text, core, items, has_marks, (before, after), capitals, None, spellings, stand_ins, kept)

    def write(self, translation: str, is_draft: bool = False) -> str:
        """Turn the translation of `text` into that of the sentence. Items that a draft lacks are not inserted."""
        if self.translation is not None:
            return self.translation
        before, after = self.around
        text = translation.replace(REPLACEMENT, "").strip()
        if self.has_marks:
            text = restore(text, self.items)
        if not is_draft:
            missing = [name.strip() for name, item in self.stand_ins if not places(item, text)]
            text = mend_copies(text, self.text, missing, self.kept)
        text = put_back(text, self.stand_ins)
        if not is_draft:
            present = [item for _, item in self.stand_ins]
            items = [i for i in self.items if PLAIN_NUMBER.fullmatch(i) or not any(i in other for other in present)]
            text = mend_copies(text, self.source, items, [*present, *self.kept])
        text = respelled(text, self.spellings)
        if self.capitals:  # all but what is copied
            stay = [match.span() for item in self.items for match in re.finditer(re.escape(item), text)]
            stay += [span for term in self.kept for span in places(term, text)]
            text = changed_outside(text, str.upper, stay)
        return before + text + after


def without_edges(text: str, tokenizer) -> tuple[str, str, str]:
    """A text in three parts: the signs before its words, the words, and the signs after them, with their spaces.

    These are signs that the vocabulary lacks, list marks, and rules such as `***`. A sign that begins something to be
    copied is a part of that (`§ 5`).
    """
    signs = "".join({sign for sign in text if UNSEEN.match(sign) or is_unknown_sign(sign, tokenizer)})
    rest = text.lstrip(signs)
    rest = LIST_MARKS.sub("", rest).lstrip(signs)
    begin = len(text) - len(rest)
    end = begin + len(LAST_SIGNS.sub("", rest.rstrip(signs)).rstrip(signs))
    for match in COPIED.finditer(text) if end - begin < len(text) else ():
        begin = match.start() if match.start() < begin < match.end() else begin
        end = match.end() if match.start() < end < match.end() else end
    before, after = cleaned_signs(text[:begin]), cleaned_signs(text[end:])
    return before if before.strip() else "", text[begin:end], after if after.strip() else ""


def with_stand_ins(tokenizer, marked: str, items: Sequence[str], kept: Sequence[str]) -> tuple[str, Pairs]:
    """A text for a model without marks, which would read many items byte by byte.

    Each place of items has a name such as `F1`, which models copy as they copy numbers. Plain numbers stay as they
    are. Signs before the end of the sentence are left out, for `mend_copies` to insert them again.

    Returns:
        The text, and pairs of a name, with the spaces that separate it from other words, and its item.
    """
    of_items, marked = dict(zip(MARKS, items, strict=False)), clean_text(marked) if items else marked
    letter = "f" if tokenizer.lowercase else "F"
    taken = " ".join((marked, *items, *kept))
    names = (name for number in count(1) if (name := f"{letter}{number}") not in taken)
    are_known = not any(map(tokenizer.is_unknown, f"{letter}0123456789"))
    signs = [mark for mark, item in of_items.items() if not any(c.isascii() or c.isalnum() for c in item)]
    alone = [mark for mark in signs if sum(of_items[mark] in item for item in items) == 1 == marked.count(mark)]
    if signs := "".join(alone):
        left_out = r"[.!?]+$" if are_known else r"[.!?]+$|\s"
        marked = re.sub(rf"(?<=\w)\s[{signs}](?={left_out})", "", marked)
    stand_ins: list[tuple[str, str]] = []

    def shown(marks: re.Match) -> str:
        item = "".join(of_items.get(mark, "") for mark in marks[0])
        if not item or not are_known or PLAIN_NUMBER.fullmatch(item) or len(stand_ins) == MOST_NAMES:
            return item
        before, after = (f" {marked} "[place].isalnum() for place in (marks.start(), marks.end() + 1))
        name = " " * before + next(names) + " " * after
        stand_ins.append((name, item))
        return name

    return ALL_MARKS.sub(shown, marked), tuple(stand_ins)


def put_back(text: str, stand_ins: Pairs) -> str:
    """A translation with items in place of their names, without the spaces and letters that the names brought."""
    for name, item in stand_ins:
        before = " ?" if name[0] == " " else f"(?<!{LETTER})"
        after = " ?" if name[-1] == " " else "[A-Za-z]*"
        text = re.sub(rf"{before}{name.strip()}(?!\d){after}", item.replace("\\", r"\\"), text)
    return text
