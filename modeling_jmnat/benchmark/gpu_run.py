"""The benchmark on a GPU behind the command `benchmark-gpu`: its systems, text and output files."""

import json
import tempfile
from pathlib import Path

import torch
from transformers.utils import logging

from ..inference.loading import DTYPES, choose_device
from ..utils.atomic_files import atomic_text_file, write_json
from ..utils.command_line import check_counts
from ..utils.signals import terminated_as_interrupted
from .gpu import gpu_systems, gpu_table, run_gpu_benchmark
from .models import check_models, copy_models
from .options import GPUBenchmarkArguments
from .systems import prepare_teacher, random_models
from .text import FIXED_LENGTH, random_sources, scored_text
from .timing import describe_refused, environment

COUNTS = ("passes", "candidates", "sentences", "rounds", "batch_sizes", "batches", "lines")


def trained_work(arguments: GPUBenchmarkArguments, work: Path):
    """Folders of teacher and student, source ids and a score function."""
    copy_models(arguments, work)
    return scored_text(work / "student", arguments.source, arguments.reference, arguments.lines)


def random_work(arguments: GPUBenchmarkArguments, work: Path):
    return random_sources(random_models(arguments.random_weights, work), arguments.lines or 512), None


def try_to_convert(teacher: Path) -> str | None:
    """Write the teacher for CTranslate2; returns the reason if that is impossible."""
    try:
        prepare_teacher(teacher)
    except (ImportError, OSError) as error:
        return " ".join(str(error).split())


def check(arguments: GPUBenchmarkArguments) -> None:
    check_counts(arguments, COUNTS)
    for dtype in arguments.dtypes:
        if dtype not in DTYPES[1:]:
            raise ValueError(f"dtypes={dtype!r} is not one of {', '.join(DTYPES[1:])}")
    if arguments.random_weights is None:
        check_models(arguments)


def run_benchmark(arguments: GPUBenchmarkArguments) -> dict:
    """Measure, save the results after each round, and print the table; returns the figures of the last line."""
    check(arguments)
    device = choose_device(arguments.device).type
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    surroundings = environment(torch.get_num_threads()) | {"device": device, "cuda": torch.version.cuda}
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        surroundings["device"] = torch.cuda.get_device_name()
    print(json.dumps(surroundings), flush=True)
    with terminated_as_interrupted(), tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder), device, surroundings)
    print((output / "table.md").read_text())
    for name, reason in figures["missing"].items():
        print(f"not measured: {name}: {reason}")
    print(describe_refused(figures["refused"], output), end="")
    return {"output": str(output), "systems": len(figures["rows"])}


def measure(arguments: GPUBenchmarkArguments, folder: Path, device: str, surroundings: dict) -> dict:
    """Time all systems, with their models in `folder`, and write the figures after each round; returns the last."""
    work = random_work if arguments.random_weights is not None else trained_work
    sources, score = work(arguments, folder)
    reason = try_to_convert(folder / "teacher")
    systems = gpu_systems(
        str(folder / "teacher"),
        str(folder / "student"),
        arguments.passes,
        arguments.candidates,
        arguments.dtypes,
        FIXED_LENGTH if arguments.random_weights is not None else None,
        device,
    )
    if reason is not None:
        systems = [system for system in systems if system.engine != "ctranslate2"]
        surroundings["ctranslate2"] = reason
    figures: dict = {}
    for figures in run_gpu_benchmark(
        systems,
        sources,
        arguments.sentences,
        arguments.rounds,
        arguments.batch_sizes,
        60 * arguments.time_budget,
        arguments.batches,
        score,
    ):
        output = Path(arguments.output)
        write_json(output / "rows.json", figures["rows"])
        others = {"missing": figures["missing"], "refused_ratios": figures["refused"]}
        write_json(output / "environment.json", surroundings | others)
        with atomic_text_file(output / "table.md") as file:
            file.write(gpu_table(figures["rows"]))
    return figures
