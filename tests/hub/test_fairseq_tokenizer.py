import pytest
from transformers import AutoTokenizer

from modeling_jmnat.hub.fairseq_tokenizer import build_tokenizer, read_bpe_codes, read_dictionary
from modeling_jmnat.segmenters import BytePairSegmenter
from modeling_jmnat.tokenization_jmnat import show_canvas
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint
from tests.helpers.fairseq_samples import SPECIAL, write_dictionary

CODES = ["l o", "lo w</w>", "e r</w>", "ä ß", "x y", "xy z</w>"]
PIECES = ["low", "lo@@", "w@@", "er", "'s", "l@@", "o", "äß@@", "xyz", "e", "@-@", "&apos;s", "low</w"]


@pytest.mark.parametrize("counts", [False, True])
def test_codes_take_text(tmp_path, counts):
    """subword-nmt's file has a version line, fastBPE's a count on each line."""
    codes = tmp_path / "codes"
    lines = [f"{line} {90 - number}" for number, line in enumerate(CODES)] if counts else ["#version: 0.2", *CODES]
    codes.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert read_bpe_codes(codes) == CODES
    symbols = read_dictionary(write_dictionary(tmp_path / "dict.txt", PIECES))
    build_tokenizer(symbols, read_bpe_codes(codes)).save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer.get_vocab() == {symbol: number for number, symbol in enumerate(symbols)}
    expected = {
        "low": ["low"],
        "lower lo": ["lo@@", "w@@", "er", "l@@", "o"],  # no merge of `l` with `o` at the end of a word
        "äßlow": ["äß@@", "low"],
        " xyz  xy ": ["xyz", "<unk>", "<unk>"],
        "</s>": ["<unk>"] * 4,
        "": [],
    }
    for text, pieces in expected.items():
        assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]) == [*pieces, "</s>"], text
    ids = tokenizer("lower low äßlow")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "lower low äßlow"
    again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert again(["low", "lo"])["input_ids"] == tokenizer(["low", "lo"])["input_ids"]


def test_dictionary_with_end_of_word_marks():
    symbols = [*SPECIAL, "low</w>", "lo", "w", "er</w>"]
    tokenizer = build_tokenizer(symbols, CODES)
    assert tokenizer("lower low")["input_ids"] == [6, 7, 8, 5, 2]
    assert tokenizer.decode([6, 7, 8, 5, 2], skip_special_tokens=True) == "lower low"
    assert build_tokenizer(symbols)("lo w er</w> low</w>")["input_ids"] == [6, 7, 8, 5, 2]


def test_canvases_are_shown_with_spaces_between_pieces():
    tokenizer = build_tokenizer([*SPECIAL, "das", "ist", "Ha@@", "us"])
    assert show_canvas(tokenizer, [5, 6, 7, 8, 2, 1]) == "das ist Ha@@ us </s>"
    assert show_canvas(tokenizer, [4, 4, 7, 4, 2]) == "__ __ Ha@@ __ </s>"


def test_segments_by_hand():
    segment = BytePairSegmenter(CODES)
    assert segment("low lower slow") == "low lo@@ w@@ er s@@ low"
    assert segment("lolo a") == "lo@@ l@@ o a"
    assert segment("aaaa") == "a@@ a@@ a@@ a"
    repeats = BytePairSegmenter(["a a", "aa a</w>", "aa aa"])
    assert repeats("aaaaa aaaa") == "aa@@ aaa aa@@ a@@ a"
    twice = BytePairSegmenter(["a b", "a b", "c d"])  # the last rank is not the number of pairs
    assert twice("zcdab") == "z@@ cd@@ a@@ b"
    old = BytePairSegmenter(["l o", "w </w>", "lo w</w>", "x </w>"])  # the end of a word as a piece of its own
    assert old("low lo wx") == "low lo w@@ x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "at least one line"),
        ("#version: 0.2\n", "has no byte-pair codes"),
        ("a b\na\n", "line 2 must be a merge"),
        ("a b c\n", "line 1 must be a merge"),
        ("a  b\n", "line 1 must be a merge"),
    ],
)
def test_files_without_codes_are_refused(tmp_path, content, message):
    codes = tmp_path / "codes"
    codes.write_text(content)
    with pytest.raises(ValueError, match=f"codes.*{message}"):
        read_bpe_codes(codes)


def test_moses_as_the_dictionary_was_made(tmp_path):
    """Entities and split dashes are written if the dictionary holds them; text comes out as it went in."""
    symbols = [*SPECIAL, *PIECES]
    codes = ["l o", "lo w</w>", "& a", "&a p", "&ap o", "&apo s", "&apos ;", "&apos; s</w>", "@ -", "@- @</w>"]
    tokenizer = build_tokenizer(symbols, codes, "en", "en")
    ids = tokenizer("low-low's")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["low", "@-@", "low", "&apos;s", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "low-low's"
    plain = [symbol for symbol in symbols if symbol not in ("@-@", "&apos;s")]
    tokens = build_tokenizer(plain, ["' s</w>"], "en", "en").tokenize("low's")
    assert tokens[-1] == "'s"
    lower = build_tokenizer(symbols, codes, lowercase=True)
    assert lower("LOW")["input_ids"] == lower("low")["input_ids"] == [5, 2]
    with pytest.raises(ValueError, match="give both languages or neither"):
        build_tokenizer(symbols, codes, moses_source_lang="de")
    with pytest.raises(ValueError, match="Moses language 'Deutsch'"):
        build_tokenizer(symbols, codes, "Deutsch", "en")


def test_other_codes_are_another_tokenizer(tmp_path):
    symbols = read_dictionary(write_dictionary(tmp_path / "dict.txt", PIECES))
    loaded, saved = set(), set()
    for number, codes in enumerate((CODES, CODES[:1], CODES)):
        tokenizer = build_tokenizer(symbols, codes)
        tokenizer.save_pretrained(tmp_path / str(number))
        loaded.add(tokenizer_fingerprint(tokenizer))
        saved.add(tokenizer_fingerprint(tmp_path / str(number)))
    assert len(loaded) == 2
    assert loaded == saved
