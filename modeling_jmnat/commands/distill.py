"""Translate the training set with a teacher, to make the text that a non-autoregressive model is trained on.

    jmnat distill --teacher runs/teacher --data runs/data/mine --output_dir runs/distilled
    accelerate launch --num_processes 4 -m modeling_jmnat.commands distill ...   (several GPUs)

Repeat the command to resume after an interruption. Give the result to `jmnat prepare` with
`--tokenizer runs/data/mine/tokenizer`. Standard output ends with one line of JSON: pairs kept, left out, throughput.
"""

import json

from ..teacher.options import DistillationArguments
from ..utils.command_line import command, parse_arguments


@command(resumes=True, memory="--batch_tokens")
def main(argv=None):
    (arguments,) = parse_arguments(argv, DistillationArguments, __doc__)
    from accelerate import PartialState

    from ..teacher.distillation import distill

    figures = distill(arguments)
    if PartialState().is_main_process:
        print(json.dumps(figures))
