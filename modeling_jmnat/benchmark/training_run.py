"""The benchmark of training behind the command `benchmark-training`: its settings and output files."""

import json
from pathlib import Path

import torch

from ..inference.loading import choose_device
from ..utils.atomic_files import atomic_text_file, write_json
from ..utils.command_line import check_counts
from .options import TRAINING_SIZES, TrainingBenchmarkArguments
from .timing import environment
from .training import Hardware, run_training_benchmark, training_table

DTYPES = ("float32", "bfloat16")


def check(arguments: TrainingBenchmarkArguments) -> None:
    check_counts(arguments, ("max_tokens", "rounds", "threads"))
    if arguments.length < 2:
        raise ValueError(f"length={arguments.length} must be at least 2 (one token and </s>)")
    for dtype in arguments.dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"dtypes={dtype!r} is not one of {', '.join(DTYPES)}")
    for size in arguments.sizes:
        if size not in TRAINING_SIZES:
            raise ValueError(f"sizes={size!r} is not one of {', '.join(TRAINING_SIZES)}")


def run_benchmark(arguments: TrainingBenchmarkArguments) -> dict:
    """Measure, save the results after each step, and print the table; returns the figures of the last line."""
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
    return {"output": str(output), "settings": len(rows), "failures": len(failures)}
