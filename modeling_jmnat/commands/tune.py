"""Choose how a model decodes by BLEU on validation text, and save the choice with the model.

For JM-NAT that is the exponent of the length that its candidates' scores are divided by, the weight of what they have
in common, and what else --grid and --num_length_candidates name; for an autoregressive model the length penalty of its
beam search.
"""

import json
from contextlib import nullcontext

from ..evaluation.options import TuningArguments
from ..utils.atomic_files import atomic_text_file
from ..utils.command_line import command, parse_arguments
from ..utils.locks import file_lock


@command(memory="--batch_tokens")
def main(argv=None):
    (arguments,) = parse_arguments(argv, TuningArguments, __doc__)
    from transformers.utils import logging

    from ..evaluation.tuning_run import folders_of, run_tuning, save_options

    logging.disable_progress_bar()
    # Opened before the work, so that a path that cannot be written costs no time.
    with (
        file_lock(arguments.output, "output"),
        atomic_text_file(arguments.output) if arguments.output else nullcontext() as file,
    ):
        report, model = run_tuning(arguments)
        if file:
            json.dump(report, file, indent=2, ensure_ascii=False, allow_nan=False)
            file.write("\n")
    print(f"best: {json.dumps(report['best'])}")
    if arguments.save:  # last: whatever is wrong with the folder, the figures are there
        save_options(folders_of(arguments.model), model, report["best"])
    print(json.dumps({"best": report["best"], "saved": arguments.save, "output": arguments.output}))
