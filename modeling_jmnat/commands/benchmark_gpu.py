"""Time JM-NAT on a GPU, plain and as CUDA graphs, against its autoregressive teacher in Transformers and CTranslate2.

Give a trained student and teacher with a test set, or --random_weights for the speed of models of a given size. Takes
as long as --time_budget says (loading comes on top); figures are written after each round.
"""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser
from transformers.utils import logging

from ..benchmark.gpu import gpu_systems, gpu_table, run_gpu_benchmark
from ..benchmark.models import check_models, copy_models
from ..benchmark.systems import prepare_teacher, random_models
from ..benchmark.text import FIXED_LENGTH, random_sources, scored_text
from ..benchmark.timing import environment
from ..inference.loading import DTYPES, choose_device
from ..utils.atomic_files import atomic_text_file, write_json
from ..utils.command_line import check_counts, command
from ..utils.signals import terminated_as_interrupted

COUNTS = ("passes", "candidates", "sentences", "rounds", "batch_sizes", "batches", "lines")


@dataclass
class GPUBenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(metadata={"help": "Folder for rows.json, environment.json and table.md."})
    student: str | None = field(default=None, metadata={"help": "Folder of a trained JM-NAT model."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder of the autoregressive model, with the same tokenizer."}
    )
    source: str | None = field(default=None, metadata={"help": "Text to translate, one sentence a line; .gz works."})
    reference: str | None = field(default=None, metadata={"help": "Its translation, for BLEU beside the times."})
    random_weights: str | None = field(
        default=None, metadata={"help": "small or base: untrained models of that size at 25 tokens, no BLEU."}
    )
    passes: list[int] = field(default_factory=lambda: [1, 4, 10], metadata={"help": "Decoder passes k to measure."})
    candidates: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "Length candidates C to measure."})
    dtypes: list[str] = field(
        default_factory=lambda: ["float32", "float16"],
        metadata={"help": "float32 (products in TF32), float16, bfloat16; CTranslate2 always runs in float16."},
    )
    sentences: int = field(default=8, metadata={"help": "Sentences for latency, spread over the test set."})
    rounds: int = field(default=5, metadata={"help": "How often each sentence is timed on each system, at most."})
    batch_sizes: list[int] = field(
        default_factory=lambda: [32, 256], metadata={"help": "Sentences of a batch for throughput."}
    )
    batches: int | None = field(
        default=None,
        metadata={"help": "Batches of each size for throughput, without BLEU. Default: the whole test set."},
    )
    lines: int | None = field(
        default=None, metadata={"help": "Lines for throughput and BLEU. Default: all; random weights: 512."}
    )
    time_budget: float = field(default=1.5, metadata={"help": "Minutes after which no further round begins."})
    device: str = field(default="cuda", metadata={"help": "cuda, or cpu to try the command out."})


def trained_work(arguments: GPUBenchmarkArguments, work: Path):
    """Folders of teacher and student, source ids and a score function."""
    copy_models(arguments, work)
    return scored_text(work / "student", arguments.source, arguments.reference, arguments.lines)


def random_work(arguments: GPUBenchmarkArguments, work: Path):
    return random_sources(random_models(arguments.random_weights, work), arguments.lines or 512), None


def try_to_convert(teacher: Path) -> str | None:
    """Write the teacher for CTranslate2; the reason where that cannot be done."""
    try:
        prepare_teacher(teacher)
    except (ImportError, OSError) as error:
        return " ".join(str(error).split())


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(GPUBenchmarkArguments, description=__doc__).parse_args_into_dataclasses(argv)
    check_counts(arguments, COUNTS)
    for dtype in arguments.dtypes:
        if dtype not in DTYPES[1:]:
            raise ValueError(f"dtypes={dtype!r} is not one of {', '.join(DTYPES[1:])}")
    if arguments.random_weights is None:
        check_models(arguments)
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
        work = random_work if arguments.random_weights is not None else trained_work
        sources, score = work(arguments, Path(folder))
        reason = try_to_convert(Path(folder) / "teacher")
        systems = gpu_systems(
            str(Path(folder) / "teacher"),
            str(Path(folder) / "student"),
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
            write_json(output / "rows.json", figures["rows"])
            others = {"missing": figures["missing"], "refused_ratios": figures["refused"]}
            write_json(output / "environment.json", surroundings | others)
            with atomic_text_file(output / "table.md") as file:
                file.write(gpu_table(figures["rows"]))
    print((output / "table.md").read_text())
    for name, reason in figures["missing"].items():
        print(f"not measured: {name}: {reason}")
    for reason in figures["refused"]:
        print(f"no ratio: {reason}")
    print(json.dumps({"output": str(output), "systems": len(figures["rows"])}))
