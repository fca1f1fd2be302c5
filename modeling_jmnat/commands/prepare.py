"""Turn parallel text files, or a data set of the Hugging Face Hub, into what train_jmnat.py reads: cleaned pairs, one
tokenizer for both languages, and the ids. The last line of output counts the pairs read, dropped (and why) and kept.

    python run_scripts/prepare_data.py --recipe iwslt14_de_en --output_dir runs/data/iwslt14   (the paper's data sets)
"""

import json
import sys

import datasets

from ..data.preparation import prepare
from ..experiments.paper_data import parse_preparation
from ..utils.command_line import command


@command
def main(argv=None):
    arguments, recipe = parse_preparation(argv, __doc__)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    result = prepare(arguments)
    if recipe is not None:
        print(recipe.describe().replace("DIR", arguments.output_dir), file=sys.stderr)
    print(json.dumps(result))
