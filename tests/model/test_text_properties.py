"""Properties of the tokenizer and of plain text, on arbitrary Unicode text."""

import copy
import functools
import re
import tempfile
import unicodedata

import pytest
from datasets.fingerprint import Hasher
from hypothesis import example, given
from hypothesis import strategies as st

from modeling_jmnat.plain_text import COPIED, MARKS, VARIANT, Sentence, clean_text, protect, restore
from modeling_jmnat.tokenization_jmnat import JMNatTokenizer, renewed, train_joint_tokenizer
from tests.helpers.arbitrary import CHARACTERS, WORDS, examples, texts

KINDS = {
    "plain": {},
    "marks": {"marks": True},
    "lowercase": {"lowercase": True, "marks": True},
    "reloaded": {"marks": True},
    "renewed": {},
    "compatible": {"unicode_form": "NFKC"},
    "compatible_lowercase": {"unicode_form": "NFKC", "lowercase": True},
}


@functools.cache
def tokenizer_of(kind):
    lines = [
        " ".join(word for word in WORDS if word.isascii()),
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
    ]
    lines += ["Die Häuser der Straße öffnen und schließen. ÄÖÜäöü 0123456789 " + "".join(map(chr, range(0x21, 0x7F)))]
    tokenizer = train_joint_tokenizer(lines * 3, 600, **KINDS[kind])
    if kind == "reloaded":
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return JMNatTokenizer.from_pretrained(folder)
    return renewed(tokenizer, marks=True) if kind == "renewed" else tokenizer


kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@examples(120)
@example(text="㊙\u200d👩")
@example(text="J\u030c ℡ İ\u0323")
@example(text="a\u00ad\u0301")
@given(text=texts())
def test_decoding_gives_the_normalised_text_and_normalising_twice_changes_nothing(kind, text):
    tokenizer = tokenizer_of(kind)
    normalised = tokenizer.normalize_text(text)
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert not {*ids[:-1]} & {*tokenizer.all_special_ids}
    assert tokenizer.decode(ids, skip_special_tokens=True) == normalised
    assert tokenizer.normalize_text(normalised) == normalised
    assert tokenizer(normalised)["input_ids"] == ids


@examples(400)
@example(text="👩\u200d\u061c")
@example(text="ᠠ\u180e\u180e")
@example(text="\u2800\u200d👩")
@example(text="\U000e0067\U000e0062")
@example(text="\u0600\u180e\u034f")
@example(text="م\u0301\u200d\u064b\u200dم")
@given(text=texts())
def test_cleaning_twice_changes_nothing(text):
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert cleaned == cleaned.strip()
    assert len(cleaned.splitlines()) <= 1


@examples(300)
@given(data=st.data())
def test_any_ids_can_be_decoded(data):
    tokenizer = tokenizer_of("marks")
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=12))
    for skip_special_tokens in (True, False):
        text = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        assert "\ufffd" not in text
        text.encode()


@kinds
@examples(30)
@given(before=texts(4), half=st.integers(0xD800, 0xDFFF), after=texts(4), good=st.lists(texts(4), max_size=3))
def test_lone_surrogates_are_refused_without_side_effects(kind, before, half, after, good):
    tokenizer = tokenizer_of(kind)
    expected, before_hash = tokenizer("Die Häuser")["input_ids"], Hasher.hash(tokenizer)
    for given_text in (before + chr(half) + after, [*good, before + chr(half) + after]):
        with pytest.raises(ValueError, match="lone surrogate"):
            tokenizer(given_text, padding=True)
        with pytest.raises(ValueError, match="lone surrogate"):
            tokenizer(text_target=given_text)
    assert tokenizer("Die Häuser")["input_ids"] == expected
    assert Hasher.hash(tokenizer) == before_hash


@kinds
@examples(20)
@given(lines=st.lists(texts(6), min_size=1, max_size=5))
def test_a_batch_equals_its_lines_and_use_does_not_change_the_hash(kind, lines):
    tokenizer = copy.deepcopy(tokenizer_of(kind))
    before = Hasher.hash(tokenizer)
    alone = [tokenizer(line)["input_ids"] for line in lines]
    assert tokenizer(lines)["input_ids"] == alone
    assert tokenizer(lines, text_target=lines)["labels"] == alone
    padded = tokenizer(lines, padding=True)
    rows = zip(padded["input_ids"], padded["attention_mask"], strict=True)
    assert [[token for token, here in zip(*row, strict=True) if here] for row in rows] == alone
    assert tokenizer.batch_decode(alone) == [tokenizer.decode(ids) for ids in alone]
    for line in lines:
        Sentence.read(line.strip(), tokenizer)
    assert Hasher.hash(tokenizer) == before


@examples(80)
@given(text=texts(6), ids=st.lists(st.integers(0, 299), max_size=12))
def test_moses_takes_any_text(text, ids):
    tokenizer = moses()
    known = tokenizer(text)["input_ids"]
    assert known == tokenizer([text, "Haus"])["input_ids"][0]
    assert not {*known[:-1]} & {*tokenizer.all_special_ids}
    tokenizer(text_target=text)
    for decoded in (tokenizer.decode(known, skip_special_tokens=True), tokenizer.decode(ids)):
        assert "\ufffd" not in decoded


@functools.cache
def moses():
    lines = ["Die Häuser öffnen .", "The houses open , too ."] * 3
    return train_joint_tokenizer(lines, 320, moses_source_lang="de", moses_target_lang="en")


# What a translation copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["marks", "lowercase"])
@examples(300)
@given(text=texts(8))
def test_any_text_is_restored(kind, text):
    tokenizer = tokenizer_of(kind)
    shown, items = protect(tokenizer, text)
    assert restore(shown, items) == text or (len(items) == len(MARKS) and any(mark in text for mark in MARKS))
    assert len(items) == len({*items}) <= len(MARKS)


@pytest.mark.parametrize("kind", ["plain", "marks", "lowercase"])
@examples(300)
@example(text="\ue000")
@given(text=texts(8))
def test_a_sentence_translated_into_itself_is_itself(kind, text):
    """Up to normalisation, selectors of variants, and capitals where the sentence has none or nothing else."""
    tokenizer, text = tokenizer_of(kind), text.strip()
    sentence = Sentence.read(text, tokenizer)
    if len(sentence.items or ()) == len(MARKS):
        return
    written = sentence.write(sentence.text)
    found, expected = (VARIANT.sub("", clean_text(each)).strip().upper().casefold() for each in (written, text))
    assert found == expected
    for digits in re.findall(r"\d+", text):
        assert digits in written


@examples(300)
@given(text=texts(6), item=st.sampled_from([word for word in WORDS if COPIED.fullmatch(word)]))
def test_items_survive(text, item):
    tokenizer = tokenizer_of("marks")
    sentence = Sentence.read(f"{text} {item}".strip(), tokenizer)
    if len(sentence.items or ()) < len(MARKS):
        read = tokenizer.decode(tokenizer(sentence.text)["input_ids"], skip_special_tokens=True)
        assert item in sentence.write(read)


@examples(300)
@example(text="\u0307", character="0")
@given(text=texts(6), character=CHARACTERS)
def test_marks_stand_for_characters_without_a_piece(text, character):
    """Nothing that the model reads is written in bytes, unless more is to be copied than there are marks."""
    tokenizer = tokenizer_of("marks")
    sentence = Sentence.read(f"ok {text}{character} ok", tokenizer)
    if len(sentence.items or ()) < len(MARKS) and sentence.translation is None:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(sentence.text)["input_ids"])
        assert not [piece for piece in pieces if piece.startswith("<0x")]


@examples(50)
@given(text=texts(6))
def test_combining_accents_are_known_when_composed(text):
    tokenizer = tokenizer_of("marks")
    for known in ("Häuser öffnen", "Die ÄÖÜäöü"):
        composed = unicodedata.normalize("NFC", f"{known} {text}".strip())
        apart = unicodedata.normalize("NFD", composed)
        assert Sentence.read(apart, tokenizer) == Sentence.read(composed, tokenizer)
