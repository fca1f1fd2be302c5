"""HTML and marked text: what is translated, where tags go, and that all else stays to the byte."""

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_jmnat.documents.html import read_html
from modeling_jmnat.documents.marked_text import Mark, MarkedText

FRAGMENTS = (
    *("Haus", " ", "\n", "a < b", "&amp;", "&lt;", "&", "&#x41;", "&nbsp;", "ä", "XQ1", "<", ">", "</", "\r\n"),
    *("<b>", "</b>", "<i class='x'>", "</i>", '<a href="a>b">', "</a>", "<br/>", "<p>", "</p>", "<P >", "<img src=x>"),
    *("<code>", "</code>", "<pre>", "</pre>", "<script>if (a<b) '</p>'", "</script>", "<!-- c -->", "<!DOCTYPE html>"),
    *("<?php x ?>", "<![CDATA[x]]>", '<span translate="no">', "</span >", "<textarea>", "<svg/>", "</ x>", "</>"),
)


def translated(text: str, known: dict[str, str]) -> str:
    document = read_html(text)
    return document.write(known[each] for each in document.texts)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_whatever_the_page_its_own_text_gives_it_back(text):
    document = read_html(text)
    assert document.write(document.texts) == text
    assert all(each == " ".join(each.split()) != "" for each in document.texts)


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_every_tag_comes_out_once(text):
    """Even if the translation is unlike the source."""
    document = read_html(text)
    for translation in ("", "Wort", "ein Wort nach dem anderen"):
        written = document.write([translation] * len(document.texts))
        for sign in ("<b>", "</b>", "<i class", "</i>", "<a href", "</a>", "<br/>", "<img src", "<pre>", "<!--"):
            assert written.count(sign) == text.count(sign), sign


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("<p>Guten Tag</p>", {"Guten Tag": "Good day"}, "<p>Good day</p>"),
        ("a &amp; b\n c", {"a & b c": "<x> & y"}, "&lt;x&gt; &amp; y"),
        (
            "<p>Das ist ein <b>gutes</b> Haus.</p>",
            {"Das ist ein gutes Haus.": "That is a good house.", "gutes": "good"},
            "<p>That is a <b>good</b> house.</p>",
        ),
        (  # nowhere in the translation: the fourth word of five
            "Das ist ein <b>gutes</b> Haus.",
            {"Das ist ein gutes Haus.": "That is a fine house.", "gutes": "good"},
            "That is a <b>fine</b> house.",
        ),
        (  # twice in it
            "Ein <i>Tag</i> ist ein Tag.",
            {"Ein Tag ist ein Tag.": "A day is a day.", "Tag": "day"},
            "A <i>day</i> is a day.",
        ),
        (  # the text itself is in the translation
            "Auf <b>OK</b> und dann auf <b>Abbrechen</b>.",
            {"Auf OK und dann auf Abbrechen.": "OK and then Cancel.", "OK": "to be OK", "Abbrechen": "Cancel"},
            "<b>OK</b> and then <b>Cancel</b>.",
        ),
        (  # the longest run of words that both have
            "Hier ist <i>ein großer Hund</i>.",
            {"Hier ist ein großer Hund.": "Here is the large dog.", "ein großer Hund": "a large dog"},
            "Here is the <i>large dog</i>.",
        ),
        (  # a run of little of the text is none: the words at the same place
            "Auf <b>Ende</b> zum Schließen",
            {"Auf Ende zum Schließen": "Press End to quit", "Ende": "to finish"},
            "Press <b>End</b> to quit",
        ),
        (  # counted in its own sentence
            "Es ist <b>groß</b>. Und es ist, so viel ist klar, in Berlin.",
            {"Es ist groß. Und es ist, so viel ist klar, in Berlin.": "It is big. It is in Berlin.", "groß": "tall"},
            "It is <b>big</b>. It is in Berlin.",
        ),
        (  # the nearest of several
            "Hier ist es, und <b>hier</b>.",
            {"Hier ist es, und hier.": "Here it is, and here.", "hier": "here"},
            "Here it is, and <b>here</b>.",
        ),
        ("<b>Achtung:</b> Hund", {"Achtung: Hund": "Beware: dog", "Achtung:": "Beware"}, "<b>Beware:</b> dog"),
        (
            "<a href='x'>Das <b>ist</b></a> gut",
            {"Das ist gut": "This is good", "Das": "This", "ist": "is"},
            "<a href='x'>This <b>is</b></a> good",
        ),
        (
            "Mit <code>ls &lt; x</code> geht<br>es.",
            {"Mit XQ1 geht": "It works with XQ1", "es.": "so."},
            "It works with <code>ls &lt; x</code><br>so.",
        ),
        ("Mit <code>ls</code> geht es", {"Mit XQ1 geht es": "XQ1 XQ1 works"}, "<code>ls</code>  works"),
        (  # keys that are joined are one
            "Mit <kbd>Strg</kbd>+<kbd>C</kbd> geht es",
            {"Mit XQ1 geht es": "XQ1 works"},
            "<kbd>Strg</kbd>+<kbd>C</kbd> works",
        ),
        (  # it touches words, its stand-in does not
            "Ein Wort<var>x</var>und mehr",
            {"Ein Wort XQ1 und mehr": "A word XQ1 and more"},
            "A word<var>x</var>and more",
        ),
        ("Mit <code>ls</code> geht es", {"Mit XQ1 geht es": "It works"}, "It works<code>ls</code>"),
        (
            "<p translate='no'>Haus</p><pre>Haus</pre>Hof",
            {"Hof": "Yard"},
            "<p translate='no'>Haus</p><pre>Haus</pre>Yard",
        ),
        ("<b>Ein</p> Haus</b>", {"Ein": "A", "Haus": "house"}, "<b>A</p> house</b>"),
        ("<title>Haus</title><p title='Haus'>7</p>", {"Haus": "House"}, "<title>House</title><p title='Haus'>7</p>"),
    ],
)
def test_text_is_translated_and_tags_find_their_place(text, known, expected):
    assert translated(text, known) == expected


def test_marks_take_what_is_written_and_what_is_read_apart():
    parts = ["<< ", Mark("[", "open"), "Haus", Mark("]", "close"), " >>"]
    text = MarkedText(parts, decode=html.unescape, encode=lambda text, source: f"({text})" if text else "")
    assert text.texts == ["<< Haus >>", "Haus"]
    assert text.write(["<< House >>", "House"]) == "(<< )[(House)]( >>)"
    assert text.write(text.texts) == "<< [Haus] >>"
