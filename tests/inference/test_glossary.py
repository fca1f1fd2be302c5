"""Glossaries: the target term is in every line whose source has the source term; other lines stay as they are."""

from pathlib import Path

import pytest

from modeling_jmnat.inference.cuda_graphs import StaticShapeJMNat
from modeling_jmnat.inference.glossary import Glossary, words_of
from modeling_jmnat.inference.loading import load_translator
from modeling_jmnat.inference.translation import translate_lines
from modeling_jmnat.plain_text import Sentence
from tests.helpers.teacher_samples import WORDS, random_lines, random_teacher
from tests.helpers.translation_samples import load_script

SHIPPED = Path(__file__).resolve().parents[2] / "hub_card" / "de-en"


@pytest.fixture(scope="module")
def shipped():
    return load_translator(str(SHIPPED), "cpu", "auto", "torch")


def texts(model, tokenizer, lines, **options):
    return [result.text for result in translate_lines(model, tokenizer, lines, num_iterations=3, **options)]


def test_source_terms_match_whole_words_in_any_case_longest_first():
    glossary = Glossary({"Hund": "hound", "kleiner Hund": "puppy", "C++": "C++", "Straße": "road"})
    for sentence, terms in {
        "Der Hund schläft.": ["hound"],
        "HUND, hund und Hund": ["hound"],
        "Hundert Hunde im Schäferhund": [],
        "Ein kleiner  Hund und ein Hund": ["puppy", "hound"],
        "Er schreibt C++.": ["C++"],
        "Die straße": ["road"],
        "": [],
    }.items():
        assert list(glossary.found(sentence)) == terms
    assert list(glossary.missing("Hund, kleiner Hund", "hounds and a puppy")) == ["hound"]


def test_faulty_lines_of_a_glossary_file_are_named(tmp_path):
    file = tmp_path / "terms.tsv"
    file.write_text("Hund\thound\n\n  Auto \t motor vehicle \nHund\thound\n", encoding="utf-8")
    assert Glossary.read(file).terms == {"hund": "hound", "auto": "motor vehicle"}
    for text, sentence in {
        "Hund hound\n": "line 1 must be a source term, a tab and a target term",
        "Hund\thound\nKatze\t\n": "line 2 must be a source term, a tab and a target term",
        "Hund\thound\textra\n": "line 1 must be",
        "Hund\thound\nhund\tdog\n": "line 2 gives 'hund' another target term than an earlier line",
        "\n": "the glossary is empty",
    }.items():
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=sentence):
            Glossary.read(file)


def test_words_are_found_in_ids(tokenizer):
    for line in random_lines(5, seed=1):
        ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        words = words_of(tokenizer, ids)
        assert [token for word in words for token in word] == ids
        assert "".join(tokenizer.decode(word).strip() for word in words) == line.replace(" ", "")


@pytest.mark.parametrize("backend", ["torch", "cuda_graphs"])
def test_terms_occur_whatever_the_model_predicts(student, tokenizer, backend):
    """A random model knows no translation, so the terms come from the glossary alone."""
    model = student if backend == "torch" else StaticShapeJMNat(student)
    lines = random_lines(12, seed=2)
    words = sorted({word for line in lines for word in line.split()})
    glossary = Glossary({words[0]: words[5], words[1]: f"{words[6]} {words[7]}", words[2]: words[8]})
    plain = texts(model, tokenizer, lines)
    found = texts(model, tokenizer, lines, glossary=glossary)
    changed = 0
    for line, before, after in zip(lines, plain, found, strict=True):
        assert not glossary.missing(line, after)
        if not glossary.missing(line, before):
            assert after == before
        changed += after != before
    assert changed > 0


def test_the_shipped_model_replaces_the_word_by_the_term(shipped):
    lines = ["Sie zeigte mir ihr neues Auto.", "Der Hund schläft.", "Tom hat gestern einen Hund geschlagen.", "Danke."]
    glossary = Glossary({"auto": "motor vehicle", "Hund": "hound"})
    plain, found = texts(*shipped, lines), texts(*shipped, lines, glossary=glossary)
    for line, before, after in zip(lines, plain, found, strict=True):
        assert not glossary.missing(line, after)
        assert after.endswith(before.split()[-1][-1])
    assert found[0] == plain[0].replace("car", "motor vehicle") != plain[0]
    assert found[3] == plain[3]
    assert "dog" not in " ".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "Die Datei %s wurde am 24.12.2023 gelöscht.",
        "Die Datei liegt unter https://example.org/a_b und kostet 1.234,50 €.",
        "• Die Datei {name} ist groß 😀.",
        "1. Die Datei مرحبا ist groß.",
        "Die Da\u00adtei $FILE_NAME$ ist groß.",
        "die datei %d ist groß.",
    ],
)
def test_sentences_with_terms_keep_what_is_copied(shipped, text):
    (found,) = texts(*shipped, [text], glossary=Glossary({"Datei": "document"}))
    assert "document" in found.split()
    sentence = Sentence.read(text, shipped[1])
    assert all(item in found for item in sentence.items)
    assert found.startswith(sentence.around[0])
    assert "\ufffd" not in found


def test_terms_in_capitals_are_spelled_as_in_the_glossary(shipped):
    for text in ("DIE DATEI IST GROSS.", "ICH HABE DIE DATEI.", "DATEI"):
        (found,) = texts(*shipped, [text], glossary=Glossary({"Datei": "doCument"}))
        rest = found.split()
        rest.remove(next(word for word in rest if word.strip(".") == "doCument"))
        assert " ".join(rest) == " ".join(rest).upper()


def test_terms_that_look_like_text_to_copy_are_translated(student, tokenizer):
    glossary = Glossary({"R&D": WORDS[3], "datei.txt": WORDS[4], "Windows 11": WORDS[5], "x": WORDS[6]})
    for text, term in (("Die R&D kam", 3), ("Die datei.txt und %s", 4), ("Das Windows 11", 5), ("x", 6)):
        (found,) = texts(student, tokenizer, [text], glossary=glossary)
        assert WORDS[term] in found


def test_a_sentence_with_terms_leaves_a_line_one_candidate(student, tokenizer):
    """As the sentence itself has, whose other sentences have several."""
    line = f"{WORDS[0]}. {WORDS[1]}."
    options = {"num_return_sequences": 2, "num_length_candidates": 3, "split_sentences": True}
    for source in (0, 1):
        glossary = Glossary({WORDS[source]: f"{WORDS[5]} {WORDS[6]}"})
        (found,) = translate_lines(student, tokenizer, [line], glossary=glossary, **options)
        assert len(found.candidates) == len(found.candidate_ids) == 1
        assert f"{WORDS[5]} {WORDS[6]}" in found.text


def test_models_without_glossary_support_are_refused(student, tokenizer, monkeypatch):
    for model in (random_teacher(tokenizer), object()):
        with pytest.raises(ValueError, match="a glossary needs a JM-NAT model and the backend torch or cuda_graphs"):
            Glossary({"a": "b"}).check(model, tokenizer)
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **_: "\ufffd")
    with pytest.raises(ValueError, match="the model cannot write the target term '漢', which would become '\ufffd'"):
        Glossary({"a": "漢"}).check(student, tokenizer)
    for terms in ({}, {"a": " "}, {"": "b"}):
        with pytest.raises(ValueError, match="a glossary needs at least one term, and none may be empty"):
            Glossary(terms)


def test_the_command_takes_a_glossary(tmp_path, capsys):
    (tmp_path / "terms.tsv").write_text("Auto\tmotor vehicle\n", encoding="utf-8")
    (tmp_path / "text.de").write_text("Sie zeigte mir ihr neues Auto.\n\n", encoding="utf-8")
    main = load_script("translate").main
    arguments = ["--input", str(tmp_path / "text.de"), "--num_iterations", "3", "--glossary"]
    main([*arguments, str(tmp_path / "terms.tsv")])
    assert capsys.readouterr().out == "She showed me her new motor vehicle.\n\n"
    for wrong, sentence in (
        ([str(tmp_path / "terms.tsv"), "--n_best", "2"], "--glossary gives only one translation per line"),
        ([str(tmp_path / "text.de")], "line 1 must be a source term, a tab and a target term"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *wrong])
        assert stopped.value.code == 1
        assert sentence in capsys.readouterr().err
