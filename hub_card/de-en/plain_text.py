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

ADDRESS_END = r"""[^\s<>"'“”«».,:;!?)\]}…]"""
FILE_TYPES = (
    "bak|c|cfg|conf|cpp|css|csv|deb|dll|docx?|exe|gif|gz|h|html?|ini|jpe?g|js|json|log|md|mp[34]|od[pst]|pdf|png|pptx?|"
    "py|rpm|sh|so|svg|tar|toml|tsv|txt|xlsx?|xml|ya?ml|zip|com|de|io|net|org"
)
BLANK = "\u2800"  # white space in Braille, which is a symbol to Python
NAMES = re.compile(r"\b[A-Z]\w{2,}\b")
NUMBER = r"\d+(?:[.,:/'’-]\d+)*"
BULLETS = "•‣⁃∙"  # bullets that Unicode does not class as symbols
UNSEEN = re.compile(rf"{INVISIBLE}|\s|[\u180e\u200c\u200d\ufe0f\U000e0020-\U000e007f]")  # including emoji joiners
ANY_MARK = re.compile(f"[{''.join(MARKS)}]")
NO_SPACE = re.compile(r"\S+")
EDGE_SIGNS = re.compile(r"""^["'“”„«»(\[]+|["'“”«»)\],.;:!?…]+$""")  # around a word
LONE_LETTER = re.compile(r"[\W\d_]*[A-HJ-Zb-z][\W\d_]*")  # of a list or a formula; "I" and "a" are words
SHORT_NUMBER = re.compile(r"\d{1,2}")
MENDED_FROM = 0.5  # least similarity (0 to 1) of a garbled copy to the item that it should be
WORD = re.compile(r"[^\W\d_]+")
# Text that a translation copies, the most specific patterns first. `find_copied` adds words with unknown characters.
# Patterns for long runs match only at the start of a run, so that they are not tried at each of its characters.
COPIED = re.compile(
    "|".join(
        (
            rf"""(?:(?:https?|ftps?|file|git|ssh)://|mailto:)[^\s<>"]*{ADDRESS_END}|www\.[^\s<>"]*{ADDRESS_END}""",
            r"(?<![\w.+-])[\w.+-]*\w@\w[\w-]*(?:\.\w[\w-]*)+",  # e-mail
            r"</?[A-Za-z][^<>]*>|&(?:#\d+|#x[0-9A-Fa-f]+|[A-Za-z]\w*);",  # markup
            # Placeholders of shells, templates, C and Python.
            r"\$\{[^{}\s]*\}|\$\([A-Za-z_]\w*\)|\$[A-Za-z_]\w*\$?|%[A-Za-z_]\w+%|@[A-Z_][A-Z0-9_]*@|\[\[[^\[\]]*\]\]",
            r"\{\{[^{}]*\}\}|\{[\w.:!,%]*\}|%\([A-Za-z_]\w*\)[-+ 0#]?\d*[a-z]|%\d+(?![\w$])",
            r"%(?:\d+\$)?[-+0#]*\d*(?:\.\d+)?(?:hh?|ll?|z)?[diouxXeEfgGcsp@](?!\w)",
            # Paths, options, identifiers, file names and host names.
            r"(?<![\w/~.])(?:~|\.{1,2})?(?:/[\w.+@-]*\w)+/?|\b[A-Za-z]:\\[^\s\"<>|]*[\w\\]|(?<![\w-])--[A-Za-z][\w-]*\w",
            rf"\b(?<!\w-)(?<![\w-]\.)(?=\w)[\w-]+(?:\.[\w-]+)*\.(?:{FILE_TYPES})\b",
            r"\b(?:[a-z]\w*?(?:_[a-z0-9]+)+|[A-Z]\w*?(?:_[A-Z0-9]+)+)\b",
            r"\b[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b|\b0x[0-9A-Fa-f]+\b",
            # Amounts of money, telephone numbers, dates and times, numbers. A short ordinal ("3. Mai") is a word.
            rf"(?<![\w.,])[€$£¥][ \xa0\u202f]?{NUMBER}",
            r"(?<![\w.,])[+-]?\d{1,3}(?:[ \xa0\u2009\u202f]\d{3})+(?!\d)(?:[.,]\d+)?(?:[ \xa0\u202f]?[€$£¥](?!\w))?",
            rf"(?<![\w.,])(?<!\d[:/'’-])[+-]?{NUMBER}[ \xa0\u202f]?[€$£¥](?!\w)",
            r"(?<![\w.,])\+\d{1,3}(?:[ /-]?(?:\(\d+\)|\d+))+",
            r"\b\d{4}-\d\d-\d\dT[\d:.]*\d(?:Z|[+-]\d\d:?\d\d)?|(?<!\w)[A-Z]{1,5}-?\d[\w-]*(?:\.\d+)*",
            r"(?<![\w.,])[v+-]?\d+(?:[.,:/'’-]\d+)+|(?:(?<![\w)\]])[+-])?(?<![^\W_])(?:\d{3,}|\d{1,2}(?!\d|\.\s))",
        )
    )
)


def find_copied(tokenizer, text: str) -> list[tuple[int, int]]:
    """Spans of the text that a translation should copy, in order.

    These are matches of `COPIED`, and words with unknown characters, which would be predicted byte by byte; several
    such words in a row form one span.
    """
    spans = [match.span() for match in COPIED.finditer(text)]
    taken = {position for span in spans for position in range(*span)}
    kinds = "".join("-" if position in taken else _kind(tokenizer, text[position]) for position in range(len(text)))
    spans += [match.span() for match in re.finditer("w*ut*(?:i?[uw]t*)*(?: ut*(?:i?[uw]t*)*)*", kinds)]
    return sorted(spans)


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
        spoilt = most_alike(item, translation, words, taken)
        if spoilt is not None:
            translation = translation[: spoilt[0]] + item + translation[spoilt[1] :]
        elif not SHORT_NUMBER.fullmatch(item):
            before, _, after = source.partition(item)
            share = len(before.split()) / max(1, len(before.split()) + len(after.split()))
            starts = [begin for begin, _ in words if not {begin - 1, begin} <= taken]  # not within another item
            place = round(share * len(starts))
            if place < len(starts):
                translation = f"{translation[: starts[place]]}{item} {translation[starts[place] :]}"
            else:
                end = len(translation.rstrip(".!?"))
                translation = f"{translation[:end]}{' ' if words else ''}{item}{translation[end:]}"
    return translation


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
    before, after = (r"(?<!\d)" if item[0].isdigit() else "", r"(?!\d)" if item[-1].isdigit() else "")
    return [match.span() for match in re.finditer(before + re.escape(item) + after, text)]


# Capitals and small letters ------------------------------------------------------------------------------------------


def in_capitals(text: str) -> bool:
    """Whether a text is in capitals; a single word of up to four letters, perhaps an abbreviation, does not count."""
    letters = "".join(filter(str.isalpha, text))
    return letters.isupper() and (len(letters) > 4 or len(text.split()) > 1 < len(letters))


def in_small_letters(text: str) -> bool:
    """Whether a text has at least two words and no capital."""
    return text == text.lower() != text.upper() and sum(any(map(str.isalpha, word)) for word in text.split()) > 1


def truecased(tokenizer, text: str) -> str:
    """A lower-case text with the capitals that the vocabulary suggests.

    A word is capitalised if it then has fewer pieces, or pieces that were merged earlier, which are more frequent. The
    first word of a sentence that ends in `.`, `!` or `?` is always capitalised.
    """

    def spelled(word: re.Match) -> str:
        small, capital = word[0], word[0][0].upper() + word[0][1:]
        small_ids, capital_ids = (tokenizer(form, add_special_tokens=False)["input_ids"] for form in (small, capital))
        return capital if (len(capital_ids), capital_ids) < (len(small_ids), small_ids) else small

    text = WORD.sub(spelled, text)
    first = WORD.search(text) if text.rstrip("\"'“”»)").endswith((".", "!", "?")) else None
    if first is None or tokenizer.is_unknown(first[0][0].upper()):
        return text
    return text[: first.start()] + first[0][0].upper() + text[first.start() + 1 :]


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
    """

    text: str
    source: str = ""
    items: tuple[str, ...] = ()
    has_marks: bool = False
    around: tuple[str, str] = ("", "")
    capitals: bool = False
    translation: str | None = None

    @classmethod
    def read(cls, sentence: str, tokenizer: Any) -> "Sentence":
        """Prepare a sentence without outer white space. For tokenizers of other models it stays as it is."""
        if not hasattr(tokenizer, "is_unknown") or SURROGATES.search(sentence):  # the tokenizer refuses surrogates
            return cls(sentence, translation=None if sentence else "")
        if code := tokenizer.language_code(sentence):
            read = cls.read(sentence.removeprefix(code).strip(), tokenizer)
            return replace(read, text=f"{code} {read.text}")
        sentence = sentence.replace(REPLACEMENT, "")
        if not tokenizer.normalize_text(sentence):
            return cls("", translation="")
        # A letter followed by a combining accent is known if the composed character is.
        composed = unicodedata.normalize("NFC", sentence).replace(BLANK, " ")
        around = {sign for sign in composed if UNSEEN.match(sign) or is_unknown_sign(sign, tokenizer)}
        core = composed.strip("".join(around))
        if not core:
            return cls(sentence, translation=_cleaned_signs(sentence))
        spans = find_copied(tokenizer, core)
        items = tuple(dict.fromkeys(core[begin:end] for begin, end in spans))
        marked = put_marks(core, spans, items)
        if LONE_LETTER.fullmatch(core) or (items and not any(map(str.isalpha, marked))):
            return cls(sentence, translation=sentence)
        text = marked if tokenizer.has_marks else core  # without marks, items count as text
        capitals = not tokenizer.lowercase and in_capitals(text)
        if capitals or (not tokenizer.lowercase and in_small_letters(text)):
            marked = truecased(tokenizer, marked.lower())
            text = marked if tokenizer.has_marks else restore(marked, items)
        before, after = map(_cleaned_signs, composed.split(core, 1))
        return cls(text, core, items, tokenizer.has_marks, (before, after), capitals)

    def write(self, translation: str, is_draft: bool = False) -> str:
        """Turn the translation of `text` into that of the sentence. Items that a draft lacks are not inserted."""
        if self.translation is not None:
            return self.translation
        before, after = self.around
        text = translation.replace(REPLACEMENT, "")
        text = text.upper() if self.capitals else text
        if self.has_marks:
            text = restore(text, self.items)
        return before + (text if is_draft else mend_copies(text, self.source, self.items)) + after


def _cleaned_signs(text: str) -> str:
    """Bullets and emoji without stray invisible characters; white space is kept."""
    return re.sub(r"\S+", lambda signs: clean_text(signs[0]), text)


def is_unknown_sign(character: str, tokenizer) -> bool:
    """Whether a character is a bullet or (part of) a pictogram that would become bytes."""
    of_signs = unicodedata.category(character) in ("So", "Sk") or character in BULLETS
    return of_signs and tokenizer.is_unknown(character)
