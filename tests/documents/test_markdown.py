"""Markdown: what is translated, and that code, addresses and everything else stay to the byte."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_jmnat.documents.markdown import read_markdown

markdown_it = pytest.importorskip("markdown_it")
ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "hub_card").glob("**/*.md"))]
PAGE = """---
title: Haus
---
# Ein *Haus* \\* &amp;

Absatz
über zwei Zeilen mit **fett** und [Verweis](http://x.y/(a)_b "Titel") und `code`.
> Zitat
> [mit](u 't') `c`  
Bruch ![Bild [x]](src) <http://auto.link> a<br>b <b>c</b>

- Punkt [Ziel][r]
  1. Zwei

|Kopf|b \\| c|
|-|-|
|*d*|e|

```python
kein = "Text"
```

    code

[r]: http://x.y

<div>html</div>
"""  # noqa: W291
FRAGMENTS = (
    *("Haus", " ", "\n", "\n\n", "*", "**", "_", "`", "``", "[", "]", "(u)", "](u 't')", "][r]", "![", "<b>", "</b>"),
    *("<http://a.b>", "\\", "\\*", "&amp;", "  \n", "\\\n", "> ", "- ", "1. ", "# ", "    ", "```\n", "|", "|-|\n"),
    *("~~", "===\n", "---\n", "[r]: u\n", "<div>\n", "\t", "\r\n", "\r", "ä", "\u2028", "{name}"),
    *("[^1]", "[^1]: ", "[!NOTE]", ":::x\n", "!!! x\n", "$$", "$x_1$", "{% a %}", "{% raw %}", "{% endraw %}\n"),
    *("{{ a*b }}", "<kbd>", "</kbd>", ":heart:", "\n: ", "*[A]: ", "[x] ", "{#a}"),
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_pages_of_this_project_come_back_as_they_were(path):
    text = path.read_text(encoding="utf-8")
    document = read_markdown(text)
    assert len(document.texts) > 3
    assert document.write(document.texts) == text


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join))
def test_whatever_the_page_its_own_text_gives_it_back(text):
    document = read_markdown(text)
    assert document.write(document.texts) == text


@pytest.mark.parametrize("change", [str, lambda text: text.replace("\n", "\r\n"), "\ufeff{}".format])
def test_text_is_translated_and_markup_stays(change):
    document = read_markdown(change(PAGE))
    assert document.write(document.texts) == change(PAGE)
    written = document.write(text.upper() for text in document.texts)
    for kept in (
        *("title: Haus", "**FETT**", '[VERWEIS](http://x.y/(a)_b "Titel")', "`code`", "[MIT](u 't') `c`  "),
        *("![Bild [x]](src) <http://auto.link> A<br>B <b>C</b>", "- PUNKT [ZIEL][r]", "  1. ZWEI", "|KOPF|b \\| c|"),
        *("|*D*|E|", 'kein = "Text"', "    code", "[r]: http://x.y", "<div>html</div>"),
    ):
        assert kept in written
    if change is str:
        assert "# EIN *HAUS* \\* &\n\nABSATZ ÜBER ZWEI ZEILEN MIT " in written


def structure(text: str) -> list[tuple[str, str]]:
    parser = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = [token for block in parser.parse(text) for token in [block, *(block.children or ())]]
    return [(token.type, str(token.attrs)) for token in tokens if token.type not in ("text", "softbreak")]


def shouted(text: str) -> str:
    document = read_markdown(text)
    return document.write(each.upper() for each in document.texts)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_line_ends_stay(end):
    text = "---\nt: x\n---\n# Hallo\n\nGut.\nWo?\n\n- eins  \n  zwei\n"
    expected = "---\nt: x\n---\n# HALLO\n\nGUT. WO?\n\n- EINS  \nZWEI\n"
    assert shouted(text.replace("\n", end)) == expected.replace("\n", end)
    assert shouted("# Hallo\r\rGut.\r\n\nWo?\r") == "# HALLO\r\rGUT.\r\n\nWO?\r"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[^1]: Das ist sie.\n[r]: https://a.b "Titel"\n', '[^1]: DAS IST SIE.\n[r]: https://a.b "Titel"\n'),
        ("Wort[^a] und\n\n[^a]: Wort.\n[^b]: Ein\nWort", "WORT[^a] UND\n\n[^a]: WORT.\n[^b]: EIN WORT"),
        ("[^u]: https://a.b\n", "[^u]: https://a.b\n"),
        ("*[HTML]: Sprache\n", "*[HTML]: SPRACHE\n"),
        ("Begriff\n: Seine Bedeutung\n", "BEGRIFF\n: SEINE BEDEUTUNG\n"),
        ("> [!NOTE]\n> Ein Hinweis.\n", "> [!NOTE]\n> EIN HINWEIS.\n"),
        ("> [!tip] Titel\n> Ein Rat", "> [!tip] Titel\n> EIN RAT"),
        (":::warning\nAchtung.\n:::\n", ":::warning\nACHTUNG.\n:::\n"),
        ('!!! note "Titel"\n    Ein\n    Hinweis.\n\nText', '!!! note "Titel"\n    EIN HINWEIS.\n\nTEXT'),
        ('=== "Linux"\n\n    Ein Wort\n\n        Code\n', '=== "Linux"\n\n    EIN WORT\n\n        Code\n'),
        ("!!! Achtung !!!", "!!! ACHTUNG !!!"),
        ("{% include datei.html %}\nText\n{: .k }", "{% include datei.html %}\nTEXT\n{: .k }"),
        ("{% highlight x %}\na\n\nb\n{% endhighlight %}\nc", "{% highlight x %}\na\n\nb\n{% endhighlight %}\nC"),
        ("Text\n$$\nx\n\ny\n$$\nmehr", "TEXT\n$$\nx\n\ny\n$$\nMEHR"),
        ("{{< kasten >}}\nText\n{{< /kasten >}}", "{{< kasten >}}\nTEXT\n{{< /kasten >}}"),
        ("[TOC]\n\n# Haus {#haus}", "[TOC]\n\n# HAUS {#haus}"),
        ("- [ ] offen\n- [x] fertig", "- [ ] OFFEN\n- [x] FERTIG"),
        (":heart: Danke! :+1:", ":heart: DANKE! :+1:"),
        ("Um 12:30:45 da: ein :Wort: da", "UM 12:30:45 DA: EIN :WORT: DA"),
        ("Da $a_1 + b_2 = c$ und $$x*y*z$$ gilt", "DA $a_1 + b_2 = c$ UND $$x*y*z$$ GILT"),
        ("Von $5 bis $9 oder 5$ bis 9$.", "VON $5 BIS $9 ODER 5$ BIS 9$."),
        ("<kbd>Strg</kbd>+<kbd>C</kbd> und <var>ab</var>", "<kbd>Strg</kbd>+<kbd>C</kbd> UND <var>ab</var>"),
        ('Ein <span translate="no">Wort</span> mehr', 'EIN <span translate="no">Wort</span> MEHR'),
        ("Siehe [Haus].\n\n[haus]: u", "SIEHE [HAUS][Haus].\n\n[haus]: u"),
        ("[Haus][]\n\n[haus]: u", "[HAUS][Haus]\n\n[haus]: u"),
        ("5 * 3, \\*kein\\* Wort", "5 \\* 3, \\*KEIN\\* WORT"),
    ],
)
def test_what_sites_read_beyond_commonmark_stays(text, expected):
    document = read_markdown(text)
    assert document.write(document.texts) == text
    assert shouted(text) == expected


@pytest.mark.parametrize("kept", [":heart:", "$a_1$", "{% x %}", "[^1]", "<kbd>a</kbd>", "{#a}", "{{< x >}}"])
@pytest.mark.parametrize(
    "frame", ["Ein {} Wort", "*Ein {}* Wort", "Ein [{} Wort](u)", "- Ein **Wort** {}", "|{}|\n|-|\n"]
)
def test_what_stands_alone_comes_out_once_whatever_the_translation(kept, frame):
    document = read_markdown(frame.replace("{}", kept))
    for translation in ("", "word", "a word after another, and another"):
        assert document.write([translation] * len(document.texts)).count(kept) == 1


def test_template_values_are_text_without_markup():
    assert read_markdown("Hallo {{ a_b_ * c_d_ }}, *du*").texts == ["Hallo {{ a_b_ * c_d_ }}, du", "du"]


@pytest.mark.parametrize("translation", ["1. Wort", "# Wort", "- a_b_c * d `e` [f] <b>", "> x | y"])
def test_signs_of_a_translation_make_no_markup(translation):
    for source in ("Ein Haus", "Ein **Haus** steht", "- Ein Haus", "> Ein\n> Haus"):
        written = read_markdown(source).write([translation] * len(read_markdown(source).texts))
        assert structure(written) == structure(source)
