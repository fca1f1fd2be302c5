"""Train an autoregressive teacher: an ordinary Transformer with a preset's widths and the data's vocabulary.

    jmnat train-teacher --preset multi30k_tiny --data runs/data/multi30k --output_dir runs/teacher

Repeat the command to resume a run that was killed or ended by --time_budget MINUTES. Fewer `--max_steps` give a weak
teacher, `--encoder_layers 10 --decoder_layers 2` one that decodes fast. Standard output ends with one line of JSON:
steps, and BLEU on the validation set.
"""

import json

from ..teacher.command import parse_teacher_command
from ..utils.command_line import command


@command(resumes=True, memory="--max_tokens (in a new --output_dir) or --eval_batch_tokens")
def main(argv=None):
    arguments = parse_teacher_command(argv, __doc__)
    from transformers.utils import logging

    from ..teacher.run import train_teacher

    logging.disable_progress_bar()
    results = train_teacher(arguments)
    if arguments.training.process_index == 0:
        print(json.dumps(results))
