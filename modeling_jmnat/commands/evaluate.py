"""Translate a test set and score it: BLEU, chrF, repeated words, length recall and speed, per number of passes."""

import json
import sys
from contextlib import nullcontext

from ..evaluation.options import EvaluationArguments
from ..utils.atomic_files import check_writable
from ..utils.command_line import command, parse_arguments
from ..utils.locks import file_lock, folder_lock


@command(memory="--batch_tokens")
def main(argv=None):
    (arguments,) = parse_arguments(argv, EvaluationArguments, __doc__)
    from transformers.utils import logging

    from ..evaluation.run import run_evaluation

    logging.disable_progress_bar()
    if arguments.output:
        check_writable(arguments.output)
    translations = arguments.translations
    with (
        file_lock(arguments.output, "output"),
        folder_lock(translations, "translations") if translations else nullcontext(),
    ):
        report = run_evaluation(arguments)
    if arguments.output and sys.stdout.isatty():  # where thousands of characters would bury the scores
        print(f"all figures are in {arguments.output}")
    else:
        print(json.dumps(report, ensure_ascii=False))
