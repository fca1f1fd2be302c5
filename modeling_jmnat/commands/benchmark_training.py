"""Measure how fast JM-NAT and its teacher train: target tokens per second, use of the hardware, shares of a step."""

import json

from ..benchmark.options import TrainingBenchmarkArguments
from ..utils.command_line import command, parse_arguments
from ..utils.locks import folder_lock


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, TrainingBenchmarkArguments, __doc__)
    from ..benchmark.training_run import run_benchmark

    with folder_lock(arguments.output, "output"):
        figures = run_benchmark(arguments)
    print(json.dumps(figures))
