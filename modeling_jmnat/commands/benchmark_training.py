"""How fast JM-NAT trains here: target tokens a second, use of the hardware, shares of a step, beside its teacher."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from ..benchmark.timing import environment
from ..benchmark.training import SIZES, Hardware, run_training_benchmark, training_table
from ..inference.loading import choose_device
from ..utils.atomic_files import atomic_text_file, write_json
from ..utils.command_line import check_counts, command

DTYPES = ("float32", "bfloat16")


@dataclass
class TrainingBenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(metadata={"help": "Folder for training.json, training_environment.json and training.md."})
    sizes: list[str] = field(default_factory=lambda: ["tiny"], metadata={"help": f"Of {', '.join(SIZES)}."})
    device: str = field(default="auto", metadata={"help": "auto, cpu or cuda."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32"],
        metadata={"help": "float32 (on a GPU with products in TF32) and bfloat16 (by autocast)."},
    )
    compile: bool = field(default=False, metadata={"help": "Measure each setting with torch.compile as well."})
    max_tokens: int = field(default=2000, metadata={"help": "Tokens of a batch; a GPU needs 16,000 and more."})
    length: int = field(default=25, metadata={"help": "Tokens of each source and target."})
    rounds: int = field(default=20, metadata={"help": "Steps of each model that are timed, at most."})
    time_budget: float = field(
        default=0.5, metadata={"help": "Minutes of a setting after which no further step is timed."}
    )
    threads: int = field(default=1, metadata={"help": "CPU threads."})


def check(arguments: TrainingBenchmarkArguments) -> None:
    check_counts(arguments, ("max_tokens", "rounds", "threads"))
    if arguments.length < 2:
        raise ValueError(f"length={arguments.length} must be at least 2 (one token and </s>)")
    for dtype in arguments.dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"dtypes={dtype!r} is not one of {', '.join(DTYPES)}")
    for size in arguments.sizes:
        if size not in SIZES:
            raise ValueError(f"sizes={size!r} is not one of {', '.join(SIZES)}")


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(TrainingBenchmarkArguments, description=__doc__).parse_args_into_dataclasses(argv)
    check(arguments)
    device = choose_device(arguments.device).type
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    surroundings = environment(arguments.threads) | {"device": device}
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        surroundings["device"] = torch.cuda.get_device_name()
    print(json.dumps(surroundings), flush=True)
    write_json(output / "training_environment.json", surroundings)
    rows: list[dict] = []
    failures: list[str] = []
    for size in arguments.sizes:
        for dtype in arguments.dtypes:
            for compiled in (False, True) if arguments.compile else (False,):
                done = list(rows)
                try:
                    for figures in run_training_benchmark(
                        size,
                        Hardware(device, dtype, compiled),
                        arguments.max_tokens,
                        arguments.length,
                        arguments.rounds,
                        60 * arguments.time_budget,
                        arguments.threads,
                    ):
                        rows = [*done, figures]
                        write_json(output / "training.json", rows)
                        with atomic_text_file(output / "training.md") as file:
                            file.write(training_table(rows))
                except RuntimeError as error:  # no memory, or no compiler
                    reason = " ".join(str(error).split())[:300]
                    failures.append(f"{size}, {dtype}{', compiled' if compiled else ''}: {reason}")
                    print(f"not measured: {failures[-1]}", flush=True)
    if not rows:
        raise ValueError(f"nothing could be measured: {'; '.join(failures)}")
    print((output / "training.md").read_text())
    print(json.dumps({"output": str(output), "settings": len(rows), "failures": len(failures)}))
