"""Sentences and code of Markdown documents."""

import re

FENCE = re.compile(r"^( *)```.*?^ *```", re.DOTALL | re.MULTILINE)
MADE = re.compile(r"<!-- made: .*?<!-- end -->", re.DOTALL)  # from the code's own docstrings


def code_pieces(text: str) -> list[str]:
    """The content of shell blocks, then of code spans."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.DOTALL)
    return [*blocks, *re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def sentences_of(text: str) -> list[str]:
    """The sentences outside of tables, comments, front matter and blocks; a span of code counts as one word."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", MADE.sub("", FENCE.sub("\n", text)), flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "`code`", re.sub(r"^ *\|.*$", "\n", text, flags=re.MULTILINE))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n|\n(?= *(?:#+ |- |\d+\. ))", text))
    return [
        sentence
        for block in blocks
        for sentence in re.split(r"(?<=[.!?:])\*{0,2}\s+(?=[\"(*`A-Z\d])", block)
        if sentence
    ]


def words_of(sentence: str) -> int:
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def numbers_of(sentence: str) -> int:
    """Numbers that stand alone, not those in names such as `test2016`."""
    return len(re.findall(r"(?<![\w.-])\d+(?:[.,]\d+)*(?!\w)", sentence))
