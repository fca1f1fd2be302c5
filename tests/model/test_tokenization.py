"""The tokenizer: exact text back, stable ids, saving in every way Transformers knows, Moses as an option."""

import copy
import gzip
import itertools
import json
import pickle
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from datasets.fingerprint import Hasher

from modeling_jmnat.plain_text import MARKS, clean_text
from modeling_jmnat.tokenization_jmnat import (
    BYTE_TOKENS,
    MARK_PIECES,
    SPECIAL_TOKENS,
    JMNatTokenizer,
    moses_tool,
    renewed,
    repeatable_tokens,
    show_canvas,
    train_joint_tokenizer,
)

CORPUS = Path(__file__).resolve().parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"
ODD_TEXTS = [
    "",
    " ",
    "  zwei  Leerzeichen   am Ende ",
    "Zeile\tmit\tTabulator\nund Umbruch\r\n",
    "Über Größe, Maß und ÄÖÜ äöüß",
    "cafe\u0301 und Zu\u0308rich",  # decomposed accents: NFC composes them
    "🤗 👩‍👩‍👧 🇩🇪",
    "日本語 العربية ქართული",
    "\u00a0geschützt\u202fschmal\u2028Zeile",
    "</s><s> <mask> <pad> <unk> <0x41> ▁ Ġ @@",
    "a\x00b\x7f\ufeff",
    "3.141,59 % – „Zitat“ (z. B. E-Mail@example.org)…",
]


def lines_of(split, language, count):
    with gzip.open(CORPUS / f"{split}.{language}.gz", "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n") for line, _ in zip(file, range(count), strict=False)]


@pytest.fixture(scope="module")
def texts():
    return lines_of("train", "de", 1500) + lines_of("train", "en", 1500)


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_joint_tokenizer(texts, vocab_size=1500)


@pytest.fixture(scope="module")
def moses(texts):
    german, english = moses_tool("tokenizer", "de"), moses_tool("tokenizer", "en")
    split = [german(text) for text in texts[:1500]] + [english(text) for text in texts[1500:]]
    return train_joint_tokenizer(split, 1500, lowercase=True, moses_source_lang="de", moses_target_lang="en")


def test_ids_are_those_of_fairseq(tokenizer):
    assert (
        tokenizer.convert_ids_to_tokens(range(5))
        == list(SPECIAL_TOKENS)
        == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    )
    named = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert (*named, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)
    assert sorted(tokenizer.get_vocab().values()) == list(range(1500))
    assert tokenizer.vocab_size == len(tokenizer) == 1500


# Format characters that are seen: signs in front of Arabic and Kaithi numbers, joints of hieroglyphs.
VISIBLE = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x13430, 0x13440)}
BLANK_LETTERS = "\u034f\u115f\u1160\u3164\uffa0"


def is_white(character):
    return character.isspace() or character == "\u2800"


def is_invisible(character):
    """By the tables of Python, where the normalizer has ranges; joiners and tags aside."""
    of_no_width = unicodedata.category(character) in ("Cf", "Cc") and ord(character) not in VISIBLE
    return (of_no_width and not is_white(character)) or character in BLANK_LETTERS + "\ufffd"


def slowly_cleaned(text):
    """Character by character, for text without joiners and tags."""
    text = "".join(" " if is_white(character) else character for character in text if not is_invisible(character))
    return " ".join(word for word in unicodedata.normalize("NFC", text).split(" ") if word)


def test_decoding_restores_raw_text_exactly(tokenizer):
    held_out = lines_of("test", "de", 2000) + lines_of("test", "en", 2000) + ODD_TEXTS
    ids = tokenizer(held_out)["input_ids"]
    cleaned = [
        slowly_cleaned(text) if "\u200d" not in text else unicodedata.normalize("NFC", text) for text in held_out
    ]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == cleaned
    assert cleaned[:4000] == [unicodedata.normalize("NFC", text) for text in held_out[:4000]]  # clean text stays
    for row in ids:
        assert row[-1] == 2
        assert not set(row[:-1]) & set(range(5))  # never <unk>, and special tokens in the text are plain text
        assert max(row) < 1500


def test_every_character_is_cleaned_by_its_kind():
    joiners_and_tags = {0x180E, 0x200C, 0x200D, *range(0xE0020, 0xE0080)}
    for code in {*range(0x110000)} - joiners_and_tags - {*range(0xD800, 0xE000)}:
        character = chr(code)
        if is_white(character) or is_invisible(character):
            assert clean_text(f"a{character}b") == ("a b" if is_white(character) else "ab"), hex(code)
            assert clean_text(f"{character}a{character}") == "a", hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "Die\u00a0Datei wird ge\u00adöffnet.",
        "Die\u202fDatei wird\u2009geöffnet.",
        "Die\tDatei\u3000wird geöffnet.",
        "\ufeffDie Datei wird ge\u200böffnet.",
        "\u200eDie Datei wird geöffnet.\u200f",
        "\tDie Datei wird geöffnet. ",
        "  Die  Datei wird\u2028geöffnet.\r\n",
        "Die Da\u2060tei wird geo\u200d\u0308ffnet.",
        "\u202aDie Datei\u202c wird\x00 geöffnet.\x7f",
    ],
)
def test_white_space_and_invisible_characters_change_no_id(tokenizer, text):
    assert tokenizer(text)["input_ids"] == tokenizer("Die Datei wird geöffnet.")["input_ids"]


def test_text_of_invisible_characters_is_empty(tokenizer):
    for text in ("\u200b\u200c\u200d\ufeff", "\u00ad", "\U000e0041\u2063", " \u2800\u3164"):
        assert tokenizer(text)["input_ids"] == [tokenizer.eos_token_id]


def test_joiners_are_kept_where_a_script_needs_them():
    kept = [
        "می\u200cخواهم",
        "क्\u200dष",
        "👩\u200d👩\u200d👧",
        "❤\ufe0f\u200d🔥",
        "🏴\U000e0067\U000e0062\U000e007f",
        "ᠠ\u180eᠨ",
    ]
    for text in kept:
        assert clean_text(text) == text
        assert clean_text(f"a\u200d{text}\u200c") == f"a{text}"


def test_no_ids_are_decoded_to_a_replacement_character(tokenizer):
    generator = random.Random(3)
    vocabulary = tokenizer.get_vocab()
    pieces = [vocabulary[piece] for piece in BYTE_TOKENS] + tokenizer("Datei öffnen")["input_ids"][:-1] * 20
    texts = [tokenizer.decode(generator.choices(pieces, k=generator.randrange(12))) for _ in range(2000)]
    assert not any("\ufffd" in text for text in texts)
    assert sum("Datei" in text for text in texts) > 100  # what stands around is kept
    assert tokenizer.decode([vocabulary["<0xF0>"], *tokenizer("Datei öffnen")["input_ids"]]).endswith(
        "Datei öffnen</s>"
    )


def test_lone_surrogates_are_refused(tokenizer):
    for text in ("Datei\ud83d", "\udc80", ["gut", "\ud800 schlecht"]):
        with pytest.raises(ValueError, match="has a lone surrogate .half of a character.: read it as UTF-8"):
            tokenizer(text)
        with pytest.raises(ValueError, match="lone surrogate"):
            tokenizer(text_target=text)


def test_unicode_form_is_part_of_the_tokenizer(texts):
    with pytest.raises(ValueError, match="unicode_form='NFD' must be 'NFC' or 'NFKC'"):
        train_joint_tokenizer(texts, 1000, unicode_form="NFD")
    compatible = train_joint_tokenizer(texts, vocab_size=1000, unicode_form="NFKC")
    for text in ("ﬁnden", "Ｄａｔｅｉ", "10²", "Datei\u00a0öffnen"):
        ids = compatible(text)["input_ids"]
        assert ids == compatible(unicodedata.normalize("NFKC", text))["input_ids"]
        assert compatible.decode(ids, skip_special_tokens=True) == unicodedata.normalize("NFKC", text)


def test_use_does_not_change_the_hash_of_a_tokenizer(tokenizer, moses):
    """`datasets.map` keeps its cache for as long as the hash stays."""
    for used in (tokenizer, moses):
        used = copy.deepcopy(used)
        before = Hasher.hash(used)
        used(["eins", "eins zwei drei"], text_target=["a", "b"], padding=True, truncation=True, max_length=3)
        used.decode(used("Ein Satz.")["input_ids"])
        assert used.known_characters
        assert Hasher.hash(used) == before
        assert Hasher.hash(pickle.loads(pickle.dumps(used))) == before
        assert used(["eins", "eins zwei"], padding=True)["attention_mask"][0][-1] == 0


def test_marks_are_appended_after_existing_ids(texts, tokenizer, tmp_path):
    marked = renewed(tokenizer, marks=True)
    assert not tokenizer.has_marks
    assert marked.has_marks
    assert len(marked) == len(tokenizer) + len(MARK_PIECES)
    held_out = lines_of("test", "de", 300)
    assert marked(held_out)["input_ids"] == tokenizer(held_out)["input_ids"]
    marked.save_pretrained(tmp_path)
    from_start = train_joint_tokenizer(texts, 1500, marks=True)
    assert len(from_start) == 1500
    for other in (marked, JMNatTokenizer.from_pretrained(tmp_path), from_start):
        first, second = MARKS[0], MARKS[-1]
        ids = other(f"Die Seite {first}, ({second}) {first}")["input_ids"]
        pieces = [other.convert_ids_to_tokens(i) for i in ids]
        assert [piece for piece in pieces if piece.strip() in MARKS] == [f" {first}", second, f" {first}"]
        assert other.decode(ids, skip_special_tokens=True) == f"Die Seite {first}, ({second}) {first}"
        assert not other.known_characters & {*MARKS}
        with pytest.raises(ValueError, match="must come from train_joint_tokenizer and have no marks yet"):
            renewed(other)


def test_tokenizers_of_earlier_versions_keep_their_ids():
    shipped = JMNatTokenizer.from_pretrained(CORPUS.parents[2] / "hub_card" / "multi30k_tiny" / "jmnat")
    ids = shipped("ein\u00a0hund\u200b")["input_ids"]
    assert shipped.decode(ids, skip_special_tokens=True) == "ein\u00a0hund\u200b"
    assert not shipped.has_marks
    today = renewed(shipped)
    assert today("ein\u00a0hund\u200b")["input_ids"] == shipped("ein hund")["input_ids"]
    assert today.lowercase
    assert not today.has_marks
    assert len(today) == len(shipped)


def test_first_word_has_the_same_piece_as_elsewhere(tokenizer):
    once, twice = tokenizer("Text")["input_ids"][:-1], tokenizer("Text Text")["input_ids"][:-1]
    assert twice == once + once


def test_pieces_join_no_two_words_and_no_word_with_its_punctuation(tokenizer):
    ordinary = set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS) - set(BYTE_TOKENS)
    assert any(piece.startswith(" ") and len(piece) > 4 for piece in ordinary)
    for piece in ordinary:
        assert " " not in piece[1:]
        letters = sum(character.isalpha() for character in piece)
        assert letters in (0, len(piece.strip(" ")))


def test_canvases_are_shown_as_readable_text(tokenizer):
    ids = tokenizer("Die Datei öffnen.")["input_ids"]
    assert show_canvas(tokenizer, ids) == "Die Datei öffnen. </s>"
    assert show_canvas(tokenizer, [4, *ids[-2:], 1]) == "__. </s>"


def test_text_target_gives_labels(tokenizer):
    both = tokenizer(["Datei öffnen", "Ja"], text_target=["Open a file", "Yes"])
    assert set(both) == {"input_ids", "attention_mask", "labels"}
    assert both["labels"] == tokenizer(["Open a file", "Yes"])["input_ids"]
    assert tokenizer("a", text_target="b")["labels"] == tokenizer("b")["input_ids"]
    padded = tokenizer(["Datei öffnen", "Ja"], padding=True, return_tensors="pt")
    assert padded["input_ids"][1, -1] == 1  # padding stands on the right
    assert padded["attention_mask"].sum(1).tolist() == [len(row) for row in both["input_ids"]]


def test_lowercase_is_part_of_the_tokenizer(texts):
    lower = train_joint_tokenizer(texts, vocab_size=1000, lowercase=True)
    assert lower.lowercase
    assert lower("ÜBER Größe")["input_ids"] == lower("über größe")["input_ids"]
    for text in [*texts[:200], *ODD_TEXTS]:
        decoded = lower.decode(lower(text)["input_ids"], skip_special_tokens=True)
        assert decoded == lower.normalize_text(text)
    assert lower.normalize_text("E\u0301") == "é"


def test_training_is_reproducible(tokenizer, texts):
    again = train_joint_tokenizer(iter(texts), 1500)
    for part in ("normalizer", "pre_tokenizer", "decoder", "model", "added_tokens", "post_processor"):
        first, second = (json.loads(one.backend_tokenizer.to_str())[part] for one in (tokenizer, again))
        assert first == second


def test_padding_of_the_last_batch_is_not_saved(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "before")
    tokenizer(["eins", "eins zwei drei"], padding=True, truncation=True, max_length=3)
    tokenizer.save_pretrained(tmp_path / "after")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()


@pytest.mark.parametrize("kind", ["tokenizer", "moses"])
def test_copies_give_the_same_ids(kind, request, tmp_path):
    """A subclass that Transformers rebuilds from its vocabulary would lose normalizer and pre-tokenizer, silently."""
    original = request.getfixturevalue(kind)
    assert "__init__" not in JMNatTokenizer.__dict__
    samples = lines_of("test", "de", 50) + ODD_TEXTS
    expected = original(samples, text_target=samples)
    original.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    loaded = JMNatTokenizer.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
    again = JMNatTokenizer.from_pretrained(tmp_path / "again")
    for other in (loaded, again, copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert type(other) is JMNatTokenizer
        assert dict(other(samples, text_target=samples)) == dict(expected)
        assert (other.lowercase, other.moses_source_lang, other.moses_target_lang) == (
            original.lowercase,
            original.moses_source_lang,
            original.moses_target_lang,
        )
        assert other.batch_decode(expected["labels"]) == original.batch_decode(expected["labels"])
        assert other.model_max_length == 512
        assert other("<mask>")["input_ids"][0] != other.mask_token_id


READ_BACK = """
import json, os, sys
os.environ["HF_HOME"] = sys.argv[3]
from transformers import AutoTokenizer

def read(folder, **kwargs):
    tokenizer = AutoTokenizer.from_pretrained(folder, **kwargs)
    encoded = tokenizer(samples, text_target=samples)
    decoded = tokenizer.batch_decode(encoded["labels"], skip_special_tokens=True)
    print(json.dumps([type(tokenizer).__module__, type(tokenizer).__name__, *encoded.data.values(), decoded]))

samples = json.load(sys.stdin)
sys.modules["modeling_jmnat"] = None  # as if the package were not installed
read(sys.argv[1], trust_remote_code=True)
del sys.modules["modeling_jmnat"]
import modeling_jmnat
read(sys.argv[2])
"""


def test_auto_tokenizer_in_a_new_process(moses, tmp_path, monkeypatch):
    """Loaded by its copied code alone, as from the Hub, and by the registration of the package."""
    moses.save_pretrained(tmp_path / "plain")
    monkeypatch.setattr(JMNatTokenizer, "_auto_class", "AutoTokenizer")
    moses.save_pretrained(tmp_path / "shared")
    assert (tmp_path / "shared" / "tokenization_jmnat.py").is_file()
    samples = lines_of("test", "de", 20) + ODD_TEXTS + ["Das ist z.B. ein 'Test', usw. und so."]
    run = subprocess.run(
        [sys.executable, "-c", READ_BACK, tmp_path / "shared", tmp_path / "plain", tmp_path / "home"],
        input=json.dumps(samples),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    remote, registered = (json.loads(line) for line in run.stdout.splitlines()[-2:])
    assert remote[0].startswith("transformers_modules.")
    assert registered[0] == "modeling_jmnat.tokenization_jmnat"
    encoded = moses(samples, text_target=samples)
    decoded = moses.batch_decode(encoded["labels"], skip_special_tokens=True)
    assert remote[1:] == registered[1:] == ["JMNatTokenizer", *encoded.data.values(), decoded]


def test_moses_tokenises_each_side_in_its_language(moses):
    text = "Von 3 Mio. Menschen, Feb. Mai"  # each language knows one of the two abbreviations
    encoded = moses(text, text_target=text)
    source = moses.backend_tokenizer.decode(encoded["input_ids"])
    target = moses.backend_tokenizer.decode(encoded["labels"])
    assert source == moses_tool("tokenizer", "de")(text).lower()
    assert target == moses_tool("tokenizer", "en")(text).lower()
    assert (source, target) == ("von 3 mio. menschen , feb . mai", "von 3 mio . menschen , feb. mai")
    assert moses(text)["input_ids"] == encoded["input_ids"]  # back to the source side after text_target
    assert moses.encode(text) == encoded["input_ids"]


def test_moses_text_is_detokenised(moses):
    text = "He said: \"don't & can't\" (the U.S. army's 3,000 e-mails), 50% of it."
    labels = moses(text_target=text)["input_ids"]
    assert "do n't" not in moses.decode(labels)
    assert moses.decode(labels, skip_special_tokens=True) == text.lower()
    english = lines_of("test", "en", 300)
    decoded = moses.batch_decode(moses(text_target=english)["input_ids"], skip_special_tokens=True)
    same = sum(a == b.lower() for a, b in zip(decoded, english, strict=True))
    assert same >= 240  # Moses guesses at quotes, slashes and the like


def test_moses_applies_to_batches_and_pairs_but_not_to_split_words(moses):
    words = moses_tool("tokenizer", "de")("Gehen wir, usw. oder?").split()
    assert moses(words, is_split_into_words=True)["input_ids"] == moses("Gehen wir, usw. oder?")["input_ids"]
    pair = moses([("Gut.", "Ja!")])["input_ids"][0]
    assert pair == moses("Gut.")["input_ids"] + moses("Ja!")["input_ids"]
    assert moses("Gut.", "Ja!")["input_ids"] == pair
    with pytest.raises(ValueError, match="text input must be"):
        moses(3)


def test_plain_tokenizer_needs_no_sacremoses(tokenizer, moses, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    tokenizer.decode(tokenizer("Ein Satz.")["input_ids"])
    with pytest.raises(ImportError, match="pip install sacremoses"):
        copy.deepcopy(moses)("Ein Satz.")


def test_a_vocabulary_may_be_smaller_than_requested():
    texts = ["a small text", "another small text"]
    assert train_joint_tokenizer(texts, 10**20).get_vocab() == train_joint_tokenizer(texts, 10**4).get_vocab()


def test_bad_arguments_are_named(texts):
    with pytest.raises(ValueError, match="vocab_size=300 is too small: these texts need at least 3"):
        train_joint_tokenizer(texts, vocab_size=300)
    for nothing in ([], ["", ""]):
        with pytest.raises(ValueError, match="texts is empty: give some text to train a tokenizer on"):
            train_joint_tokenizer(nothing, vocab_size=300)
    with pytest.raises(ValueError, match="moses_source_lang='de' and moses_target_lang=None"):
        train_joint_tokenizer(texts, 1000, moses_source_lang="de")
    for language in ("german", "de_DE", "", "D"):
        with pytest.raises(ValueError, match=f"Moses language '{language}' must be a code such as"):
            moses_tool("tokenizer", language)


def test_letters_digits_signs_and_bytes_may_repeat(tokenizer):
    ids, vocabulary = repeatable_tokens(tokenizer), tokenizer.get_vocab()
    assert ids == sorted(set(ids))
    pieces = set(tokenizer.convert_ids_to_tokens(ids))
    assert {*SPECIAL_TOKENS, *BYTE_TOKENS, "a", " a", "X", "7", " 2", "*", " ", "."} <= pieces
    others = vocabulary.keys() - pieces
    assert {" the", " und", "en", "ung", " ist"} <= others
    for piece in others:
        assert sum(character.isalpha() for character in piece) >= 2, piece
    for piece in pieces - {*SPECIAL_TOKENS, *BYTE_TOKENS}:
        assert sum(character.isalpha() for character in piece) <= 1, piece
    # A word of equal pieces: its letters stay, whatever the vocabulary makes of it.
    for word in ("zoo", "Wall", "99", "aaa", "***", "..."):
        twice = {one for one, two in itertools.pairwise(tokenizer(word)["input_ids"]) if one == two}
        assert twice <= set(ids)


def test_space_marks_of_other_vocabularies_are_not_letters():
    pieces = ["<s>", "w@@", "wo@@", "w</w>", "er</w>", "\u0120a", "\u0120an", "\u2581a", "\u2581an", "&@@", "12@@"]

    class Vocabulary:
        all_special_tokens = ["<s>"]

        def __len__(self):
            return len(pieces)

        def convert_ids_to_tokens(self, ids):
            return [pieces[i] for i in ids]

    assert repeatable_tokens(Vocabulary()) == [0, 1, 3, 5, 7, 9, 10]
