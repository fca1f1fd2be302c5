"""Run the paper's experiments as one resumable command: teacher, distillation, every system, every evaluation.

    python run_scripts/reproduce.py --suite table2 --preset multi30k_tiny --data runs/data/mine --output runs/table2

Give the same command again after an interruption: what is done is skipped, what was cut off goes on. Tables stand in
OUTPUT/results at any time. Standard output ends with one line of JSON: how many stages are done.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser

from modeling_jmnat.cli import command
from modeling_jmnat.experiments import StageRunner
from modeling_jmnat.presets import load_preset
from modeling_jmnat.suite_tables import write_tables
from modeling_jmnat.suites import SUITES, SuiteBuilder, SuiteSettings, export_held_out_text


@dataclass
class ReproduceArguments:
    """Which experiments, on which data, within which time."""

    data: str = field(metadata={"help": "Folder that prepare_data.py wrote, with validation and test text."})
    output: str = field(metadata={"help": "Folder for models, logs and results."})
    suite: list[str] = field(
        default_factory=lambda: ["main"],
        metadata={"help": "One or more of: " + "; ".join(f"{name} ({text})" for name, text in SUITES.items())},
    )
    preset: str = field(default="multi30k_tiny", metadata={"help": "Preset of all trainings, a name or a file."})
    teacher_preset: str | None = field(
        default=None, metadata={"help": "Another preset for the teacher, such as a larger one. Default: the same."}
    )
    time_budget: float | None = field(
        default=None, metadata={"help": "Minutes; then everything stops with a checkpoint. Default: no limit."}
    )
    jobs: int | None = field(
        default=None, metadata={"help": "Stages at a time. Default: 1 on a CPU, one for two cores beside a GPU."}
    )
    teacher_steps: int | None = field(default=None, metadata={"help": "Updates of the teacher, if not the preset's."})
    student_steps: int | None = field(default=None, metadata={"help": "Updates of each student, likewise."})
    from_scratch: bool = field(
        default=False, metadata={"help": "Do not start the students with the teacher's weights."}
    )
    latency_sentences: int = field(
        default=0, metadata={"help": "Time so many test sentences one by one; use it with --jobs 1 alone."}
    )


def run_reproduction(arguments: ReproduceArguments) -> dict:
    """Build the stages, run them, write the tables."""
    data, output = Path(arguments.data), Path(arguments.output)
    gpu = torch.cuda.is_available()
    cores = os.cpu_count() or 1
    jobs = arguments.jobs or (max(1, cores // 2) if gpu else 1)
    if jobs > 1 and arguments.latency_sentences:
        raise ValueError(
            f"latency_sentences={arguments.latency_sentences} needs jobs=1: others would disturb the clock"
        )
    for preset in filter(None, (arguments.preset, arguments.teacher_preset)):
        load_preset(preset)  # an unknown one is named before anything starts
    output.mkdir(parents=True, exist_ok=True)
    export_held_out_text(data, output)
    settings = SuiteSettings(
        preset=arguments.preset,
        data=data,
        output=output,
        scripts=Path(__file__).parent,
        teacher_steps=arguments.teacher_steps,
        student_steps=arguments.student_steps,
        teacher_preset=arguments.teacher_preset,
        # Models this small wait for the GPU's launches, not for its arithmetic: bf16's casts only add to them.
        training_options={"tf32": True, "dataloader_num_workers": 1} if gpu else {},
        from_teacher=not arguments.from_scratch,
        latency_sentences=arguments.latency_sentences,
    )
    stages = SuiteBuilder(settings).build(arguments.suite)
    print(
        f"{len(stages)} stages, {jobs} at a time, on {torch.cuda.get_device_name() if gpu else f'{cores} CPU cores'}"
    )
    runner = StageRunner(output, jobs, arguments.time_budget, threads=max(1, cores // jobs))
    states = runner.run(stages)
    for suite, text in write_tables(output, arguments.suite).items():
        print(f"\n{suite}\n\n{text}")
    counts = {state: sum(value == state for value in states.values()) for state in sorted(set(states.values()))}
    if counts.get("failed"):
        failed = ", ".join(name for name, state in states.items() if state == "failed")
        raise ValueError(f"these stages failed: {failed}; their logs are in {output / 'logs'}")
    return {"finished": counts.get("done", 0) == len(stages), "stages": counts}


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(ReproduceArguments, description=__doc__).parse_args_into_dataclasses(argv)
    print(json.dumps(run_reproduction(arguments)))


if __name__ == "__main__":
    main()
