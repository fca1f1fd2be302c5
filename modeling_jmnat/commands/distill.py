"""Translate the training set with a teacher: the text that a non-autoregressive model learns from.

    python run_scripts/distill.py --teacher runs/teacher --data runs/data/mine --output_dir runs/distilled
    accelerate launch --num_processes 4 run_scripts/distill.py ...   (several GPUs)

An interrupted run goes on when the same command is given again. Feed the result to prepare_data.py together with
`--tokenizer runs/data/mine/tokenizer`. Standard output ends with one line of JSON: pairs kept, left out, throughput.
"""

import json

from accelerate import PartialState
from transformers import HfArgumentParser

from ..teacher.distillation import DistillationArguments, distill
from ..utils.command_line import command


@command(resumes=True)
def main(argv=None):
    (arguments,) = HfArgumentParser(DistillationArguments, description=__doc__).parse_args_into_dataclasses(argv)
    figures = distill(arguments)
    if PartialState().is_main_process:
        print(json.dumps(figures))
