"""Run the paper's experiments in one resumable command: teacher, distillation, every system, every evaluation.

    jmnat reproduce --suite table2 --preset multi30k_tiny --data runs/data/mine --output runs/table2

Repeat the command after an interruption: finished stages are skipped, others resume, and other data or presets than
those in OUTPUT/begun_with.json are refused. OUTPUT/results always has the current tables. Trainings share a GPU; a
failed stage is tried once more. Standard output ends with one line of JSON: how many stages are done.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..experiments.systems import SUITES
from ..utils.bleu import check_bleu_tokenizer
from ..utils.command_line import check_counts, command, parse_arguments

SHARED_GPU_BATCH_TOKENS = 8192  # for evaluations that run beside other stages: a quarter of the default on a GPU


@dataclass
class ReproduceArguments:
    """Which experiments, on which data, and how long."""

    data: str = field(metadata={"help": "Folder written by `jmnat prepare`, with validation and test text."})
    output: str = field(metadata={"help": "Folder for models, logs and results."})
    suite: list[str] = field(
        default_factory=lambda: ["main"],
        metadata={"help": "One or more of: " + "; ".join(f"{name} ({text})" for name, text in SUITES.items())},
    )
    only: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression: run only the stages whose names match, such as 'jm-1|cm-1', and those that "
            "they need. Default: all."
        },
    )
    preset: str = field(
        default="multi30k_tiny", metadata={"help": "Preset of all trainings, by its name or its file."}
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Folder, or name on the Hub, of an existing teacher. Students start with its weights if it has "
            "their tokenizer and sizes, otherwise with those of a small teacher that is trained for that. Default: "
            "train one."
        },
    )
    teacher_preset: str | None = field(
        default=None, metadata={"help": "Preset of the teacher, such as a larger one. Default: that of the students."}
    )
    time_budget: float | None = field(
        default=None, metadata={"help": "Stop with a checkpoint after this many minutes. Default: no limit."}
    )
    jobs: int | None = field(
        default=None,
        metadata={"help": "Stages to run at the same time. Default: 1 on a CPU; with a GPU, half the CPU cores."},
    )
    teacher_steps: int | None = field(
        default=None, metadata={"help": "Training steps of the teacher. Default: the preset's."}
    )
    student_steps: int | None = field(
        default=None, metadata={"help": "Training steps of each student. Default: the preset's."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Do not start the students with the teacher's weights."}
    )
    seeds: int = field(
        default=2,
        metadata={"help": "Trainings of each student and autoregressive baseline, with different seeds."},
    )
    num_length_candidates: int = field(
        default=4, metadata={"help": "Target lengths tried per sentence; the paper uses 4 for IWSLT14 and 3 for WMT."}
    )
    latency_sentences: int = field(
        default=100,
        metadata={"help": "Validation sentences to time one by one in table2, with nothing else running; 0: none."},
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={"help": "sacreBLEU's tokenizer. Default: zh, ja-mecab, ko-mecab or char by language, or 13a."},
    )
    bf16: bool = field(
        default=False,
        metadata={
            "help": "Train in bf16 with autocast, which is faster on a CPU with AMX or AVX512-BF16, and on a GPU for "
            "wide models."
        },
    )

    def __post_init__(self):
        check_counts(self, ("jobs", "teacher_steps", "student_steps", "seeds", "num_length_candidates"))
        check_bleu_tokenizer(self.bleu_tokenize)
        if self.teacher is not None and self.teacher_preset is not None:
            raise ValueError(
                f"teacher_preset={self.teacher_preset} is for training a teacher, but teacher={self.teacher} is "
                "trained already: give only one of them"
            )
        check_counts(self, ["latency_sentences"], least=0)
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget={self.time_budget} must be above 0 minutes")


def training_options(gpu: bool, bf16: bool) -> dict:
    """Options of all trainings, in the order in which they are compared with finished stages."""
    if gpu:  # TF32 by default: small models wait for kernel launches, to which the casts of bf16 would add
        return {"bf16" if bf16 else "tf32": True, "dataloader_num_workers": 1}
    return {"bf16": True, "use_cpu": True} if bf16 else {}


def check_scoring(arguments: ReproduceArguments, references: list[str], language: str) -> None:
    """Refuse, before any training, text that could not be scored, such as of an unknown language."""
    from ..utils.bleu import SAMPLE
    from ..utils.translation_scores import Scorer

    try:
        Scorer(references[:SAMPLE], language, False, arguments.bleu_tokenize, ("sacrebleu", "tokenized_bleu"))
    except ValueError as error:
        raise ValueError(f"translations of data={arguments.data} could not be scored: {error}") from None


def run_reproduction(arguments: ReproduceArguments) -> dict:
    """Build the stages, run them, write the tables."""
    import torch

    from ..experiments.comparisons import write_comparisons
    from ..experiments.inputs import begin_run, check_inputs, held_out_text, run_inputs
    from ..experiments.runner import StageRunner, chosen_stages, exclusive
    from ..experiments.settings import SuiteSettings
    from ..experiments.suites import SuiteBuilder

    gpu = torch.cuda.is_available()
    cores = os.cpu_count() or 1
    jobs = arguments.jobs or (max(1, cores // 2) if gpu else 1)
    settings = SuiteSettings(
        preset=arguments.preset,
        data=Path(arguments.data),
        output=Path(arguments.output),
        teacher_steps=arguments.teacher_steps,
        student_steps=arguments.student_steps,
        teacher=arguments.teacher,
        teacher_preset=arguments.teacher_preset,
        training_options=training_options(gpu, arguments.bf16),
        from_teacher=not arguments.from_scratch,
        seeds=arguments.seeds,
        num_length_candidates=arguments.num_length_candidates,
        latency_sentences=arguments.latency_sentences,
        bleu_tokenize=arguments.bleu_tokenize,
        batch_tokens=SHARED_GPU_BATCH_TOKENS if gpu and jobs > 1 else None,
    )
    # Read and check everything before the folder is made and anything in it is replaced.
    text = held_out_text(settings.data)
    inputs = run_inputs(settings, text)
    builder = SuiteBuilder(settings)
    stages = builder.build(arguments.suite)
    if arguments.only is not None:
        stages = chosen_stages(stages, arguments.only)
    check_scoring(arguments, text["validation.tgt"], builder.target_language)
    settings.output.mkdir(parents=True, exist_ok=True)
    with exclusive(settings.output) as lock:
        check_inputs(settings, inputs)
        threads = max(1, cores // jobs)
        runner = StageRunner(settings.output, jobs, arguments.time_budget, threads, pass_fds=(lock,))
        done = sum(runner.is_done(stage) for stage in stages)
        begin_run(settings, inputs, text)
        machine = torch.cuda.get_device_name() if gpu else f"{cores} CPU cores"
        print(f"{len(stages)} stages, {done} of them done, {jobs} at a time, on {machine}", flush=True)
        if done:
            print(f"the last ones took: {runner.last_times(stages)}", flush=True)
        states = runner.run(stages)
        write_comparisons(settings.output, builder.lowercase, builder.target_language, arguments.bleu_tokenize)
        return summary(arguments.suite, settings.output, states)


def summary(suites: list[str], output: Path, states: dict[str, str]) -> dict:
    """Write tables and pictures; returns how many stages ended in which state."""
    from ..experiments.pictures import write_pictures
    from ..experiments.tables import write_tables

    for suite, text in write_tables(output, suites).items():
        print(f"\n{suite}\n\n{text}")
    write_pictures(output, suites)
    counts = {state: sum(value == state for value in states.values()) for state in sorted(set(states.values()))}
    if counts.get("failed"):
        failed = ", ".join(name for name, state in states.items() if state == "failed")
        raise ValueError(f"these stages failed: {failed}; see their logs in {output / 'logs'}")
    return {"finished": counts.get("done", 0) == len(states), "stages": counts}


@command(resumes=True)
def main(argv=None):
    (arguments,) = parse_arguments(argv, ReproduceArguments, __doc__)
    print(json.dumps(run_reproduction(arguments)))
