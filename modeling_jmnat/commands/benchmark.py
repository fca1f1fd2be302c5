"""Time JM-NAT against its autoregressive teacher in Transformers and CTranslate2, sentence by sentence and in batches.

Give a trained student and teacher with a test set, or --random_weights for the speed of models of a given size.
"""

import json

from ..benchmark.options import BenchmarkArguments
from ..utils.command_line import command, parse_arguments
from ..utils.locks import folder_lock


@command(resumes=True)
def main(argv=None):
    (arguments,) = parse_arguments(argv, BenchmarkArguments, __doc__)
    from ..benchmark.cpu_run import run_benchmark

    with folder_lock(arguments.output, "output"):
        figures = run_benchmark(arguments)
    print(json.dumps(figures))
