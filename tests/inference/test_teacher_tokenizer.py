"""The tokenizer of a student gives the ids and the text of its teacher's, and needs none of the teacher's code."""

import gzip
import json
import random
import re
import shutil
from pathlib import Path

import datasets
import pytest
import sentencepiece
from datasets.fingerprint import Hasher
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BartTokenizer,
    M2M100Tokenizer,
    MarianTokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)

from modeling_jmnat import JMNatTokenizer
from modeling_jmnat.inference.teacher_tokenizer import segmenter_of, tokenizer_of_teacher
from modeling_jmnat.plain_text import Sentence
from modeling_jmnat.segmenters import SentencePieceSegmenter
from modeling_jmnat.tokenization_jmnat import show_canvas
from modeling_jmnat.utils.fingerprints import tokenizer_fingerprint
from tests.helpers.marian_teacher import train_segmenter, write_tokenizer

CORPUS = Path(__file__).parents[2] / "run_scripts" / "demo_data" / "libreoffice-help"
ODD_TEXTS = (
    *("", " ", "   ", "a", "  two  spaces  ", "tab\there", "no\u00a0break", "\u202f1\u202f000", "\ufeffBOM"),
    *("\u2581", "a \u2581 b", "\u2581\u2581names", "trailing \u2581", "Ångström ﬁne ½ №5", "STRASSE straße ẞ"),
    *(
        "日本語",
        "Привет, мир",
        "e\u0301tude",
        "naı\u0308ve",
        "\U0001f600 smile \U0001f468\u200d\U0001f469\u200d\U0001f467",
    ),
    *("zero\u200bwidth", "soft\u00adhyphen", "x" * 99, "<unknown>", "a\x00b", "\u2018quotes\u2019 \u201chere\u201d"),
    *(">>eng<< Hallo", ">>eng<<", ">>xyz<< Hallo", ">> a << b", "a >>eng<< b"),
)
# White space, no letter, and runs of one character: pieces of it are as likely in any order.
REPEATED = ("0", "00 ", "1000000", ".", "ha", "-", "=", "aA", "!?", "а́")


def lines_of(language, count=None):
    with gzip.open(CORPUS / f"train.{language}.gz", "rt", encoding="utf-8", newline="\n") as file:
        return [line.rstrip("\n") for line, _ in zip(file, range(count or 10**9), strict=False)]


@pytest.fixture(scope="module")
def segmenters():
    return [train_segmenter(lines_of(language, 6000), 1500) for language in ("de", "en")]


@pytest.fixture(scope="module")
def teacher(segmenters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_tokenizer(folder, *segmenters, prefixes=(">>eng<<", ">>fra<<"))
    return folder


@pytest.fixture(scope="module")
def theirs(teacher):
    return MarianTokenizer.from_pretrained(teacher)


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """Saved and read again, as it is used."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer_of_teacher(teacher)[0].save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def expect_the_same(ours, theirs, lines, side="source"):
    named = {"text": lines} if side == "source" else {"text_target": lines}
    expected, actual = (tokenizer(**named)["input_ids"] for tokenizer in (theirs, ours))
    for line, one, other in zip(lines, expected, actual, strict=True):
        assert one == other, (line, theirs.convert_ids_to_tokens(one), ours.convert_ids_to_tokens(other))
    texts = [tokenizer.batch_decode(expected, skip_special_tokens=True) for tokenizer in (theirs, ours)]
    assert [re.sub("^__.*?__ ?", "", text) for text in texts[0]] == texts[1]  # M2M100's leaves the language there


@pytest.mark.parametrize(("side", "language"), [("source", "de"), ("target", "en")])
def test_ids_and_text_of_real_lines_are_marians(student, theirs, side, language):
    assert isinstance(student, JMNatTokenizer)
    expect_the_same(student, theirs, lines_of(language, 10_000), side)
    other = lines_of("en" if language == "de" else "de", 1000)  # a language that this side was not made for
    expect_the_same(student, theirs, [*other, *map(str.upper, other)], side)


@pytest.mark.parametrize("side", ["source", "target"])
def test_ids_and_text_of_odd_lines_are_marians(student, theirs, side):
    expect_the_same(student, theirs, list(ODD_TEXTS), side)
    draw = random.Random(1)
    repeated = [draw.choice(REPEATED) * draw.randint(2, 30) + draw.choice(("", " x", "7")) for _ in range(500)]
    expect_the_same(student, theirs, repeated, side)


def test_single_precision_decides_ties_as_sentencepiece_does(segmenters):
    """The slow twin gives SentencePiece's pieces for any text, the fast path alone does not."""
    plain = sentencepiece.SentencePieceProcessor(model_proto=segmenters[0])
    path = Path(__file__).with_name("unused.spm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: segmenters[0])
        segment = SentencePieceSegmenter(segmenter_of(path))
    draw = random.Random(2)
    pieces = [piece for piece in segment.scores if len(piece) < 4]
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(300)] + list(ODD_TEXTS)
    texts += [draw.choice("0.-=a") * draw.randint(3, 60) for _ in range(300)]
    differs = 0
    for text in texts:
        expected = plain.encode(text, out_type=str)
        assert segment.segment_in_single_precision(text) == expected, text
        assert segment(text).split(" ") == (expected or [""])
        differs += segment.tokenizer.encode(text).tokens != expected
    assert differs  # else this test says nothing about ties


def test_new_tokens_follow_those_of_the_teacher(student, theirs):
    assert len(student) == len(theirs) + 2
    assert (student.bos_token_id, student.mask_token_id) == (len(theirs), len(theirs) + 1)
    for name in ("pad_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(student, name) == getattr(theirs, name)
    ids = student("</s> <mask> <pad>")["input_ids"]  # text, and no special tokens
    assert ids[-1] == student.eos_token_id
    assert not {student.mask_token_id, student.pad_token_id, student.eos_token_id} & set(ids[:-1])


def test_hash_and_fingerprint_are_those_of_the_files(student, teacher, segmenters, tmp_path):
    before = Hasher.hash(student)
    rows = datasets.Dataset.from_dict({"de": lines_of("de", 20)})
    mapped = rows.map(lambda row: student(row["de"], text_target=row["de"]))
    assert Hasher.hash(student) == before
    assert mapped["labels"][0] == student(text_target=rows["de"][0])["input_ids"]
    student.save_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(student) == tokenizer_fingerprint(tmp_path / "saved")
    write_tokenizer(tmp_path / "swapped", *reversed(segmenters), prefixes=(">>eng<<", ">>fra<<"))
    swapped, _ = tokenizer_of_teacher(tmp_path / "swapped")
    assert tokenizer_fingerprint(swapped) != tokenizer_fingerprint(student)


def test_sentences_are_read_and_shown_as_with_our_own_vocabularies(student):
    assert student.normalize_text("  Die\u00a0 Datei \ufb01ndet ") == "Die Datei findet"
    assert Sentence.read("\u2022 DIE DATEI WIRD GESPEICHERT", student).text == "die Datei wird gespeichert"
    assert Sentence.read(">>eng<< die datei wird gespeichert", student).text == ">>eng<< die Datei wird gespeichert"
    assert Sentence.read(">>eng<<", student).translation == ""
    ids = student(text_target="The file is saved.")["input_ids"]
    assert show_canvas(student, ids) == "The file is saved. </s>"
    ids[1] = student.mask_token_id
    assert "__" in show_canvas(student, ids)


# Languages -----------------------------------------------------------------------------------------------------------


def test_a_chosen_target_language_begins_every_source(teacher, theirs, tmp_path):
    fixed, _ = tokenizer_of_teacher(teacher, language_code=">>fra<<")
    fixed.save_pretrained(tmp_path)
    fixed = JMNatTokenizer.from_pretrained(tmp_path)
    for _ in range(2):  # a call changes nothing
        assert fixed("Die Datei")["input_ids"] == theirs(">>fra<< Die Datei")["input_ids"]
        assert fixed(text_target="The file")["input_ids"] == theirs(text_target="The file")["input_ids"]
    assert fixed("")["input_ids"] == [theirs.convert_tokens_to_ids(">>fra<<"), theirs.eos_token_id]
    with pytest.raises(
        ValueError, match="language_code='>>spa<<' is not in the teacher's vocabulary, which has >>eng"
    ):
        tokenizer_of_teacher(teacher, language_code=">>spa<<")


def train_backend(kind):
    """A tokenizer.json as NLLB (byte pairs) or mBART (unigram) has it, for their classes to build on."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>") if kind == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = (
        trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
        if kind == "bpe"
        else trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False)
    )
    tokenizer.train_from_iterator(lines_of("de", 2000) + lines_of("en", 2000), trainer)
    return json.loads(tokenizer.to_str())["model"]


@pytest.mark.parametrize("kind", ["nllb", "mbart50"])
def test_languages_of_a_tokenizer_json_become_first_tokens(kind, tmp_path):
    if kind == "nllb":
        model, codes = train_backend("bpe"), ("deu_Latn", "eng_Latn")
        merges = [tuple(merge) for merge in model["merges"]]
        theirs = NllbTokenizer(vocab=model["vocab"], merges=merges, src_lang=codes[0], tgt_lang=codes[1])
    else:
        model, codes = train_backend("unigram"), ("de_DE", "en_XX")
        vocabulary = [tuple(piece) for piece in model["vocab"]]
        theirs = MBart50Tokenizer(vocab=vocabulary, src_lang=codes[0], tgt_lang=codes[1])
    theirs.save_pretrained(tmp_path / "teacher")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "teacher")
    ours, shared = tokenizer_of_teacher(tmp_path / "teacher", codes)
    ours.save_pretrained(tmp_path / "student")
    ours = JMNatTokenizer.from_pretrained(tmp_path / "student")
    assert shared == len(theirs) <= len(ours) <= len(theirs) + 2
    lines = [*lines_of("de", 300), "", "Zahl 1000000", "日本語"]
    assert ours(lines)["input_ids"] == theirs(lines)["input_ids"]
    assert ours(text_target=lines)["input_ids"] == theirs(text_target=lines)["input_ids"]
    assert ours(lines[0])["input_ids"][0] == theirs.convert_tokens_to_ids(codes[0])
    ids = theirs(text_target=lines)["input_ids"]
    assert ours.batch_decode(ids, skip_special_tokens=True) == theirs.batch_decode(ids, skip_special_tokens=True)
    with pytest.raises(ValueError, match="teacher_languages='xx yy' are not languages of the model's"):
        tokenizer_of_teacher(tmp_path / "teacher", ("xx", "yy"))


def test_what_a_language_code_is(teacher):
    with pytest.raises(ValueError, match="language_code='▁die' is not in the teacher's vocabulary, which has >>eng"):
        tokenizer_of_teacher(teacher, language_code="▁die")  # a piece of its vocabulary


def mbart_tokenizer(kind, folder, **options):
    model = train_backend("unigram")
    kind(vocab=[tuple(piece) for piece in model["vocab"]], **options).save_pretrained(folder)
    return folder


def test_a_multilingual_tokenizer_needs_its_languages(tmp_path):
    with pytest.raises(ValueError, match="is multilingual: give its source and target language with --teacher_lang"):
        tokenizer_of_teacher(mbart_tokenizer(MBart50Tokenizer, tmp_path))


def test_languages_behind_the_text_are_refused(tmp_path):
    """As in mBART of 2020: without them, a student would not read what its teacher reads."""
    folder = mbart_tokenizer(MBartTokenizer, tmp_path)
    with pytest.raises(ValueError, match="puts </s> de_DE around a source, but a JM-NAT has at most one token before"):
        tokenizer_of_teacher(folder, ("de_DE", "en_XX"))


def test_our_own_tokenizer_takes_no_languages(student, tmp_path):
    student.save_pretrained(tmp_path)
    for name, value in (("languages", ("de", "en")), ("language_code", ">>eng<<")):
        with pytest.raises(ValueError, match=f"{name}=.* does not apply to the tokenizer of"):
            tokenizer_of_teacher(tmp_path, **{name: value})


def test_sources_begin_as_those_of_bart(tmp_path):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(lines_of("de", 500), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    BartTokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]]).save_pretrained(tmp_path / "teacher")
    theirs, (ours, _) = AutoTokenizer.from_pretrained(tmp_path / "teacher"), tokenizer_of_teacher(tmp_path / "teacher")
    ours.save_pretrained(tmp_path / "student")
    ours = JMNatTokenizer.from_pretrained(tmp_path / "student")
    lines = lines_of("de", 100)
    assert ours(lines)["input_ids"] == theirs(lines)["input_ids"]
    assert ours(text_target=lines)["input_ids"] == [ids[1:] for ids in theirs(lines)["input_ids"]]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_m2m100_has_one_segmenter_for_all_languages(model_type, tmp_path):
    segmenter = train_segmenter(lines_of("de", 3000) + lines_of("en", 3000), 1200, model_type)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(segmenter)
    processor = sentencepiece.SentencePieceProcessor(model_proto=segmenter)
    pieces = [processor.id_to_piece(index) for index in range(2, len(processor))]
    vocabulary = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    theirs = M2M100Tokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "sentencepiece.bpe.model"), src_lang="de", tgt_lang="en"
    )
    theirs.save_pretrained(tmp_path / "teacher")
    ours, shared = tokenizer_of_teacher(tmp_path / "teacher", ("de", "en"))
    ours.save_pretrained(tmp_path / "student")
    ours = JMNatTokenizer.from_pretrained(tmp_path / "student")
    assert (shared, len(ours)) == (len(vocabulary) + 100, len(vocabulary) + 101)  # languages, then <mask>
    lines = [*lines_of("de", 2000), *ODD_TEXTS[:16]]
    expect_the_same(ours, theirs, lines, "source")
    expect_the_same(ours, theirs, lines, "target")


# What cannot be taken over -------------------------------------------------------------------------------------------


def changed(teacher, folder, change):
    shutil.copytree(teacher, folder)
    change(folder)
    return folder


def vocabulary_with(folder, **entries):
    path = folder / "vocab.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "target.spm").unlink(), r"no complete Marian tokenizer \(target.spm is missing\)"),
        (lambda folder: (folder / "source.spm").unlink(), r"no complete Marian tokenizer \(source.spm is missing\)"),
        (lambda folder: (folder / "vocab.json").unlink(), r"no complete Marian tokenizer \(vocab.json is missing\)"),
        (lambda folder: vocabulary_with(folder, far=10**6), "has no token with id"),
        (lambda folder: vocabulary_with(folder, twice=7), "has no token with id"),
        (lambda folder: (folder / "target.spm").write_bytes(b"nonsense"), "target.spm|cannot be loaded"),
    ],
)
def test_incomplete_and_damaged_tokenizers_are_refused(teacher, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tokenizer_of_teacher(changed(teacher, tmp_path / "changed", change))
