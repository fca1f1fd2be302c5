"""Turn a fairseq checkpoint of JM-NAT or Mask-Predict into a model folder that from_pretrained loads.

    jmnat convert-fairseq --checkpoint checkpoint_best.pt --source_dict dict.de.txt --target_dict dict.en.txt \\
        --bpe_codes code --output_dir runs/converted

Which of the two it is, is seen from the file. The file is read without running code from it.
"""

import json
from dataclasses import dataclass, field

from ..utils.command_line import command, parse_arguments


@dataclass
class ConversionArguments:
    """What to convert and where to write it."""

    checkpoint: list[str] = field(
        metadata={"help": "The .pt file; of several files of one training run the average is converted."}
    )
    source_dict: str = field(metadata={"help": "fairseq dictionary of the source language, such as dict.de.txt."})
    target_dict: str = field(
        metadata={"help": "fairseq dictionary of the target language; it must equal that of the source."}
    )
    output_dir: str = field(metadata={"help": "New folder for the model and its tokenizer."})
    bpe_codes: str | None = field(
        default=None,
        metadata={
            "help": "Byte-pair codes of subword-nmt or fastBPE. With them the tokenizer takes text; without, it takes "
            "text that is split into pieces already, such as 'wor@@ d'."
        },
    )
    moses_source_lang: str | None = field(
        default=None,
        metadata={"help": "Apply Moses tokenisation to source text: its language, such as de. Needs both languages."},
    )
    moses_target_lang: str | None = field(
        default=None, metadata={"help": "Its target language, such as en; translations are detokenised."}
    )
    lowercase: bool = field(default=False, metadata={"help": "The model was trained on lower-cased text."})


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, ConversionArguments, __doc__)
    from transformers.utils import logging

    from ..hub.fairseq_conversion import convert_fairseq_checkpoint

    logging.disable_progress_bar()
    options = dict(vars(arguments))
    figures = convert_fairseq_checkpoint(options.pop("checkpoint"), **options)
    print(json.dumps(figures))
