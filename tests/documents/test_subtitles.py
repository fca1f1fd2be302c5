"""Subtitles: times and settings stay, sentences continue across cues, and words are distributed among them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_jmnat.documents.subtitles import read_srt, read_vtt, share_out

pytest.importorskip("srt")
pytest.importorskip("webvtt")
SRT = """1
00:00:01,000 --> 00:00:03,000
Das ist ein Satz, der
über zwei Zeilen

2
00:00:03,100 --> 00:00:05,000
und zwei Untertitel geht.

3
00:00:06,000 --> 00:00:07,000 X1:40
<i>Schräg.</i>

4
00:00:07,000 --> 00:00:08,000
{\\an8}Ein <b>fettes</b> Wort

5
00:00:09,000 --> 00:00:10,000
- Hallo.
- Wer da?

6
00:00:10,500 --> 00:00:11,000
♪ 12:30 ♪

7
00:00:12,000 --> 00:00:12,500
Nach einer

8
00:00:15,000 --> 00:00:16,000
Pause

"""
SRT_TEXTS = [
    "Das ist ein Satz, der über zwei Zeilen und zwei Untertitel geht.",
    *("Schräg.", "Ein fettes Wort", "fettes", "Hallo.", "Wer da?", "Nach einer", "Pause"),
]
VTT = """WEBVTT - Titel

NOTE Das bleibt

STYLE
::cue { color: red }

1
00:01.000 --> 00:02.000 align:start
<v Bob>Das ist
ein &amp; <i>Haus</i>.

00:03.000 --> 00:04.000
Ein

00:04.000 --> 00:05.000
Hund
"""
VTT_TEXTS = ["Das ist ein & Haus.", "Haus", "Ein Hund"]
BOTH = [(read_srt, SRT, SRT_TEXTS), (read_vtt, VTT, VTT_TEXTS)]


@pytest.mark.parametrize(("read", "text", "texts"), BOTH, ids=["srt", "vtt"])
@pytest.mark.parametrize("change", ["", "crlf", "cr", "mixed", "bom", "end"])
def test_their_own_text_gives_the_same_bytes(read, text, texts, change):
    changed = {
        "": text,
        "crlf": text.replace("\n", "\r\n"),
        "cr": text.replace("\n", "\r"),
        "mixed": text.replace("\n\n", "\r\n\r").replace("0\n", "0\r"),
        "bom": "\ufeff" + text,
        "end": text.rstrip("\n"),
    }[change]
    document = read(changed)
    assert document.texts == texts
    assert document.write(texts) == changed


@pytest.mark.parametrize(("read", "text", "texts"), BOTH, ids=["srt", "vtt"])
@pytest.mark.parametrize("translation", ["Kurz", "Ein Wort nach dem anderen, und das so lange es geht."])
def test_all_but_the_text_stays_whatever_the_translation(read, text, texts, translation):
    def frame(subtitles: str) -> list[str]:
        lines = subtitles.split("\n")
        return [line for line in lines if not line or re.search(r"-->|^\d+$|NOTE|STYLE|WEBVTT|::cue|12:30", line)]

    written = read(text).write([translation] * len(texts))
    assert frame(written) == frame(text)
    found = read(written)
    assert len(re.findall("-->", written)) == len(re.findall("-->", text))
    assert all(translation.split()[0] in written for _ in found.texts)
    for tag in ("<i>", "</i>", "{\\an8}", "<b>", "</b>", "<v Bob>"):
        assert written.count(tag) == text.count(tag)
    assert "\n\n\n" not in written


def test_a_sentence_is_shared_out_among_its_cues():
    found = read_srt(SRT).write(
        ["This is a sentence that goes over two lines and two subtitles.", "Oblique.", "A bold word", "bold"]
        + ["Hello.", "Who is it?", "After a", "pause"]
    )
    expected = SRT
    for german, english in (
        ("Das ist ein Satz, der", "This is a sentence that"),
        ("über zwei Zeilen", "goes over two"),
        ("und zwei Untertitel geht.", "lines and two subtitles."),
        ("Schräg.", "Oblique."),
        ("Ein <b>fettes</b> Wort", "A <b>bold</b> word"),
        ("- Hallo.\n- Wer da?", "- Hello.\n- Who is it?"),
        ("Nach einer", "After a"),
        ("Pause", "pause"),
    ):
        expected = expected.replace(german, english)
    assert found == expected


@given(
    st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=12),
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_words_are_shared_out_in_order_and_no_part_is_empty(words, lengths):
    parts = share_out(words, lengths)
    assert len(parts) == len(lengths)
    assert all(parts)
    if len(words) >= len(lengths):
        assert [word for part in parts for word in part] == words


def test_cues_without_text_and_translations_without_words():
    text = "1\n00:00:01,000 --> 00:00:02,000\n\n\n2\n00:00:02,000 --> 00:00:03,000\nzwei\ndrei\n"
    document = read_srt(text)
    assert document.texts == ["zwei drei"]
    assert document.write(["two three"]) == text.replace("zwei", "two").replace("drei", "three")
    assert document.write([""]) == text


def test_other_files_get_one_sentence():
    with pytest.raises(ValueError, match="not SubRip subtitles: "):
        read_srt("no subtitles\n")
    with pytest.raises(ValueError, match="not SubRip subtitles: no cue is in 'no subtitles") as refused:
        read_srt("no subtitles " * 100)
    assert len(str(refused.value)) < 150
    with pytest.raises(ValueError, match="not WebVTT subtitles: "):
        read_vtt("no subtitles\n")
    assert read_vtt("WEBVTT\n").texts == read_srt("").texts == []
