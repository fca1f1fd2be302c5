"""Turn parallel text files, or a data set of the Hugging Face Hub, into what train_jmnat.py reads: cleaned pairs, one
tokenizer for both languages, and the ids. The last line of output counts the pairs read, dropped (and why) and kept.
"""

import json
import sys

import datasets
from transformers import HfArgumentParser

from modeling_jmnat.cli import command
from modeling_jmnat.preparation import PreparationArguments, prepare


@command
def main(argv=None):
    parser = HfArgumentParser(PreparationArguments, description=__doc__)
    (arguments,) = parser.parse_args_into_dataclasses(argv)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    print(json.dumps(prepare(arguments)))


if __name__ == "__main__":
    main()
