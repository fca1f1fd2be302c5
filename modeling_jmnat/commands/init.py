"""Make an initial JM-NAT from the tokenizer and weights of an autoregressive model of the Hub, such as an opus-mt.

    jmnat init --from Helsinki-NLP/opus-mt-de-en --output runs/start
    jmnat prepare --tokenizer runs/start --output_dir runs/data ...      (then distil with the same teacher)
    jmnat train --init_from runs/start --data runs/distilled ...

The model translates badly until it is trained. `jmnat convert-teacher` runs all of these steps. Repeating a command
that has ended changes nothing.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import check_counts, command, parse_arguments

LANGUAGES_HELP = (
    "Source and target language in the codes of a multilingual teacher, such as deu_Latn eng_Latn (NLLB), de en "
    "(M2M100) or de_DE en_XX (mBART). Their tokens then begin every text."
)
LANGUAGE_CODE_HELP = (
    "Code that a Marian model with several target languages expects before each source, such as '>>eng<<'. Default: "
    "texts begin with a code themselves."
)


@dataclass
class InitArguments:
    """What to start from and where to write it."""

    teacher: str = field(
        metadata={
            "aliases": ["--from"],
            "help": "Marian (opus-mt), M2M100, NLLB or another model with Bart's layers: a folder, or a name on the "
            "Hub.",
        }
    )
    output: str = field(metadata={"help": "New folder for the model and its tokenizer."})
    teacher_languages: list[str] | None = field(default=None, metadata={"help": LANGUAGES_HELP})
    language_code: str | None = field(default=None, metadata={"help": LANGUAGE_CODE_HELP})
    encoder_layers: int | None = field(
        default=None,
        metadata={"help": "Encoder layers. Default: as many as the teacher; further ones have random weights."},
    )
    decoder_layers: int | None = field(
        default=None,
        metadata={"help": "Decoder layers. Default: as many as the teacher; further ones have random weights."},
    )
    seed: int = field(default=42, metadata={"help": "Random seed of weights that the teacher does not have."})

    def __post_init__(self):
        check_counts(self, ("encoder_layers", "decoder_layers"))


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, InitArguments, __doc__)
    from transformers.utils import logging

    from ..training.teacher_start import MADE_FROM, start_from_teacher
    from ..utils.json_files import read_json

    logging.disable_progress_bar()
    options = dict(vars(arguments))
    teacher, output = options.pop("teacher"), options.pop("output")
    report = start_from_teacher(teacher, output, options.pop("teacher_languages"), **options)
    if report is None:
        print(f"{output} holds the model of this command: nothing is left to do", file=sys.stderr)
    else:
        print(report.describe())
    made = read_json(Path(output) / MADE_FROM, ("copied", "parameters"))
    print(json.dumps({"output": output, "copied": made["copied"], "parameters": made["parameters"]}))
