"""Lines in sentences and pieces: what is split, cut, truncated or skipped, and that line i stays line i."""

import io
import json
import random
import sys

import pytest

from modeling_jmnat.inference.lines import LineReader
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.pipeline import LONG_LINES, JMNatTranslationPipeline
from modeling_jmnat.tokenization_jmnat import LINE_BREAKS
from tests.helpers.teacher_samples import WORDS, random_lines, random_teacher
from tests.helpers.translation_samples import load_script, tiny_student

PASSES = {"num_iterations": 2, "num_length_candidates": 2}
LINE_ENDS = ("\n", "\r\n", "\r")
INNER_BREAKS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
LONG = ", ".join(random_lines(30, seed=7))  # several times too long


def texts_of(model, tokenizer, lines, **options):
    return [item.text for item in translate_lines(model, tokenizer, lines, **PASSES, **options)]


def sentences(count, seed):
    return [f"{line.capitalize()}." for line in random_lines(count, seed=seed)]


@pytest.fixture(scope="module")
def translate():
    return load_script("translate").main


def test_sentences_of_a_line_are_translated_one_by_one(student, tokenizer):
    parts = sentences(12, seed=4)
    alone = texts_of(student, tokenizer, parts)
    lines = [" ".join(parts[start : start + 3]) for start in range(0, 12, 3)]
    expected = [" ".join(alone[start : start + 3]) for start in range(0, 12, 3)]
    whole = texts_of(student, tokenizer, lines)
    assert texts_of(student, tokenizer, lines, split_sentences=True) == [text.strip() for text in expected] != whole
    pipe = JMNatTranslationPipeline(student, tokenizer, device="cpu", **PASSES)
    found = [LINE_BREAKS.sub(" ", record["translation_text"]).strip() for record in pipe(lines)]
    assert found == [text.strip() for text in expected]


def test_fields_of_a_line_in_several_sentences(student, tokenizer):
    options = {**PASSES, "num_return_sequences": 2, "output_history": True}
    one, two = sentences(2, seed=8)
    first, second = translate_lines(student, tokenizer, [one, two], **options)
    (both,) = translate_lines(student, tokenizer, [f"{one}\u2028{two}"], split_sentences=True, **options)
    assert both.source == f"{one}\u2028{two}"
    for rank in range(2):
        (text_one, score_one), (text_two, score_two) = first.candidates[rank], second.candidates[rank]
        assert both.candidates[rank][0] == f"{text_one} {text_two}".strip()
        assert both.candidates[rank][1] == pytest.approx((score_one + score_two) / 2)
    assert both.token_ids == first.token_ids + second.token_ids
    assert both.num_passes == 2
    assert both.canvases == [f"{a} {b}".strip() for a, b in zip(first.canvases, second.canvases, strict=True)]
    assert (both.lengths, both.candidate_lengths, both.too_long) == (None, None, False)


def test_a_model_says_whether_texts_are_split(student, tokenizer):
    text = " ".join(sentences(2, seed=9))
    pipe = JMNatTranslationPipeline(student, tokenizer, device="cpu", **PASSES)
    split = pipe(text)
    whole = tiny_student(tokenizer, split_sentences=False)
    assert JMNatTranslationPipeline(whole, tokenizer, device="cpu", **PASSES)(text) == pipe(
        text, split_sentences=False
    )
    assert pipe(text, split_sentences=False) != split


def test_long_lines_are_cut_at_clauses_into_pieces_that_fit(student, tokenizer):
    longest = student.config.max_position_embeddings
    (line,) = LineReader(student, tokenizer, long_lines="split").read([LONG])
    assert line.too_long
    assert all(2 <= len(ids) <= longest for ids in line.ids)
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in line.ids]
    assert " ".join(texts) == LONG
    assert sum(text.endswith(",") for text in texts) >= len(texts) - 2
    for text in (WORDS[3] * 400, "日" * 300, "a" * 100_000, f"{WORDS[3]} " * 300):
        (line,) = LineReader(student, tokenizer, long_lines="split").read([text])
        assert all(len(ids) <= longest for ids in line.ids)
        pieces = [
            tokenizer.decode(ids, skip_special_tokens=True) if sentence.translation is None else sentence.translation
            for ids, sentence in zip(line.ids, line.sentences, strict=True)
        ]
        assert (
            "".join(piece["before"] + text + piece["after"] for piece, text in zip(line.pieces, pieces, strict=True))
            == text
        )


@pytest.mark.parametrize("split_sentences", [False, True])
@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_long_lines_by_each_rule(student, tokenizer, kind, split_sentences):
    model = student if kind == "student" else random_teacher(tokenizer)
    options = PASSES if kind == "student" else {"num_beams": 1, "max_length": 12}

    def translated(lines, long_lines):
        return list(
            translate_lines(model, tokenizer, lines, split_sentences=split_sentences, long_lines=long_lines, **options)
        )

    lines = [WORDS[5], LONG, "", f"{LONG}. {WORDS[7]}", WORDS[6]]
    plain = translated([lines[0], "", lines[4]], "error")
    for rule in ("split", "truncate", "skip"):
        found = translated(lines, rule)
        assert [item.too_long for item in found] == [False, True, False, True, False]
        assert [found[0].text, found[2].text, found[4].text] == [item.text for item in plain]
        assert [bool(item.text) for item in found[1:4:2]] == [rule != "skip"] * 2
        assert [item.source for item in found] == lines
    longest = model.config.max_position_embeddings
    ids = tokenizer(LONG)["input_ids"]
    start = tokenizer.decode(ids[: longest - 1])
    assert translated(lines, "truncate")[1].text == translated([start], "error")[0].text
    with pytest.raises(ValueError, match=rf"^line 2 has {len(ids)} tokens: the model allows at most {longest}"):
        translated(lines, "error")
    with pytest.raises(ValueError, match="long_lines='cut' is not one of split, truncate, skip, error"):
        translated(lines, "cut")


def test_the_pipeline_takes_long_texts_alone_and_in_lists(student, tokenizer):
    pipe = JMNatTranslationPipeline(student, tokenizer, device="cpu", **PASSES)
    texts = [WORDS[5], LONG, WORDS[6]]
    for options in ({}, {"truncation": True}, *({"long_lines": rule} for rule in ("split", "truncate", "skip"))):
        rule = options.get("long_lines", "truncate" if "truncation" in options else "split")
        expected = texts_of(student, tokenizer, texts, long_lines=rule)
        found = [record["translation_text"] for record in pipe(texts, batch_size=3, **options)]
        assert [LINE_BREAKS.sub(" ", text).strip() for text in found] == [text.strip() for text in expected]
        assert pipe(LONG, **options)[0]["translation_text"] == found[1]
    assert pipe(texts, truncation=False) == pipe(texts)
    with pytest.raises(ValueError, match="truncation=True contradicts long_lines='skip'"):
        pipe(texts, truncation=True, long_lines="skip")
    with pytest.raises(ValueError, match="long_lines=7 is not one of split"):
        pipe(texts, long_lines=7)


def test_huge_words_are_not_counted_in_tokens(student, tokenizer, monkeypatch):
    seen = []
    encode = type(tokenizer)._encode_plus

    def watched(self, text, **options):
        seen.extend(map(len, [text] if isinstance(text, str) else text))
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", watched)
    huge = "wortschatz" * 300_000
    pipe = JMNatTranslationPipeline(student, tokenizer, device="cpu", **PASSES)
    assert pipe(huge, truncation=True)[0]["translation_text"]
    with pytest.raises(ValueError, match="line 1 has 3000000 characters: the model allows at most"):
        list(translate_lines(student, tokenizer, [huge]))
    assert max(seen) <= 32 * student.config.max_position_embeddings


def test_white_space_around_a_line_makes_it_no_longer(student, tokenizer):
    wide = " " * 100_000
    (line,) = LineReader(student, tokenizer).read([f"{wide}{WORDS[3]}{wide}"])
    assert line.ids == [tokenizer(WORDS[3])["input_ids"]]
    (line,) = LineReader(student, tokenizer).read([wide])
    assert (line.ids, line.too_long) == ([[]], False)


@pytest.mark.parametrize("text", ["\ud800", "Ja \udc80 nein", "\udfff\ud800"])
def test_lone_surrogates_get_one_sentence(student, tokenizer, text):
    pipe = JMNatTranslationPipeline(student, tokenizer, device="cpu")
    for given in (text, [WORDS[0], text], (each for each in [text])):
        with pytest.raises(ValueError, match=r"a text to translate has a lone surrogate at character \d"):
            list(pipe(given))
    with pytest.raises(ValueError, match=r"line 2 has a lone surrogate at character \d"):
        list(translate_lines(student, tokenizer, [WORDS[0], text], split_sentences=True))


# The command --------------------------------------------------------------------------------------------------------


def run(main, capsys, *arguments):
    main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return captured.out, json.loads(captured.err.splitlines()[-1]), captured.err


def test_line_i_of_ten_thousand_stays_line_i(folder, student, tokenizer, tmp_path, translate, capsys):
    generator = random.Random(2)
    known = [*sentences(6, seed=1), LONG]
    answers = dict(
        zip(known, texts_of(student, tokenizer, known, split_sentences=True, long_lines="split"), strict=True)
    )
    text, expected, end = "", [], ""
    for number in range(10_000):
        parts = [LONG] if number % 2500 == 7 else generator.choices(known[:-1], k=generator.choice([0, 1, 1, 1, 2]))
        blank = generator.choice(["", " ", "\t", *INNER_BREAKS])
        line = generator.choice([" ", "\t", *INNER_BREAKS]).join(parts) or blank
        ends = LINE_ENDS[1:] if end == "\r" and not line else LINE_ENDS  # `\r` and `\n` would be one
        end = generator.choice(ends)
        text += line + end
        joined = " ".join(answers[part] for part in parts)
        expected.append(joined if len(parts) == 1 else joined.strip())
    (tmp_path / "in").write_bytes(text.encode())
    common = ["--model", folder / "student", "--num_iterations", 2, "--num_length_candidates", 2]
    _, figures, errors = run(translate, capsys, *common, "--input", tmp_path / "in", "--output", tmp_path / "out")
    found = (tmp_path / "out").read_bytes().decode().removesuffix("\n").split("\n")
    assert found == expected
    assert (figures["sentences"], figures["long_lines"]) == (10_000, 4)
    assert "warning: 4 lines have a sentence longer than the" in errors


def test_a_file_of_carriage_returns_is_lines(folder, tmp_path, translate, capsys, monkeypatch):
    (tmp_path / "in").write_bytes("\r".join(WORDS[:5]).encode() + b"\r")
    common = ["--model", folder / "student", "--num_iterations", 1]
    out, figures, _ = run(translate, capsys, *common, "--input", tmp_path / "in")
    assert (figures["sentences"], out.count("\n")) == (5, 5)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "in").read_bytes())))
    assert run(translate, capsys, *common)[0] == out


@pytest.mark.parametrize("source", ["file", "stdin", "stdin that is not UTF-8"])
def test_errors_of_a_file_are_known_before_the_work(folder, tmp_path, translate, capsys, monkeypatch, source):
    monkeypatch.setattr("modeling_jmnat.inference.translation._generate", None)  # nothing is translated
    bad = LONG.encode() if source != "stdin that is not UTF-8" else b"gr\xfcn"
    text = b"\n".join([WORDS[0].encode()] * 5000 + [bad])
    (tmp_path / "in").write_bytes(text)
    arguments = ["--model", str(folder / "student"), "--long_lines", "error"]
    if source == "file":
        arguments += ["--input", str(tmp_path / "in")]
    else:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    with pytest.raises(SystemExit) as stopped:
        translate(arguments)
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    what = "has" if source != "stdin that is not UTF-8" else "is not valid UTF-8"
    assert f"line 5001 {what}" in captured.err.splitlines()[-1]


def test_paragraphs_are_split_unless_the_command_or_the_model_says_otherwise(
    folder, student, tokenizer, tmp_path, translate, capsys
):
    line = " ".join(sentences(3, seed=3))
    (tmp_path / "in").write_text(f"{line}\n")
    common = ["--num_iterations", 2, "--num_length_candidates", 2, "--input", tmp_path / "in"]
    split, whole = (texts_of(student, tokenizer, [line], split_sentences=value)[0] for value in (True, False))
    assert split != whole
    assert run(translate, capsys, "--model", folder / "student", *common)[0] == f"{split}\n"
    assert run(translate, capsys, "--model", folder / "student", *common, "--no_split_sentences")[0] == f"{whole}\n"
    documents = tiny_student(tokenizer, split_sentences=False)
    documents.save_pretrained(tmp_path / "documents")
    tokenizer.save_pretrained(tmp_path / "documents")
    assert run(translate, capsys, "--model", tmp_path / "documents", *common)[0] == f"{whole}\n"


def test_the_rules_have_names_that_the_commands_know():
    from typing import get_args, get_type_hints

    from modeling_jmnat.commands.translate import TranslationArguments
    from modeling_jmnat.evaluation.options import EvaluationArguments

    for arguments in (TranslationArguments, EvaluationArguments):
        assert get_args(get_type_hints(arguments)["long_lines"]) == LONG_LINES
