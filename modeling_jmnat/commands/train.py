"""Train a JM-NAT on data from `jmnat prepare`.

    jmnat train --preset multi30k_tiny --data runs/data/multi30k --output_dir runs/jmnat
    accelerate launch --config_file $(python -m modeling_jmnat.training.presets gpus) \\
        -m modeling_jmnat.commands train ...   (8 GPUs; or one_gpu, fsdp2, deepspeed_zero2, two_machines, cpu)

The recipe (--preset) sets everything, and options override its fields. After Ctrl-C, SIGTERM, --time_budget or a
crash, repeat the command to resume from the last checkpoint. The last line of output has the figures as JSON.
"""

import json

from ..training.command import parse_command
from ..utils.command_line import command, read_ahead


@command(resumes=True, memory="--max_tokens (in a new --output_dir) or --eval_batch_tokens")
def main(argv=None):
    system = read_ahead(argv, "system").system
    if system is None:
        arguments = parse_command(argv, __doc__)
        from ..training.run import run_training as train
    else:
        from ..baselines.training import parse_system
        from ..baselines.training import run_system as train

        arguments = parse_system(system, argv, __doc__)
    from transformers.utils import logging

    logging.disable_progress_bar()
    results = train(arguments)
    if arguments.training.process_index == 0:
        print(json.dumps(results))
