"""Average several checkpoints of a training run into one model, which often translates better than any of them."""

import json
from dataclasses import dataclass, field

from ..utils.command_line import command, parse_arguments


@dataclass
class AveragingArguments:
    """Which checkpoints to average and where to write the result."""

    checkpoints: list[str] = field(
        metadata={"help": "Folders to average, such as runs/demo/checkpoint-800 runs/demo/checkpoint-1000."}
    )
    output: str = field(metadata={"help": "New folder for the averaged model; load it like any other model folder."})


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, AveragingArguments, __doc__)
    from ..training.checkpoint_averaging import average_checkpoints

    output = average_checkpoints(arguments.checkpoints, arguments.output)
    print(json.dumps({"checkpoints": len(arguments.checkpoints), "output": str(output)}))
