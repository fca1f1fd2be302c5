"""One training run of a teacher, from prepared data and a preset to a saved model."""

import json
import time
from pathlib import Path

import sacrebleu
from transformers import set_seed

from ..data.preparation import load_prepared
from ..inference.translation import translate_lines
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
from .command import TeacherCommand
from .model import build_teacher
from .trainer import TeacherTrainer


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
