"""Fifty everyday sentences that a German course begins with: how many does a model translate right?

    python -m tests.everyday --model hub_card/de-en --num_iterations 10

There are two lists, `everyday.tsv` and `everyday_second.tsv` (`--sentences`). The second was written without sight of
the training text, and not read before the model was trained. A line has the German and what counts as right,
case and punctuation aside. Standard output has the wrong translations, then one line of JSON.
"""

import argparse
import json
import re
from pathlib import Path

from transformers import pipeline

import modeling_jmnat  # noqa: F401  it registers the model

FOLDER = Path(__file__).resolve().parents[1] / "hub_card" / "results" / "shipped_models"
LISTS = ("everyday", "everyday_second")
SHORT = 2  # words


def sentences(name: str = LISTS[0]) -> list[tuple[str, list[str]]]:
    """Each sentence of a list with its right translations."""
    rows = (line.split("\t") for line in (FOLDER / f"{name}.tsv").read_text(encoding="utf-8").splitlines())
    return [(source, right.split(" | ")) for source, right in rows]


def words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.casefold().replace("’", "'"))


def wrong_translations(model: str, name: str = LISTS[0], **options) -> list[tuple[str, str]]:
    """The sentences of a list that the model in a folder translates wrongly, with its translations."""
    rows = sentences(name)
    outputs = pipeline("translation", model=model)([source for source, _ in rows], **options)
    translations = [output["translation_text"] for output in outputs]
    return [
        (source, translation)
        for (source, right), translation in zip(rows, translations, strict=True)
        if words(translation) not in map(words, right)
    ]


def counts(wrong: list[tuple[str, str]], name: str = LISTS[0]) -> dict[str, int]:
    short = [source for source, _ in sentences(name) if len(words(source)) <= SHORT]
    wrong_short = [source for source, _ in wrong if source in short]
    return {
        "sentences": len(sentences(name)),
        "right": len(sentences(name)) - len(wrong),
        "short": len(short),
        "short_right": len(short) - len(wrong_short),
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder of the model.")
    parser.add_argument("--sentences", dest="name", choices=LISTS, default=LISTS[0], help="The list.")
    parser.add_argument("--num_iterations", type=int, default=10, help="k, decoder passes.")
    parser.add_argument("--num_length_candidates", type=int, default=4, help="C, target lengths.")
    options = vars(parser.parse_args(argv))
    wrong = wrong_translations(**options)
    for source, translation in wrong:
        print(f"{source}\t{translation}")
    print(json.dumps(counts(wrong, options["name"]) | options))


if __name__ == "__main__":
    main()
