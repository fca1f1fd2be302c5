"""Time JM-NAT on a GPU, plain and as CUDA graphs, against its autoregressive teacher in Transformers and CTranslate2.

Give a trained student and teacher with a test set, or --random_weights for the speed of models of a given size. It
takes as long as --time_budget allows, plus the time of loading; figures are written after each round.
"""

import json

from ..benchmark.options import GPUBenchmarkArguments
from ..utils.command_line import command, parse_arguments
from ..utils.locks import folder_lock


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, GPUBenchmarkArguments, __doc__)
    from ..benchmark.gpu_run import run_benchmark

    with folder_lock(arguments.output, "output"):
        figures = run_benchmark(arguments)
    print(json.dumps(figures))
