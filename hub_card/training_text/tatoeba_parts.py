"""Write the parts of a test text that the card of the shipped model scores apart, as files of aligned lines.

    python hub_card/training_text/tatoeba_parts.py --corpora data --output_dir tests

They are lines of Tatoeba's `valid.de.gz` and `valid.en.gz`, NAME.de and NAME.en each: `near` to a source of the
training text, which is the same but for one word; `far` from all of them; and all lines in `capitals`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mix import CORPORA, blind, corpus, write_pairs

from modeling_jmnat.utils.command_line import command, parse_arguments

ANY = "*"  # stands for a word, in a text without punctuation


def with_a_word_less(words: list[str]) -> Iterator[str]:
    for i in range(len(words)):
        yield " ".join(words[:i] + words[i + 1 :])


def with_any_word(words: list[str]) -> Iterator[str]:
    for i in range(len(words)):
        yield " ".join([*words[:i], ANY, *words[i + 1 :]])


class Neighbours:
    """Texts, and which others equal one of them but for one word that is added, missing or another one.

    Case, punctuation and digits do not count.
    """

    def __init__(self, texts: Iterable[str]):
        self.texts = {blind(text) for text in texts}
        split = [text.split() for text in self.texts]
        self.shorter = {shorter for words in split for shorter in with_a_word_less(words)}
        self.changed = {changed for words in split for changed in with_any_word(words)}

    def __contains__(self, text: str) -> bool:
        text = blind(text)
        words = text.split()
        return (
            text in self.texts
            or text in self.shorter
            or any(shorter in self.texts for shorter in with_a_word_less(words))
            or any(changed in self.changed for changed in with_any_word(words))
        )


def parts(pairs: list[tuple[str, str]], trained_on: Iterable[str]) -> dict[str, list[tuple[str, str]]]:
    """The parts of a test text by their names.

    Args:
        trained_on: sources of the training text.
    """
    neighbours = Neighbours(trained_on)
    near = [source in neighbours for source, _ in pairs]
    return {
        "near": [pair for pair, is_near in zip(pairs, near, strict=True) if is_near],
        "far": [pair for pair, is_near in zip(pairs, near, strict=True) if not is_near],
        "capitals": [(source.upper(), target.upper()) for source, target in pairs],
    }


@dataclass
class PartsArguments:
    """Where the corpora are, and where the parts go:"""

    corpora: str = field(metadata={"help": "Folder with a folder for each corpus that the model was trained on."})
    output_dir: str = field(metadata={"help": "Folder for the files."})


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, PartsArguments, __doc__)
    corpora, output = Path(arguments.corpora), Path(arguments.output_dir)
    trained_on = (german for name in CORPORA for german, _ in corpus(corpora / name, "train"))
    found = parts(corpus(corpora / "tatoeba", "valid"), trained_on)
    for name, pairs in found.items():
        write_pairs(output, name, pairs)
    print(json.dumps({name: len(pairs) for name, pairs in found.items()}))


if __name__ == "__main__":
    main()
