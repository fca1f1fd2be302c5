"""Turn a fairseq checkpoint of JM-NAT or Mask-Predict into a model folder that from_pretrained loads.

    jmnat convert-fairseq --checkpoint checkpoint_best.pt --source_dict dict.de.txt --target_dict dict.en.txt \\
        --bpe_codes code --output_dir runs/converted

The kind of model is recognised from the file, which is read without running code from it.
"""

import json
from dataclasses import dataclass, field

from ..utils.command_line import command, parse_arguments


@dataclass
class ConversionArguments:
    """What to convert and where to write it."""

    checkpoint: list[str] = field(metadata={"help": "The .pt file; several files of one training run are averaged."})
    source_dict: str = field(metadata={"help": "fairseq dictionary of the source language, such as dict.de.txt."})
    target_dict: str = field(
        metadata={"help": "fairseq dictionary of the target language, which must equal that of the source language."}
    )
    output_dir: str = field(metadata={"help": "New folder for the model and its tokenizer."})
    bpe_codes: str | None = field(
        default=None,
        metadata={
            "help": "Byte-pair codes of subword-nmt or fastBPE. Without them, the tokenizer takes text that is split "
            "into pieces already, such as 'wor@@ d'."
        },
    )
    moses_source_lang: str | None = field(
        default=None,
        metadata={"help": "Source language, such as de, for Moses tokenisation; needs the target language as well."},
    )
    moses_target_lang: str | None = field(
        default=None, metadata={"help": "Target language, such as en, for Moses tokenisation and detokenisation."}
    )
    lowercase: bool = field(default=False, metadata={"help": "Set it if the model was trained on lower-cased text."})


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, ConversionArguments, __doc__)
    from transformers.utils import logging

    from ..hub.fairseq_conversion import convert_fairseq_checkpoint

    logging.disable_progress_bar()
    options = dict(vars(arguments))
    figures = convert_fairseq_checkpoint(options.pop("checkpoint"), **options)
    print(json.dumps(figures))
