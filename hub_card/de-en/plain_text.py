"""Text before and after the model: cleaned, with marks for what is copied, and with letters that the model knows.

This file is saved along with a model.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from tokenizers import Regex, normalizers

from .spelling import (
    calmed,
    changed_outside,
    in_capitals,
    in_small_letters,
    readable,
    truecased,
    without_letter_entities,
)

# Characters of the private use area that stand for text to be copied.
MARKS = tuple(map(chr, range(0xE000, 0xE00A)))
REPLACEMENT = "\ufffd"  # left by a failed decoding
SURROGATES = re.compile("[\ud800-\udfff]")

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


# Text that a translation copies --------------------------------------------------------------------------------------

BLANK = "\u2800"  # white space in Braille, which is a symbol to Python
NAMES = re.compile(r"\b[A-Z]\w{2,}\b")
UNSEEN = re.compile(rf"{INVISIBLE}|\s|[\u180e\u200c\u200d\ufe0f\U000e0020-\U000e007f]")  # including emoji joiners
ANY_MARK = re.compile(f"[{''.join(MARKS)}]")
NO_SPACE = re.compile(r"\S+")
EDGE_SIGNS = re.compile(r"""^["'“”„«»(\[]+|["'“”«»)\],.;:!?…]+$""")  # around a word
LONE_LETTER = re.compile(r"[\W\d_]*[A-HJ-Zb-zÄÖÜäöüß][\W\d_]*")  # of a list or a formula; "I" and "a" are words
AMOUNT = re.compile(r"([+-]?\d[\d.,]*)\s?[^\s\d]{1,3}")  # a number and its unit
SHORT_NUMBER = re.compile(r"\d{1,2}")
MENDED_FROM = 0.5  # least similarity (0 to 1) of a garbled copy to the item that it should be
ADDRESS_END = r"""[^\s<>"'“”«».,:;!?)\]}…]"""
FILE_TYPES = (
    "bak|c|cfg|conf|cpp|css|csv|deb|dll|docx?|exe|gif|gz|h|html?|ini|jpe?g|js|json|log|md|mp[34]|od[pst]|pdf|png|pptx?|"
    "py|rpm|sh|so|svg|tar|toml|tsv|txt|xlsx?|xml|ya?ml|zip|com|de|io|net|org"
)
# Signs and units after an amount, and signs and codes before one.
UNITS = r"(?:[€$£¥₹₽₺₿]|(?:EUR|USD|CHF|GBP|JPY|CNY|PLN|CZK|SEK|NOK|DKK)\b|°[CF]?|[cdkm]?m[²³])(?!\w)"
CURRENCIES = r"(?:[€$£¥₹₽₺₿]|\b(?:EUR|USD|CHF|GBP|JPY|CNY|PLN|CZK|SEK|NOK|DKK)\b)"
GAP = r"[ \xa0\u202f]?"
NUMBER = r"\d+(?:[.,:/'’–-]\d+)*"
BULLETS = "•‣⁃∙ℹ‼⁉§¶†‡"  # signs that Unicode does not class as symbols
# Selectors of variants of a letter; those of pictograms and of Mongolian and Khmer letters belong to them.
VARIANT = re.compile(
    rf"(?<![#*\d©®{BULLETS}\u2122{JOINED}])[\u17b4\u17b5\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
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
            r"(?<![\w/~.])(?:~|\.{1,2})?(?:/[\w.+@-]*\w)+/?|(?<![\w-])--[A-Za-z][\w-]*\w",
            r"\b[A-Za-z]:\\(?:[^\s\\\"<>|:]+(?: [^\s\\\"<>|:]+){0,3}\\)*[^\s\"<>|]*[\w\\]",
            rf"\b(?<!\w-)(?<![\w-]\.)(?=\w)[\w-]+(?:\.[\w-]+)*\.(?:{FILE_TYPES})\b",
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
            rf"(?<![\w.,]){CURRENCIES}{GAP}{NUMBER}(?:[.,][-–])?",
            rf"(?<![\w.,])[+-]?\d{{1,3}}(?:[ \xa0\u2009\u202f]\d{{3}})+(?!\d)(?:[.,]\d+)?(?:{GAP}{UNITS})?",
            rf"(?<![\w.,])(?<!\d[:/'’–-])[+−-]?{NUMBER}(?:[.,][-–])?{GAP}{UNITS}",
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


@lru_cache(maxsize=4096)
def is_invisible(character: str) -> bool:
    """Whether cleaning removes a character. Tested after a flag, where tags are kept."""
    return clean_text(f"\U0001f3f4{character}") == "\U0001f3f4"


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


def mend_copies(translation: str, source: str, items: Sequence[str]) -> str:
    """A translation that contains each of the source's `items` unchanged.

    A missing item replaces the words most similar to it, if they are similar enough. Otherwise it is inserted at its
    relative position in the source, counted in words; except numbers of up to two digits, which may be spelled out.
    """
    for item in dict.fromkeys(items):
        cleaned = clean_text(item)
        if cleaned not in ("", item) and item not in translation:  # they differ in the kind of white space
            translation = translation.replace(cleaned, item)
        if places(item, translation):
            continue
        taken = {place for other in items for span in places(other, translation) for place in range(*span)}
        words = [match.span() for match in NO_SPACE.finditer(translation)]
        spoilt = bare_number(item, translation, taken) or most_alike(item, translation, words, taken)
        if spoilt is not None:
            translation = translation[: spoilt[0]] + item + translation[spoilt[1] :]
        elif not SHORT_NUMBER.fullmatch(item):
            before, _, after = source.partition(item)
            lost = {word for other in items if not places(other, translation) for word in other.split()}
            left, right = (sum(word not in lost for word in side.split()) for side in (before, after))
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
    """The span, outside `taken`, of an amount's number (`10` for `10 m²`), and of another sign after it."""
    amount = AMOUNT.fullmatch(item)
    for begin, end in places(amount[1], text) if amount else ():
        if taken.isdisjoint(range(begin, end)):
            return begin, end + (text[end : end + 1] in {"%", "°", "€", "$", "£"})
    return None


def most_alike(item: str, text: str, words: list[tuple[int, int]], taken: set[int]) -> tuple[int, int] | None:
    """The span of consecutive words, outside `taken`, most similar to an item; None if none is similar enough."""
    best, chosen = MENDED_FROM, None
    matcher = SequenceMatcher(None, "", clean_text(item), autojunk=False)
    for first in range(len(words)):
        for last in range(first, min(first + len(item.split()) + 2, len(words))):
            found = EDGE_SIGNS.sub("", text[words[first][0] : words[last][1]])
            begin = text.index(found, words[first][0])
            matcher.set_seq1(clean_text(found))
            if matcher.real_quick_ratio() <= best or matcher.quick_ratio() <= best:  # bounds of the ratio
                continue
            if matcher.ratio() > best and taken.isdisjoint(range(begin, begin + len(found))):
                best, chosen = matcher.ratio(), (begin, begin + len(found))
    return chosen


def places(item: str, text: str) -> list[tuple[int, int]]:
    """Spans of an item in a text, except inside a longer number."""
    before, after = (r"(?<!\d)" if item[0].isdecimal() else "", r"(?!\d)" if item[-1].isdecimal() else "")
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
        around: unknown signs before and after the sentence (a bullet, an emoji), with their spaces.
        capitals: whether the translation is to be in capitals.
        translation: set where no model is needed: "" for an empty sentence, the sentence itself if it has no words.
        spellings: words that `text` has in other letters, see `respelled`.
    """

    text: str
    source: str = ""
    items: tuple[str, ...] = ()
    has_marks: bool = False
    around: tuple[str, str] = ("", "")
    capitals: bool = False
    translation: str | None = None
    spellings: tuple[tuple[str, str], ...] = ()

    @classmethod
    def read(cls, sentence: str, tokenizer: Any) -> "Sentence":
        """Prepare a sentence without outer white space. For tokenizers of other models it stays as it is."""
        if not hasattr(tokenizer, "is_unknown") or SURROGATES.search(sentence):  # the tokenizer refuses surrogates
            return cls(sentence, translation=None if sentence else "")
        if code := tokenizer.language_code(sentence):
            read = cls.read(sentence.removeprefix(code).strip(), tokenizer)
            return replace(read, text=f"{code} {read.text}")
        sentence = sentence.replace(REPLACEMENT, "")
        if not tokenizer.normalize_text(VARIANT.sub("", sentence)):
            return cls("", translation="")
        # A letter followed by a combining accent is known if the composed character is.
        composed = unicodedata.normalize("NFC", sentence).replace(BLANK, " ")
        signs = {sign for sign in composed if UNSEEN.match(sign) or is_unknown_sign(sign, tokenizer)}
        given = composed.strip("".join(signs))
        core, spellings = plainly_spelled(tokenizer, given)
        if not core:
            return cls(sentence, translation=_cleaned_signs(sentence))
        spans = find_copied(tokenizer, core)
        items = tuple(dict.fromkeys(core[begin:end] for begin, end in spans))
        marked = put_marks(core, spans, items)
        if LONE_LETTER.fullmatch(core) or not any(map(str.isalpha, marked)):
            return cls(sentence, translation=_cleaned_signs(sentence))
        capitals = not tokenizer.lowercase and in_capitals(marked)
        if capitals or (not tokenizer.lowercase and in_small_letters(marked)):
            marked = truecased(tokenizer, marked.lower())
        elif not tokenizer.lowercase:
            marked = calmed(tokenizer, marked)
        text = marked if tokenizer.has_marks else without_marks(marked, items)
        around = [_cleaned_signs(outer) for outer in composed.split(given, 1)]
        before, after = (outer if outer.strip() else "" for outer in around)
        return cls(text, core, items, tokenizer.has_marks, (before, after), capitals, spellings=spellings)

    def write(self, translation: str, is_draft: bool = False) -> str:
        """Turn the translation of `text` into that of the sentence. Items that a draft lacks are not inserted."""
        if self.translation is not None:
            return self.translation
        before, after = self.around
        text = translation.replace(REPLACEMENT, "").strip()
        if self.has_marks:
            text = restore(text, self.items)
        text = respelled(text if is_draft else mend_copies(text, self.source, self.items), self.spellings)
        if self.capitals:  # all but what is copied
            text = changed_outside(text, str.upper, (span for item in self.items for span in places(item, text)))
        return before + text + after


def plainly_spelled(tokenizer, text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A text in letters and signs that the vocabulary knows, as far as it can be, and the spellings that this changed.

    Returns:
        The text, and what `respelled` needs to spell copied words as before.
    """
    if text.isascii() and "&" not in text:
        return text, ()
    plain = without_letter_entities(VARIANT.sub("", text))
    plain = readable(tokenizer, plain, (match.span() for match in COPIED.finditer(plain)))
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


def without_marks(marked: str, items: Sequence[str]) -> str:
    """A text for a model without marks: with its items, but without emoji and other signs between words.

    Such a model would read them byte by byte; `mend_copies` inserts them again.
    """
    of_items = dict(zip(MARKS, items, strict=False))
    signs = [mark for mark, item in of_items.items() if not any(c.isascii() or c.isalnum() for c in item)]
    if signs:
        marked = re.sub(rf"\s[{''.join(signs)}](?=\s)", "", marked)
    return ANY_MARK.sub(lambda mark: of_items.get(mark[0], ""), marked)


def _cleaned_signs(text: str) -> str:
    """Bullets and emoji without stray invisible characters; white space is kept."""
    return re.sub(r"\S+", lambda signs: clean_text(signs[0]), text)


def is_unknown_sign(character: str, tokenizer) -> bool:
    """Whether a character is a bullet or (part of) a pictogram that would become bytes."""
    of_signs = unicodedata.category(character) in ("So", "Sk", "Sm", "Co") or character in BULLETS
    return of_signs and tokenizer.is_unknown(character)
