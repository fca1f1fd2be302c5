"""The sentences of a German course, and how the shipped model translates them."""

import json

from tests.everyday import FILE, SHORT, counts, sentences, words, wrong_translations

MODEL = FILE.parents[2] / "de-en"


def test_there_are_fifty_different_sentences_with_translations():
    rows = sentences()
    assert len({source for source, _ in rows}) == len(rows) == 50
    assert sum(len(words(source)) <= SHORT for source, _ in rows) == 19
    assert all(text and text == text.strip() for source, right in rows for text in (source, *right))


def test_a_translation_is_right_whatever_its_case_and_punctuation():
    assert words("What’s your name?") == words("what's your name") != words("What is your name?")
    rows = sentences()
    wrong = [(rows[0][0], "no"), (rows[-1][0], "no")]  # one of one word, one of several
    assert counts(wrong) == {"sentences": 50, "right": 48, "short": 19, "short_right": 18}
    assert counts([])["right"] == 50


def test_the_shipped_model_translates_as_many_as_is_written_down():
    """At most one less, because other processors round differently."""
    rows = (json.loads(line) for line in (FILE.parent / "results.jsonl").read_text().splitlines())
    (stored,) = [row for row in rows if row["run"] == "de-en/everyday" and row["num_iterations"] == 4]
    found = counts(wrong_translations(str(MODEL), num_iterations=4, num_length_candidates=4))
    assert abs(found["right"] - stored["right"]) <= 1
