"""Time JM-NAT against its autoregressive teacher in Transformers and CTranslate2, by the sentence and by the batch.

Give a trained student and teacher with a test set, or --random_weights for the speed of models of a given size.
"""

import json
import math
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

# Before any library starts its threads: those without work must not keep a core busy.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from transformers import HfArgumentParser  # noqa: E402
from transformers.utils import logging  # noqa: E402

from modeling_jmnat.benchmark import environment, markdown_table, run_benchmark  # noqa: E402
from modeling_jmnat.benchmark_systems import (  # noqa: E402
    SIZES,
    prepare_student,
    prepare_teacher,
    random_models,
    student_systems,
    teacher_systems,
)
from modeling_jmnat.cli import command  # noqa: E402
from modeling_jmnat.evaluation import score_translations  # noqa: E402
from modeling_jmnat.output_files import atomic_text_file, write_json  # noqa: E402
from modeling_jmnat.plots import plot_bleu_against_latency  # noqa: E402
from modeling_jmnat.text_files import read_parallel  # noqa: E402
from modeling_jmnat.translation import load_translator  # noqa: E402

FIXED_LENGTH = 25  # tokens of source and target with random weights
CONFIDENCE = 0.7  # of the adaptive setting: more probable tokens are final


@dataclass
class BenchmarkArguments:
    """What to measure, and how long."""

    output: str = field(metadata={"help": "Folder for rows.json, environment.json, table.md and the picture."})
    student: str | None = field(default=None, metadata={"help": "Folder of a trained JM-NAT model."})
    teacher: str | None = field(
        default=None, metadata={"help": "Folder of the autoregressive model, with the same tokenizer."}
    )
    source: str | None = field(default=None, metadata={"help": "Text to translate, one sentence a line; .gz works."})
    reference: str | None = field(default=None, metadata={"help": "Its translation, for BLEU beside the times."})
    random_weights: str | None = field(
        default=None,
        metadata={
            "help": "small or base: untrained models of that size at 25 tokens; no BLEU, nothing adaptive or pruned."
        },
    )
    passes: list[int] = field(default_factory=lambda: [1, 4, 10], metadata={"help": "Decoder passes k to measure."})
    candidates: list[int] = field(default_factory=lambda: [1, 4], metadata={"help": "Length candidates C to measure."})
    only: str | None = field(
        default=None, metadata={"help": "Regular expression: measure only systems whose title has a match."}
    )
    sentences: int = field(default=100, metadata={"help": "Sentences for latency, spread over the test set."})
    rounds: int = field(default=5, metadata={"help": "How often each sentence is timed on each system."})
    batch_size: int = field(default=32, metadata={"help": "Sentences of a batch for throughput."})
    batch_lines: int | None = field(
        default=None, metadata={"help": "Lines for throughput and BLEU, from the first on. Default: all."}
    )
    batch_rounds: int = field(default=3, metadata={"help": "How often each batch is timed on each system."})
    threads: int = field(default=1, metadata={"help": "Threads of every engine."})


def settings(arguments: BenchmarkArguments, trained: bool) -> dict[str, dict]:
    """Named options of `generate`. Rules that read probabilities mean nothing with random weights.

    Candidates are pruned late, after 0.7 k passes: earlier the best of them cannot be told yet.
    """
    named = {f"k = {passes}": {"num_iterations": passes} for passes in arguments.passes}
    several = [passes for passes in arguments.passes if passes > 2]
    if not trained or not several:
        return named
    for passes in several:
        pruned = math.ceil(0.7 * passes)
        named[f"k = {passes}, pruned"] = {"num_iterations": passes, "prune_candidates": pruned}
    named[f"k = {several[-1]}, adaptive"] = {"num_iterations": several[-1], "confidence_threshold": CONFIDENCE}
    return named


def trained_work(arguments: BenchmarkArguments, work: Path):
    """Systems, source ids and a score function for trained models."""
    missing = [name for name in ("student", "teacher", "source", "reference") if getattr(arguments, name) is None]
    if missing:
        raise ValueError(f"{missing[0]} is missing: give student, teacher, source and reference, or random_weights")
    for name in ("student", "teacher"):
        if not Path(getattr(arguments, name)).is_dir():
            raise ValueError(f"{name} {getattr(arguments, name)} is not a folder: give the folder of a saved model")
        shutil.copytree(getattr(arguments, name), work / name)
    prepare_student(work / "student")
    prepare_teacher(work / "teacher")
    _, tokenizer = load_translator(work / "student")
    lines, references = read_parallel(arguments.source, arguments.reference)
    lines, references = lines[: arguments.batch_lines], references[: arguments.batch_lines]
    sources = tokenizer(lines)["input_ids"]

    def score(translations: list[list[int]]) -> dict:
        texts = [tokenizer.decode(_before_end(ids, tokenizer), skip_special_tokens=True) for ids in translations]
        return {"bleu": score_translations(texts, references, lowercase=tokenizer.lowercase)["sacrebleu"]}

    systems = teacher_systems(str(work / "teacher"))
    systems += student_systems(str(work / "student"), settings(arguments, True), arguments.candidates)
    return systems, sources, score


def _before_end(ids: list[int], tokenizer) -> list[int]:
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids


def random_work(arguments: BenchmarkArguments, work: Path):
    """Systems and source ids for models with random weights; the third is a deep encoder with one decoder layer."""
    config = random_models(arguments.random_weights, work)
    layers = SIZES[arguments.random_weights]["layers"]
    random_models(arguments.random_weights, work / "deep", (2 * layers, 1))
    prepare_student(work / "student")
    systems = []
    for folder, suffix in ((work / "teacher", ""), (work / "deep" / "teacher", f" {2 * layers}+1 layers")):
        prepare_teacher(folder)
        systems += teacher_systems(str(folder), FIXED_LENGTH, suffix)
    systems += student_systems(str(work / "student"), settings(arguments, False), arguments.candidates, FIXED_LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, config.vocab_size, (arguments.batch_lines or 96, FIXED_LENGTH), generator=generator)
    ids[:, -1] = config.eos_token_id
    return systems, ids.tolist(), None


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(BenchmarkArguments, description=__doc__).parse_args_into_dataclasses(argv)
    for name in ("sentences", "rounds", "batch_size", "batch_rounds", "threads"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    surroundings = environment(arguments.threads)
    print(json.dumps(surroundings))
    with tempfile.TemporaryDirectory() as folder:
        work = random_work if arguments.random_weights is not None else trained_work
        systems, sources, score = work(arguments, Path(folder))
        if arguments.only is not None:
            systems = [system for system in systems if re.search(arguments.only, system.title)]
        if not systems:
            raise ValueError(f"only={arguments.only!r} matches no system")
        rows, refused = run_benchmark(
            systems,
            sources,
            arguments.threads,
            arguments.sentences,
            arguments.rounds,
            arguments.batch_size,
            arguments.batch_rounds,
            score,
            progress=True,
        )
    table = markdown_table(rows)
    write_json(output / "rows.json", rows)
    write_json(output / "environment.json", {**surroundings, "refused_ratios": refused})
    with atomic_text_file(output / "table.md") as file:
        file.write(table)
    print(table)
    for reason in refused:
        print(f"no ratio: {reason}")
    figures = {"output": str(output), "systems": len(rows), "refused_ratios": len(refused)}
    if score is not None:
        plot_bleu_against_latency(rows, output / "bleu_latency.png")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
