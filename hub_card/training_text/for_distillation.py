"""Divide the training text into what a teacher translates anew and what stays as it was written.

    python hub_card/training_text/for_distillation.py --text text --output_dir parts

`mix.py` has written `train.de` and `train.en` to the folder of `--text`. Pairs that occur three times and more are
words and phrases: all their lines stay, in `kept.de` and `kept.en`. Of the other sources each stands once in
`once.de`, with its first translation in `once.en`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mix import Pair, write_pairs

from modeling_jmnat.utils.command_line import command, parse_arguments
from modeling_jmnat.utils.text_files import iterate_parallel

OFTEN = 3  # occurrences of a pair


def divide(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The pairs to translate anew, each source once, and the lines to keep."""
    counts = Counter(pairs)
    kept = [pair for pair in pairs if counts[pair] >= OFTEN]
    written = {source for source, _ in kept}
    once: dict[str, str] = {}
    for source, target in pairs:
        if source not in written:
            once.setdefault(source, target)
    return list(once.items()), kept


@dataclass
class DivisionArguments:
    """Where the text is, and where its parts go:"""

    text: str = field(metadata={"help": "Folder that `mix.py` has written."})
    output_dir: str = field(metadata={"help": "Folder for the parts."})


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, DivisionArguments, __doc__)
    text, output = Path(arguments.text), Path(arguments.output_dir)
    once, kept = divide(list(iterate_parallel(text / "train.de", text / "train.en")))
    write_pairs(output, "once", once)
    write_pairs(output, "kept", kept)
    print(json.dumps({"once": len(once), "kept": len(kept)}))


if __name__ == "__main__":
    main()
