"""Draw the learning curve of a training run, or BLEU against latency of several systems, as a PNG."""

import json
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from modeling_jmnat.cli import command
from modeling_jmnat.plots import plot_bleu_against_latency, plot_learning_curve, read_latency_rows, read_log_history


@dataclass
class PlotArguments:
    """Give either a run or latency files."""

    output: str = field(metadata={"help": "PNG file to write."})
    run: str | None = field(
        default=None,
        metadata={"help": "Training folder (or its trainer_state.json): every part of the loss, and validation BLEU."},
    )
    axis: str = field(default="step", metadata={"help": "With --run: step, or train_minutes for the training time."})
    latency: list[str] | None = field(
        default=None,
        metadata={
            "help": 'JSON files with rows {"system": "JM-NAT", "bleu": 33.1, "latency_ms": 12, "label": "k = 4"}.'
        },
    )


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(PlotArguments, description=__doc__).parse_args_into_dataclasses(argv)
    if (arguments.run is None) == (arguments.latency is None):
        raise ValueError("give either --run or --latency")
    if arguments.run is not None:
        figures = plot_learning_curve(read_log_history(arguments.run), arguments.output, arguments.axis)
    else:
        figures = plot_bleu_against_latency(read_latency_rows(arguments.latency), arguments.output)
    print(json.dumps({"output": arguments.output, **figures}))


if __name__ == "__main__":
    main()
