"""Draw a PNG from result files: learning curves, or BLEU against latency, sentence length or noise."""

import json
from dataclasses import dataclass, field

from ..utils.command_line import command, parse_arguments

KINDS = ("run", "latency", "lengths", "noise")


@dataclass
class PlotArguments:
    """Give one of --run, --latency, --lengths and --noise."""

    output: str = field(metadata={"help": "PNG file to write."})
    run: str | None = field(
        default=None,
        metadata={
            "help": "Training folder, or its trainer_state.json, for the parts of the loss and validation BLEU."
        },
    )
    latency: list[str] | None = field(
        default=None,
        metadata={
            "help": 'JSON files with rows {"system": "JM-NAT", "bleu": 33.1, "latency_ms": 12, "label": "k = 4"}, '
            "such as rows.json of `jmnat benchmark`."
        },
    )
    lengths: list[str] | None = field(
        default=None, metadata={"help": "JSON files of `jmnat evaluate`, for BLEU of short and of long sentences."}
    )
    noise: list[str] | None = field(
        default=None, metadata={"help": "JSON files of `jmnat evaluate --noise`, for BLEU against the level of noise."}
    )


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, PlotArguments, __doc__)
    from ..evaluation.evaluation_plots import plot_bleu_by_length, plot_bleu_under_noise
    from ..evaluation.plots import (
        plot_bleu_against_latency,
        plot_learning_curve,
        read_latency_rows,
        read_log_history,
    )

    if sum(getattr(arguments, kind) is not None for kind in KINDS) != 1:
        raise ValueError("give exactly one of --run, --latency, --lengths and --noise")
    if arguments.run is not None:
        figures = plot_learning_curve(read_log_history(arguments.run), arguments.output)
    elif arguments.latency is not None:
        figures = plot_bleu_against_latency(read_latency_rows(arguments.latency), arguments.output)
    elif arguments.lengths is not None:
        figures = plot_bleu_by_length(arguments.lengths, arguments.output)
    else:
        figures = plot_bleu_under_noise(arguments.noise, arguments.output)
    print(json.dumps({"output": arguments.output, **figures}))
