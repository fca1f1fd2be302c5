"""One training run of a teacher, from prepared data and a preset to a saved model."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import sacrebleu
from transformers import HfArgumentParser, set_seed

from ..data.preparation import load_prepared
from ..inference.translation import translate_lines
from ..training.arguments import TeacherTrainingArguments
from ..training.command import hide_rare_options
from ..training.presets import Preset, load_preset, preset_names
from ..training.run import (
    FIXED_TRAINING_FIELDS,
    RESULTS,
    SETTINGS,
    check_data,
    compare_settings,
    data_settings,
    finish,
    run_exclusively,
    unfinished,
)
from ..utils.atomic_files import write_json
from ..utils.command_line import check_counts
from .model import build_teacher
from .trainer import TeacherTrainer


@dataclass
class TeacherArguments:
    """What to train on, and what differs from the preset's model."""

    preset: str = field(
        metadata={"help": f"Recipe: {', '.join(preset_names())}, or a .yaml file of your own. Its section teacher."}
    )
    data: str = field(metadata={"help": "Folder that prepare_data.py wrote."})
    encoder_layers: int | None = field(
        default=None, metadata={"help": "Instead of the preset's; 10 with --decoder_layers 2 decodes fast."}
    )
    decoder_layers: int | None = field(default=None, metadata={"help": "Instead of the preset's."})
    dropout: float | None = field(default=None, metadata={"help": "Instead of the preset's."})
    num_beams: int = field(
        default=5, metadata={"help": "Beam size of the final score, and the saved model's default for decoding."}
    )

    def __post_init__(self):
        check_counts(self, ("encoder_layers", "decoder_layers", "num_beams"))
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")


@dataclass
class TeacherCommand:
    """Everything that was asked for. `model` holds fields of `JMNatConfig`."""

    run: TeacherArguments
    model: dict
    training: TeacherTrainingArguments


def parse_teacher_command(argv: Sequence[str] | None, description: str) -> TeacherCommand:
    """Read the command line; the preset's sections training and teacher give the defaults of what is left out.

    Raises:
        ValueError: an unknown preset, a value out of range, or no output folder.
    """
    parser = HfArgumentParser(
        (TeacherArguments, TeacherTrainingArguments),
        description=description,
        usage="%(prog)s --preset NAME --data DIR --output_dir DIR [--FIELD VALUE ...]",
        epilog="Every other field of transformers.TrainingArguments is an option, too.",
        allow_abbrev=False,
    )
    hide_rare_options(parser, TeacherTrainingArguments)
    preset = load_preset(parser.parse_known_args(argv)[0].preset)
    parser.set_defaults(**teacher_defaults(preset))
    run, training = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    if training.output_dir in (None, "trainer_output"):
        raise ValueError("output_dir is missing: give --output_dir DIR, the folder of this run")
    overrides = {name: getattr(run, name) for name in ("encoder_layers", "decoder_layers", "dropout")}
    model = {**preset.model, **{name: value for name, value in overrides.items() if value is not None}}
    return TeacherCommand(run, model, training)


def teacher_defaults(preset: Preset) -> dict:
    """Training fields of a preset for its teacher: those that both kinds of training have, then its own."""
    known = {item.name for item in fields(TeacherTrainingArguments)}
    return {**{name: value for name, value in preset.training.items() if name in known}, **preset.teacher}


def train_teacher(command: TeacherCommand) -> dict:
    """Train, or go on, and write the final model; returns the figures, `finished` among them.

    Same files in the run's folder as `training_run.run_training`, and the same behaviour on signals and budget.

    Raises:
        ValueError: data and settings that do not fit together, or a folder in use or with another run.
        OSError: a file cannot be read or written.
    """
    return run_exclusively(command.training, lambda output_dir: _run(command, output_dir))


def _run(command: TeacherCommand, output_dir: Path) -> dict:
    start = time.perf_counter()
    data, tokenizer = load_prepared(command.run.data)
    set_seed(command.training.seed)  # before the weights are drawn
    model = build_teacher(command.model, tokenizer, command.run.num_beams)
    longest = model.config.max_position_embeddings
    limits = {"max_position_embeddings": longest, "max_target_length": longest - 1}
    for split in ("train", "validation"):
        check_data(data[split], tokenizer, limits, split, multiple=None)
    settings = _settings(command, data["train"], tokenizer)
    compare_settings(output_dir, settings)
    if (output_dir / RESULTS).is_file():  # the finished run of this command
        return json.loads((output_dir / RESULTS).read_text(encoding="utf-8"))
    trainer = TeacherTrainer(
        model,
        command.training,
        processing_class=tokenizer,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
    )
    if command.training.should_save:
        write_json(output_dir / SETTINGS, settings)
    trainer.train(resume_from_checkpoint=True)
    if trainer.stopper.stopped:
        return unfinished(output_dir, trainer.state.global_step, trainer.state.max_steps)

    def final_scores() -> dict:
        return validation_scores(trainer.model, tokenizer, data["validation"], command.run.num_beams)

    return finish(trainer, output_dir, len(data["train"]), start, final_scores)


def _settings(command: TeacherCommand, train_data, tokenizer) -> dict:
    names = (*FIXED_TRAINING_FIELDS, "label_smoothing_factor")
    settings = {
        "model": command.model,
        "training": {name: getattr(command.training, name) for name in names},
        "data": data_settings(train_data, tokenizer),
    }
    return json.loads(json.dumps(settings))  # as it will be read back


def validation_scores(model, tokenizer, validation, num_beams: int) -> dict[str, float]:
    """sacreBLEU of the whole validation set, greedily and by beam search."""
    sources, references = list(validation["source"]), list(validation["target"])
    scores = {}
    for name, beams in (("validation_bleu_greedy", 1), (f"validation_bleu_beam{num_beams}", num_beams)):
        texts = [result.text for result in translate_lines(model.eval(), tokenizer, sources, num_beams=beams)]
        scores[name] = round(sacrebleu.corpus_bleu(texts, [references]).score, 2)
    return scores
