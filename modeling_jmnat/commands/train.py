"""Train a JM-NAT on data that prepare_data.py wrote.

    python run_scripts/train_jmnat.py --preset multi30k_tiny --data runs/data/multi30k --output_dir runs/jmnat
    accelerate launch --num_processes 4 run_scripts/train_jmnat.py ...   (several GPUs)

The recipe (--preset) sets everything; any field of it is also an option. Ctrl-C, SIGTERM, --time_budget and a crash
leave a checkpoint: give the same command again to go on. The last line of output is the figures as JSON.
"""

import json
import os

# Read when torch is loaded: idle threads must not spin. Two trainings on two cores run up to nine times faster so.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from transformers.utils import logging  # noqa: E402

from ..training.command import parse_command  # noqa: E402
from ..training.run import run_training  # noqa: E402
from ..utils.command_line import command  # noqa: E402


@command(resumes=True)
def main(argv=None):
    arguments = parse_command(argv, __doc__)
    logging.disable_progress_bar()
    results = run_training(arguments)
    if arguments.training.process_index == 0:
        print(json.dumps(results))
