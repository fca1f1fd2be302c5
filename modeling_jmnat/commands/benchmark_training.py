"""Measure how fast JM-NAT and its teacher train: target tokens per second, use of the hardware, shares of a step."""

import json

from ..benchmark.options import TrainingBenchmarkArguments
from ..utils.command_line import command, parse_arguments


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, TrainingBenchmarkArguments, __doc__)
    from ..benchmark.training_run import run_benchmark

    print(json.dumps(run_benchmark(arguments)))
