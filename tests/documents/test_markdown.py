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
    *("~~", "===\n", "---\n", "[r]: u\n", "<div>\n", "\t", "\r\n", "ä", "\u2028", "{name}"),
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


@pytest.mark.parametrize("translation", ["1. Wort", "# Wort", "- a_b_c * d `e` [f] <b>", "> x | y"])
def test_signs_of_a_translation_make_no_markup(translation):
    for source in ("Ein Haus", "Ein **Haus** steht", "- Ein Haus", "> Ein\n> Haus"):
        written = read_markdown(source).write([translation] * len(read_markdown(source).texts))
        assert structure(written) == structure(source)
