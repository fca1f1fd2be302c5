"""Message catalogues: empty translations are filled in, to the byte everything else stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_jmnat.documents.placeholders import same_placeholders, translate_guarded
from modeling_jmnat.documents.po import read_po

polib = pytest.importorskip("polib")
PO = r"""# Kommentar
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Plural-Forms: nplurals=2; plural=n != 1;\n"

#: a.c:1
#, c-format
msgctxt "Menü"
msgid "%s Datei"
msgid_plural ""
"%s "
"Dateien"
msgstr[0] ""
msgstr[1] ""

#. unten
msgid ""
"  Erste \"Zeile\"\n"
"\n"
"zweite\t\\ Zeile\n"
msgstr  ""
msgid "Haus"
msgstr "House"

#, fuzzy
msgid "Hof"
msgstr "House"

msgid "12 %"
msgstr ""

#~ msgid "alt"
#~ msgstr ""
"""
TEXTS = ["%s Datei", "%s Dateien", 'Erste "Zeile"', "zweite", "\\ Zeile"]
TRANSLATIONS = ["%s file", "%s files", 'First "line"', "second", "\\ line"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_empty_translations_are_filled_in(newline):
    text = PO.replace("\n", newline)
    document = read_po(text)
    assert document.texts == TEXTS
    assert document.write(TEXTS) == text
    written = document.write(TRANSLATIONS)
    before, after = text.split(newline), written.split(newline)
    added = [line for line in after if line not in before]
    assert added == [
        'msgstr[0] "%s file"',
        'msgstr[1] "%s files"',
        r'"  First \"line\"\n"',
        r'"second\t\\ line\n"',
    ]
    assert [line for line in after if line not in added and line != r'"\n"'] == [
        line.replace("msgstr  ", "msgstr ") for line in before if not line.startswith("msgstr[") and line != r'"\n"'
    ]
    entries = {entry.msgid: entry for entry in polib.pofile(written)}
    assert entries["%s Datei"].msgstr_plural == {0: "%s file", 1: "%s files"}
    assert entries["%s Datei"].msgctxt == "Menü"
    assert entries['  Erste "Zeile"\n\nzweite\t\\ Zeile\n'].msgstr == '  First "line"\n\nsecond\t\\ line\n'
    assert entries["Haus"].msgstr == entries["Hof"].msgstr == "House"
    assert read_po(written).texts == []


def test_a_language_with_one_form_gets_the_plural_and_one_with_three_gets_it_twice():
    message = 'msgid "Datei"\nmsgid_plural "Dateien"\n'
    for forms, expected in ((1, ["Dateien"]), (3, ["Datei", "Dateien", "Dateien"])):
        text = message + "".join(f'msgstr[{form}] ""\n' for form in range(forms))
        assert read_po(text).texts == expected


def test_catalogues_without_a_header_and_other_files():
    assert read_po('msgid "a"\nmsgstr ""').write(["b"]) == 'msgid "a"\nmsgstr "b"'
    assert read_po("").write([]) == ""
    for text in ("no catalogue\n", 'msgid "a"\n'):
        with pytest.raises(ValueError, match="not a gettext message catalogue"):
            read_po(text)


def shouted(message: str) -> str:
    """The translation of a message by a translator that writes in capitals."""
    document = read_po(f'msgid "{polib.escape(message)}"\nmsgstr ""\n')
    translations, _ = translate_guarded(document.texts, lambda texts: [text.upper() for text in texts])
    return polib.pofile(document.write(translations))[-1].msgstr


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("%d von %d (%.1f%%)", "%d VON %d (%.1f%%)"),
        ('Öffnen mit "%s"?\tTab', 'ÖFFNEN MIT "%s"?\tTAB'),
        (
            "%(name)s hat {count} neue <b>Nachrichten</b> von %1$s: 100%",
            "%(name)s HAT {count} NEUE <b>NACHRICHTEN</b> VON %1$s: 100%",
        ),
        ('Siehe <a href="%s">hier</a> und %s', 'SIEHE <a href="%s">HIER</a> UND %s'),
        ("Eins.<br/>Zwei\n<p>Drei</p>", "EINS.<br/>ZWEI\n<p>DREI</p>"),
        ("a < b > c", "A < B > C"),
        ("<b>%s</b>", ""),
    ],
)
def test_placeholders_tags_and_tabs_stay(message, expected):
    assert shouted(message) == expected


PARTS = ("Haus", " ", "%s", "%d", "%%", "100%", "{name}", "%(n)d", "<b>", "</b>", "<br>", '<a href="%s">', "</a>")


@given(st.lists(st.sampled_from((*PARTS, "\t", "\n")), min_size=1, max_size=8).map("".join))
def test_whatever_the_message_a_translation_keeps_its_placeholders_tags_and_tabs(message):
    found = shouted(message) or message
    assert same_placeholders(message, found)
    for sign in ("<b>", "</b>", "<br>", '<a href="%s">', "</a>", "\t", "\n"):
        assert found.count(sign) == message.count(sign)


def test_a_translation_that_would_swap_placeholders_of_tags_is_not_written():
    text = 'msgid "%d: <a href=\\"%s\\">hier</a>"\nmsgstr ""\n'
    document = read_po(text)
    assert document.texts == ["%d: hier", "hier"]
    assert document.write(["here: %d", "here"]) == text


@pytest.mark.parametrize("indent", [" ", "\t", "    "])
def test_an_indented_translation_is_that_of_its_message(indent):
    text = f'msgid "eins"\n{indent}msgstr ""\n\nmsgid "zwei"\nmsgstr ""\n'
    expected = f'msgid "eins"\n{indent}msgstr "one"\n\nmsgid "zwei"\nmsgstr "two"\n'
    assert read_po(text).write(["one", "two"]) == expected
