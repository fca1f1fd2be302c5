"""The sentences of a German course, and how the shipped model translates them."""

import pytest

from modeling_jmnat.experiments.rows import select
from modeling_jmnat.utils.json_files import read_json_lines
from tests.everyday import FOLDER, LISTS, SHORT, counts, sentences, words, wrong_translations

MODEL = FOLDER.parents[1] / "de-en"


def test_there_are_fifty_different_sentences_with_translations():
    for name, num_short in zip(LISTS, (19, 20), strict=True):
        rows = sentences(name)
        assert len({source for source, _ in rows}) == len(rows) == 50
        assert sum(len(words(source)) <= SHORT for source, _ in rows) == num_short
        assert all(text and text == text.strip() for source, right in rows for text in (source, *right))
    assert not {source for source, _ in sentences(LISTS[0])} & {source for source, _ in sentences(LISTS[1])}


def test_a_translation_is_right_whatever_its_case_and_punctuation():
    assert words("What’s your name?") == words("what's your name") != words("What is your name?")
    rows = sentences()
    wrong = [(rows[0][0], "no"), (rows[-1][0], "no")]  # one of one word, one of several
    assert counts(wrong) == {"sentences": 50, "right": 48, "short": 19, "short_right": 18}
    assert counts([])["right"] == 50


@pytest.mark.parametrize("name", LISTS)
def test_the_shipped_model_translates_as_many_as_is_written_down(name):
    """At most one less, because other processors round differently."""
    rows = read_json_lines(FOLDER / "results.jsonl")
    (stored,) = select(rows, run=f"de-en/{name}", variant="", num_iterations=4)
    found = counts(wrong_translations(str(MODEL), name, num_iterations=4, num_length_candidates=4), name)
    assert abs(found["right"] - stored["right"]) <= 1
