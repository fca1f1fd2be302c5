"""Documents by the command translate, and placeholders that come out as they went in."""

import json

import pytest

from modeling_jmnat.documents.formats import format_of, read_document
from modeling_jmnat.documents.placeholders import translate_guarded
from tests.helpers.translation_samples import load_script, save_translators

for library in ("markdown_it", "polib", "srt", "webvtt"):
    pytest.importorskip(library)
DOCUMENTS = {
    "text.srt": "1\n00:00:01,000 --> 00:00:03,000\nein haus\n\n",
    "text.vtt": "WEBVTT\n\n00:01.000 --> 00:03.000\nein haus\n",
    "text.po": 'msgid "ein haus"\nmsgstr ""\n',
    "text.md": "# ein haus\n\n```\nein haus\n```\n",
    "text.HTML": "<p>ein haus</p><pre>ein haus</pre>\r\n",
}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("%s von %d", "XQ1 von XQ2"),
        ("{name} hat %(n)d %% und {}", "XQ1 hat XQ2 % und XQ3"),
        ("%d von %d (%.1f%%)", "XQ1 von XQ2 (XQ3)"),
        ("50%% von 100%", "50%% von 100%"),
        ("%dx%d und %sMB", "XQ1xXQ2 und XQ3MB"),
        ("%5.1f %count% %{n} #{n} {$n}", "XQ1 XQ2 XQ3 XQ4 XQ5"),
        ("{n, plural, one {# Tag} other {# Tage}} lang", "XQ1 lang"),
        ("{% if x %} Haus", "XQ1 Haus"),
        ("${HOME} %1$s %2 {{x}} $y XQ1", "XQ2 XQ3 XQ4 XQ5 XQ6 XQ1"),
        ("50% der 100%ige 5 %", "50% der 100%ige 5 %"),
    ],
)
def test_stand_ins_are_read_for_placeholders(text, read):
    seen = []
    assert translate_guarded([text], lambda texts: seen.extend(texts) or texts) == ([text], 0)
    assert seen == [read]


@pytest.mark.parametrize(
    ("text", "translation", "expected"),
    [
        ("%s von %s", "XQ1 of XQ2", "%s of %s"),
        ("%s von %s", "XQ2 of XQ1", None),
        ("{a} von {b}", "XQ2 of XQ1", "{b} of {a}"),
        ("%2$s von %1$s", "XQ2 of XQ1", "%1$s of %2$s"),
        ("{a} von", "of", None),
        ("{a} von", "XQ1 of XQ1", None),
        ("Haus", "XQ7", "XQ7"),
        ("Die Datei %s", "The fileXQ XQ1", None),
        ("%d von %d (%.1f%%)", "XQ1 of XQ2 (XQ3)", "%d of %d (%.1f%%)"),
        ("50%% Rabatt", "50% off", "50%% off"),
        ("50%% Rabatt", "half off", None),
        ("%d Prozent", "XQ1%", None),
        ("50%% von 100%", "50%% of 100%", "50%% of 100%"),
        ("50%% von 100%", "50% of 100%", None),
        ("100% sicher", "completely safe", "completely safe"),
        ("Haus", "house %s", None),
        ("Haus", "house {name}", None),
        ("{name} / %s", "The XQ1 / XQ2", "{name} / %s"),  # nothing to translate
    ],
)
def test_a_translation_has_the_placeholders_of_its_text_or_is_not_taken(text, translation, expected):
    result = translate_guarded([text], lambda texts: [translation])
    assert result == (([text], 1) if expected is None else ([expected], 0))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return str(save_translators(tmp_path_factory.mktemp("models")) / "student")


def translated(student, path, capsys, *options):
    load_script("translate").main(["--model", student, "--device", "cpu", "--input", str(path), *options])
    return json.loads(capsys.readouterr().err.splitlines()[-1])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_command_translates_text_alone(student, tmp_path, capsys, name):
    content = DOCUMENTS[name]
    (tmp_path / name).write_bytes(content.encode())
    (tmp_path / "line").write_text("ein haus\n")
    translated(student, tmp_path / "line", capsys, "--output", str(tmp_path / "translation"))
    translation = (tmp_path / "translation").read_text().strip()
    assert translation not in ("", "ein haus")
    figures = translated(student, tmp_path / name, capsys, "--output", str(tmp_path / "output"))
    assert (figures["format"], figures["texts"], figures["untranslated"]) == (format_of(name), 1, 0)
    before, after = content.split("ein haus", 1)
    expected = f"{before}{translation}{after}"
    if name.endswith(".po"):
        expected = content.replace('msgstr ""', f'msgstr "{translation}"')
    assert (tmp_path / "output").read_bytes() == expected.encode()
    lines = translated(student, tmp_path / name, capsys, "--output", str(tmp_path / "lines"), "--format", "text")
    assert lines["sentences"] == len(content.splitlines())


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "text.srt",
            ["--n_best", "2"],
            "--n_best does not apply to a srt document: leave it out, or give --format text",
        ),
        ("text.md", ["--watch"], "--watch does not apply to a markdown document"),
        ("text.md", ["--format", "srt"], "text.md: not SubRip subtitles"),
        ("bytes.md", [], "bytes.md is not valid UTF-8 (invalid start byte at byte 1)"),
        ("nothing.md", [], "No such file"),
    ],
)
def test_what_cannot_be_translated_gets_one_sentence(student, tmp_path, capsys, name, options, sentence):
    (tmp_path / "text.md").write_text("Haus")
    (tmp_path / "text.srt").write_text(DOCUMENTS["text.srt"])
    (tmp_path / "bytes.md").write_bytes(b"a\xff")
    with pytest.raises(SystemExit):
        translated(student, tmp_path / name, capsys, *options)
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_formats_go_by_the_suffix():
    names = ("a.SRT", "b.vtt", "c.po", "d.pot", "e.md", "f.txt", "g", "h.md.gz")
    assert [format_of(name) for name in names] == ["srt", "vtt", "po", "po", "markdown", *["text"] * 3]
    assert read_document(b"<p>a</p>", "html", "x").texts == ["a"]
