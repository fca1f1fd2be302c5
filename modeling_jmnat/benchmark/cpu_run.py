"""The benchmark on a CPU behind the command `benchmark`: its systems, text and output files."""

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path

from transformers.utils import logging

from ..evaluation.plots import plot_bleu_against_latency
from ..utils.atomic_files import atomic_text_file, write_json
from ..utils.command_line import check_counts
from ..utils.fingerprints import file_digest
from ..utils.signals import terminated_as_interrupted
from .models import check_models, copy_models
from .onnx_profile import profile_table
from .options import SIZES, BenchmarkArguments
from .run import Benchmark, Plan
from .systems import (
    installed,
    prepare_student,
    prepare_teacher,
    random_models,
    student_systems,
    teacher_systems,
)
from .text import FIXED_LENGTH, random_sources, scored_text
from .timing import describe_refused, environment, length_table, markdown_table

CONFIDENCE = 0.7  # threshold of the adaptive setting: more probable tokens are final
MODELS = ("student", "teacher", "deep_teacher")
COUNTS = ("passes", "candidates", "sentences", "rounds", "threads")
COUNTS += ("batch_size", "batch_lines", "batch_rounds", "batch_sizes")
PROFILED_SENTENCES = 20
HASHED = ("model*.safetensors", "generation_config.json", "tokenizer.json")  # of every model
PRUNED = {"prune_candidates": 1, "prune_to": 2}  # after the first pass only the two best candidates remain


def settings(arguments: BenchmarkArguments, trained: bool) -> dict[str, dict]:
    """Named options of `generate`. Rules that depend on probabilities are meaningless with random weights.

    "k = 4" passes all candidates through all passes, "k = 4, pruned" only the two best through all but the first.
    """
    plain = {f"k = {passes}": {"num_iterations": passes} for passes in arguments.passes}
    named = {}
    for label, options in plain.items():
        named[label] = options
        if trained and options["num_iterations"] > 1:
            named[f"{label}, pruned"] = options | PRUNED
    if trained:
        most = max(arguments.passes)
        named[f"k = {most}, adaptive"] = {"num_iterations": most, "confidence_threshold": CONFIDENCE}
    return named


def trained_work(arguments: BenchmarkArguments, work: Path):
    """Systems, source ids and a score function for trained models."""
    for name in copy_models(arguments, work, MODELS):
        if name == "student":
            prepare_student(work / name)
        else:
            prepare_teacher(work / name)
    sources, score = scored_text(work / "student", arguments.source, arguments.reference)
    systems = teacher_systems(str(work / "teacher"))
    if arguments.deep_teacher is not None:
        systems += teacher_systems(str(work / "deep_teacher"), suffix=" deep encoder")
    systems += student_systems(str(work / "student"), settings(arguments, True), arguments.candidates)
    return systems, sources, score


def random_work(arguments: BenchmarkArguments, work: Path):
    """Systems and source ids for models with random weights; one teacher has a deep encoder and a shallow decoder."""
    config = random_models(arguments.random_weights, work)
    layers = SIZES[arguments.random_weights]["layers"]
    random_models(arguments.random_weights, work / "deep", (2 * layers, 2))
    prepare_student(work / "student")
    systems = []
    for folder, suffix in ((work / "teacher", ""), (work / "deep" / "teacher", f" {2 * layers}+2 layers")):
        prepare_teacher(folder)
        systems += teacher_systems(str(folder), FIXED_LENGTH, suffix)
    systems += student_systems(str(work / "student"), settings(arguments, False), arguments.candidates, FIXED_LENGTH)
    return systems, random_sources(config, arguments.batch_lines or 96), None


def input_hashes(folder: Path, *texts: str | None) -> dict[str, str]:
    """Hashes of the inputs, so measurements are not resumed after models, their decoding or the text have changed."""
    files = {str(path.relative_to(folder)): path for kind in HASHED for path in sorted(folder.glob(f"**/{kind}"))}
    files |= {text: Path(text) for text in texts if text is not None}
    return {name: file_digest(path)[:16] for name, path in files.items()}


def is_plain(label: str) -> bool:
    """Whether a system is without rules that save work, unlike "k = 4, pruned"."""
    return "," not in label


def points(rows: list[dict]) -> list[dict]:
    """Rows for the picture, without the rules that save work, which would crowd it."""
    return [row for row in rows if is_plain(row["label"])]


def write_figures(benchmark: Benchmark, surroundings: dict, output: Path) -> tuple[list[dict], list[str]]:
    """Write what has been measured so far to files."""
    rows, refused = benchmark.rows()
    write_json(output / "rows.json", rows)
    write_json(output / "environment.json", {**surroundings, "refused_ratios": refused})
    for name, table in {"table.md": markdown_table(rows), "lengths.md": length_table(rows)}.items():
        with atomic_text_file(output / name) as file:
            file.write(table)
    if rows and all("bleu" in row for row in rows):
        plot_bleu_against_latency(points(rows), output / "bleu_latency.png")
    return rows, refused


def write_profile(benchmark: Benchmark, num_threads: int, output: Path) -> None:
    """Write where the time in our graphs is spent, for the systems of ONNX Runtime that are in the picture."""
    ours = [system for system in benchmark.systems if system.engine == "onnx" and is_plain(system.label)]
    with atomic_text_file(output / "profile.md") as file:
        file.write(profile_table(ours, benchmark.chosen[:PROFILED_SENTENCES], num_threads))


def check(arguments: BenchmarkArguments) -> None:
    check_counts(arguments, COUNTS)
    try:
        re.compile(arguments.only or "")
    except re.error as error:
        raise ValueError(f"only={arguments.only!r} must be a regular expression: {error}") from None
    if arguments.random_weights is None:
        check_models(arguments, MODELS)


def run_benchmark(arguments: BenchmarkArguments) -> dict:
    """Measure, save the results after each step, and print the tables; returns the figures of the last line."""
    check(arguments)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    surroundings = environment(arguments.threads)
    print(json.dumps(surroundings))
    plan = Plan(
        num_threads=arguments.threads,
        num_sentences=arguments.sentences,
        num_rounds=arguments.rounds,
        batch_size=arguments.batch_size,
        batch_lines=arguments.batch_lines,
        batch_rounds=arguments.batch_rounds,
        batch_sizes=tuple(arguments.batch_sizes),
    )
    with terminated_as_interrupted(), tempfile.TemporaryDirectory() as folder:
        work = random_work if arguments.random_weights is not None else trained_work
        systems, sources, score = work(arguments, Path(folder))
        if arguments.only is not None:
            systems = [system for system in systems if re.search(arguments.only, system.title)]
        if not systems:
            raise ValueError(f"only={arguments.only!r} matches no system")
        systems, missing = installed(systems)
        for package in missing:
            print(f"{package} is not installed: its systems are left out")
        measured = {name: value for name, value in asdict(arguments).items() if name != "output"}
        measured["inputs"] = input_hashes(Path(folder), arguments.source, arguments.reference)
        machine = {name: surroundings[name] for name in ("processor", "versions")}
        path = output / "measurements.json"
        benchmark = Benchmark(systems, sources, plan, path, measured, score, progress=True, machine=machine)
        for stage in benchmark.run():
            if stage != "loading":
                write_figures(benchmark, surroundings, output)
        rows, refused = write_figures(benchmark, surroundings, output)
        write_profile(benchmark, arguments.threads, output)
    print((output / "table.md").read_text())
    print((output / "profile.md").read_text())
    print(describe_refused(refused, output), end="")
    return {"output": str(output), "systems": len(rows), "refused_ratios": len(refused)}
