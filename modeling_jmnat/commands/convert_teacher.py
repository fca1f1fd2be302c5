"""Turn an autoregressive model, such as an opus-mt, into a JM-NAT that translates in a few passes.

    jmnat convert-teacher --teacher Helsinki-NLP/opus-mt-de-en --train_source text.de --output runs/fast

The teacher translates the training text, a student with its vocabulary and weights is trained on that, decoding is
tuned on validation text, and both are scored and timed. Source text is enough; give --train_target if there is one, so
that scores are against real references. Repeat the command to resume after an interruption.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import check_counts, command, parse_arguments
from .init import LANGUAGE_CODE_HELP, LANGUAGES_HELP


@dataclass
class ConvertTeacherArguments:
    """Which teacher, which text, and how long."""

    teacher: str = field(
        metadata={"help": "Marian (opus-mt), M2M100, NLLB, ...: a folder, or a name on the Hub. See `jmnat init`."}
    )
    train_source: str = field(metadata={"help": "Text in the source language, one sentence per line, UTF-8 or .gz."})
    output: str = field(metadata={"help": "Folder for the model, logs and results."})
    train_target: str | None = field(
        default=None, metadata={"help": "Its translation, line by line, if there is one."}
    )
    validation_source: str | None = field(
        default=None,
        metadata={"help": "Held-out text to choose options by. Default: up to 1,000 lines of the training text."},
    )
    validation_target: str | None = field(default=None, metadata={"help": "Its translation, line by line."})
    test_source: str | None = field(
        default=None, metadata={"help": "Text for the final scores. Default: the validation text."}
    )
    test_target: str | None = field(default=None, metadata={"help": "Its translation, line by line."})
    teacher_languages: list[str] | None = field(default=None, metadata={"help": LANGUAGES_HELP})
    language_code: str | None = field(default=None, metadata={"help": LANGUAGE_CODE_HELP})
    encoder_layers: int | None = field(
        default=None, metadata={"help": "Encoder layers of the student. Default: as many as the teacher."}
    )
    decoder_layers: int | None = field(
        default=None,
        metadata={"help": "Decoder layers of the student; fewer are faster. Default: as many as the teacher."},
    )
    num_beams: int = field(default=5, metadata={"help": "Beam size of the teacher's translations."})
    append_raw: bool = field(
        default=False, metadata={"help": "Train on the original pairs as well; needs --train_target."}
    )
    preset: str = field(default="from_teacher", metadata={"help": "Recipe of the training, by its name or its file."})
    max_steps: int | None = field(default=None, metadata={"help": "Training steps. Default: the preset's."})
    max_tokens: int | None = field(default=None, metadata={"help": "Tokens in a batch. Default: the preset's."})
    bf16: bool = field(
        default=False, metadata={"help": "Train in bf16, on a GPU or on a CPU with AMX or AVX512-BF16."}
    )
    seed: int = field(default=42, metadata={"help": "Random seed of all steps."})
    num_length_candidates: int = field(default=4, metadata={"help": "Target lengths that the student tries."})
    latency_sentences: int = field(
        default=100,
        metadata={"help": "Sentences to time one at a time at the end, with nothing else running; 0: none."},
    )
    target_language: str = field(
        default="en", metadata={"help": "Target language, which determines sacreBLEU's tokenizer."}
    )
    jobs: int = field(default=1, metadata={"help": "Stages to run at the same time."})
    time_budget: float | None = field(
        default=None, metadata={"help": "Stop with a checkpoint after this many minutes. Default: no limit."}
    )

    def __post_init__(self):
        counts = ("encoder_layers", "decoder_layers", "num_beams", "max_steps", "max_tokens", "num_length_candidates")
        check_counts(self, (*counts, "jobs"))
        check_counts(self, ["latency_sentences"], least=0)
        if self.append_raw and self.train_target is None:
            raise ValueError("append_raw=True needs train_target, or there are no pairs to append")
        if self.time_budget is not None and not self.time_budget > 0:
            raise ValueError(f"time_budget={self.time_budget} must be above 0 minutes")


def run_conversion(arguments: ConvertTeacherArguments) -> dict:
    """Build the stages, run them, compare."""
    from ..experiments.runner import StageRunner, exclusive
    from ..experiments.teacher_conversion import Conversion, comparison, comparison_table
    from ..training.presets import load_preset
    from ..utils.hub_folders import check_folder

    def given(*names: str) -> dict[str, object]:
        values = {name: getattr(arguments, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    conversion = Conversion(
        teacher=arguments.teacher,
        output=Path(arguments.output),
        train=(arguments.train_source, arguments.train_target),
        validation=(arguments.validation_source, arguments.validation_target),
        test=(arguments.test_source, arguments.test_target),
        start=given("teacher_languages", "language_code", "encoder_layers", "decoder_layers", "seed"),
        distillation=given("num_beams", "append_raw"),
        training=given("preset", "max_steps", "max_tokens", "bf16", "seed"),
        target_language=arguments.target_language,
        num_length_candidates=arguments.num_length_candidates,
        latency_sentences=arguments.latency_sentences,
    )
    check_folder(arguments.teacher)
    load_preset(arguments.preset)
    conversion.check()
    stages = conversion.stages()
    conversion.output.mkdir(parents=True, exist_ok=True)
    with exclusive(conversion.output) as lock:
        conversion.begin()
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        runner = StageRunner(conversion.output, arguments.jobs, arguments.time_budget, threads, pass_fds=(lock,))
        states = runner.run(stages)
    failed = [name for name, state in states.items() if state == "failed"]
    if failed:
        raise ValueError(f"stage {failed[0]} failed: see its log, {conversion.path('logs', failed[0])}.log")
    rows = comparison(conversion.output)
    print(comparison_table(rows))
    if conversion.references_are_the_teachers:
        print(
            "scored against the teacher's own translations: give --train_target or --test_source for real references"
        )
    return {"finished": set(states.values()) == {"done"}, "model": conversion.path("model"), "results": rows}


@command(resumes=True)
def main(argv=None):
    (arguments,) = parse_arguments(argv, ConvertTeacherArguments, __doc__)
    print(json.dumps(run_conversion(arguments)))
