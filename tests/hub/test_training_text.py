"""The training text of the shipped model: its tables are whole, and each way to make a sentence, by hand."""

import gzip
import importlib.util
import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "hub_card" / "training_text"


def script(name):
    """The module of a script of the folder."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def mix():
    return script("mix")


@pytest.fixture(scope="module")
def fillers(mix):
    return mix.by_kind("fillers.tsv")


@pytest.mark.parametrize(
    ("name", "columns"),
    [("nouns", 5), ("verbs", 7), ("others", 2), ("phrases", 2), ("templates", 2), ("names", 2), ("fillers", 3)],
)
def test_tables_are_whole(mix, name, columns):
    rows = mix.table(f"{name}.tsv")
    assert {len(row) for row in rows} == {columns}
    assert all(cell and cell == cell.strip() for row in rows for cell in row)
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    if f"{name}.tsv`" in readme and name not in ("names", "fillers"):
        assert f"`{name}.tsv` | {len(rows):,} " in readme


def test_both_sides_of_a_template_have_the_same_slots(mix, fillers):
    draw, names = random.Random(3), mix.by_kind("names.tsv")
    for german, english in mix.table("templates.tsv"):
        slots = [sorted(set(re.findall(r"{(\w+)}", side))) for side in (german, english)]
        assert slots[0] == slots[1] != []
        sides = mix.filled((german, english), mix.values_of_slots(draw, names, fillers))
        assert not re.search(r"[{}_]", "".join(sides))


def test_numbers(fillers):
    numbers = fillers["number"]
    assert len(numbers) == 100
    expected = {0: ("null", "zero"), 21: ("einundzwanzig", "twenty-one"), 40: ("vierzig", "forty")}
    expected |= {17: ("siebzehn", "seventeen"), 99: ("neunundneunzig", "ninety-nine"), 1: ("eins", "one")}
    assert {number: numbers[number] for number in expected} == expected


@pytest.mark.parametrize(
    ("time", "german", "english"),
    [
        ((1, "full"), "ein Uhr", "one o'clock"),
        ((9, "half"), "halb neun", "half past eight"),
        ((1, "half"), "halb eins", "half past twelve"),
        ((3, "past", 15), "Viertel nach drei", "a quarter past three"),
        ((12, "to", 5), "fünf vor zwölf", "five to twelve"),
        ((8, ".", 40), "8.40 Uhr", "8:40"),
    ],
)
def test_times_of_day(mix, fillers, time, german, english):
    assert mix.time_of_day(fillers["number"], *time) == (german, english)


def test_an_stands_before_a_vowel(mix):
    values = {"job": ("Arzt", "artist"), "name": ("Ada", "Ada")}
    assert mix.filled(("{name} ist {job}.", "{name} is a {job}."), values) == ("Ada ist Arzt.", "Ada is an artist.")
    values = {"job": ("Lehrer", "teacher")}
    assert mix.filled(("ist er {job}?", "is he a {job}?"), values) == ("Ist er Lehrer?", "Is he a teacher?")


def test_other_names_on_both_sides(mix, monkeypatch):
    monkeypatch.setattr(mix, "NEW_NAMES", 0.0)
    draw, names = random.Random(1), {"male": ["Ben"], "female": ["Anna"]}
    pair = ("Toms Hund mag Maria.", "Tom's dog likes Mary.")
    assert mix.renamed(pair, draw, names) == ("Bens Hund mag Anna.", "Ben's dog likes Anna.")
    assert mix.renamed(("Tom ist da.", "He is there."), draw, names) is None
    assert mix.renamed(("Tomaten, bitte.", "Tomatoes, please."), draw, names) is None


@pytest.mark.parametrize(
    ("second", "word", "drop_subject", "expected"),
    [
        (("Ich gehe.", "I go."), "und", True, ("Ich bin da und gehe.", "I am here and go.")),
        (("Ich gehe.", "I go."), "und", False, ("Ich bin da und ich gehe.", "I am here, and I go.")),
        (("Er geht.", "He goes."), "aber", True, ("Ich bin da, aber er geht.", "I am here, but he goes.")),
        (("Sie gehen.", "They go."), "und", True, None),
        (("Gehst du?", "Do you go?"), "und", True, None),
    ],
)
def test_joined_sentences(mix, second, word, drop_subject, expected):
    assert mix.joined(("Ich bin da.", "I am here."), second, word, drop_subject) == expected


def test_words_with_their_forms(mix):
    lines = mix.noun_lines("der", "Hase", "Hasen", "hare", "hares")
    assert {("ein Hase", "a hare"), ("zwei Hasen", "two hares"), ("Das ist ein Hase.", "That's a hare.")} <= {*lines}
    assert not any("Ich sehe" in german for german, _ in lines)
    assert ("Ich sehe einen Apfel.", "I see an apple.") in mix.noun_lines("der", "Apfel", "Äpfel", "apple", "apples")
    assert not any("ein Wasser" in german for german, _ in mix.noun_lines("das", "Wasser", "-", "water", "-"))
    lines = mix.verb_lines("gehen", "ich gehe", "er geht", "ist gegangen", "go", "goes", "went")
    assert {("ich bin gegangen", "I went"), ("Sie ist gegangen.", "She went."), ("gehen", "to go")} <= {*lines}
    assert (
        mix.verb_lines("regnen", "-", "es regnet", "hat geregnet", "rain", "rains", "rained")
        == [("regnen", "to rain")] * 2
    )


def test_the_whole_text(mix, tmp_path, monkeypatch, capsys):
    """The same seed gives the same text, without held-out lines and tests; files that do not match are refused."""
    monkeypatch.setattr(mix, "TEMPLATE_COPIES", 1)
    monkeypatch.setattr(mix, "NUM_JOINED", 5)
    held_out = mix.table("phrases.tsv")[-1][0]
    texts = {"train.de": "Ich bin Tom.\nIch bin klein.\n", "train.en": "I am Tom.\nI am small.\n"}
    for name in mix.CORPORA:
        (tmp_path / name).mkdir()
        for file, text in ({"valid.de": f"{held_out}\n", "valid.en": "x\n"} | texts).items():
            with gzip.open(tmp_path / name / f"{file}.gz", "wt", encoding="utf-8") as opened:
                opened.write(text)
    written = []
    for folder in ("first", "again"):
        mix.main(["--corpora", str(tmp_path), "--output_dir", str(tmp_path / folder)])
        sides = [
            (tmp_path / folder / f"train.{side}").read_text(encoding="utf-8").split("\n") for side in ("de", "en")
        ]
        assert len(sides[0]) == len(sides[1])
        written.append(sides)
    assert written[0] == written[1]
    sources = {mix.blind(line) for line in written[0][0]}
    assert len(mix.blind(held_out).split()) > 2
    assert mix.blind(held_out) not in sources
    tests = (line.split("\t")[0] for path in mix.TEST_LISTS for line in path.read_text("utf-8").splitlines())
    assert not sources & {text for text in map(mix.blind, tests) if len(text.split()) > 2}
    assert {"katze", "die katze"} <= sources
    with gzip.open(tmp_path / "europarl" / "train.en.gz", "at") as opened:
        opened.write("more\n")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        mix.main(["--corpora", str(tmp_path), "--output_dir", str(tmp_path / "third")])
    assert "europarl has 2 German and 3 English lines: they must be aligned" in capsys.readouterr().err


def script_beside(mix, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "mix", mix)  # as beside it on the path of a script
        return script(name)


@pytest.fixture(scope="module")
def tatoeba_parts(mix):
    return script_beside(mix, "tatoeba_parts")


def word_distance(one: list[str], two: list[str]) -> int:
    """The fewest words to add, leave out or replace."""
    if not one or not two:
        return len(one) + len(two)
    rest = word_distance(one[1:], two[1:]) + (one[0] != two[0])
    return min(rest, word_distance(one[1:], two) + 1, word_distance(one, two[1:]) + 1)


def test_neighbours_are_one_word_away(tatoeba_parts):
    """As by the definition of the edit distance, in all texts of up to four of three words."""
    trained_on = ["Ja, nein!", "so ja nein so", "nein"]
    neighbours = tatoeba_parts.Neighbours(trained_on)
    texts = [words for length in range(1, 5) for words in itertools.product(["ja", "nein", "so"], repeat=length)]
    expected = [
        min(word_distance(list(words), tatoeba_parts.blind(t).split()) for t in trained_on) <= 1 for words in texts
    ]
    assert [f"{' '.join(words).upper()} 7." in neighbours for words in texts] == expected
    assert 10 < sum(expected) < 100


def test_parts_of_the_held_out_text(tatoeba_parts, mix, tmp_path, capsys):
    texts = {"train.de": "Das ist groß.\n", "train.en": "x\n"}
    texts |= {"valid.de": "Das ist süß.\nWas nun?\n", "valid.en": "That is sweet.\nWhat now?\n"}
    for name in mix.CORPORA:
        (tmp_path / name).mkdir()
        for file, text in texts.items():
            with gzip.open(tmp_path / name / f"{file}.gz", "wt", encoding="utf-8") as opened:
                opened.write(text)
    tatoeba_parts.main(["--corpora", str(tmp_path), "--output_dir", str(tmp_path / "parts")])
    assert json.loads(capsys.readouterr().out) == {"near": 1, "far": 1, "capitals": 2}
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "parts").iterdir()}
    assert found == {
        "near.de": "Das ist süß.\n",
        "near.en": "That is sweet.\n",
        "far.de": "Was nun?\n",
        "far.en": "What now?\n",
        "capitals.de": "DAS IST SÜSS.\nWAS NUN?\n",
        "capitals.en": "THAT IS SWEET.\nWHAT NOW?\n",
    }


def test_what_a_teacher_translates_anew(mix, tmp_path, capsys):
    """By hand: a pair that occurs three times stays, all its lines; of the others each source stands once."""
    pairs = [("Hund", "dog"), ("Ja.", "Yes."), ("Hund", "dog"), ("Ja.", "Yeah."), ("Nein.", "No."), ("Hund", "dog")]
    pairs += [("Hund", "hound"), ("Nein.", "No.")]
    for side, language in enumerate(("de", "en")):
        lines = "".join(f"{pair[side]}\n" for pair in pairs)
        (tmp_path / f"train.{language}").write_text(lines, encoding="utf-8")
    main = script_beside(mix, "for_distillation").main
    main(["--text", str(tmp_path), "--output_dir", str(tmp_path / "parts")])
    assert json.loads(capsys.readouterr().out) == {"once": 2, "kept": 3}
    found = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (tmp_path / "parts").iterdir()}
    assert found == {
        "once.de": ["Ja.", "Nein."],
        "once.en": ["Yes.", "No."],
        "kept.de": ["Hund"] * 3,
        "kept.en": ["dog"] * 3,
    }
