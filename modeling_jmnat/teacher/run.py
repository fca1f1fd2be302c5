"""A training run of a teacher, from prepared data and a preset to a saved model."""

import sys

from ..configuration_jmnat import JMNatConfig
from ..inference.translation import translate_lines
from ..training.initial_weights import copy_into_teacher
from ..training.run import FIXED_TRAINING_FIELDS, Run, fixed_settings, train_into_folder
from ..utils.bleu import corpus_bleu
from .command import TeacherCommand
from .model import build_teacher, num_positions
from .trainer import TeacherTrainer


def train_teacher(command: TeacherCommand) -> dict:
    """Train a teacher; see `training.run.train_into_folder` for the files, resuming, and errors."""
    num_beams = command.run.num_beams

    def make_trainer(processing_class, **datasets) -> TeacherTrainer:
        model = build_teacher(command.model, processing_class, num_beams)
        if command.run.init_from is not None:
            copy_into_teacher(model, command.run.init_from, processing_class)
        return TeacherTrainer(model, command.training, processing_class, **datasets)

    def final_scores(trainer: TeacherTrainer) -> dict[str, float]:
        validation, tokenize = trainer.eval_dataset, command.training.bleu_tokenize
        speaks = trainer.args.should_save
        if speaks:
            print(f"scoring the {len(validation)} validation sentences, greedy and with beam search", file=sys.stderr)
        progress = speaks and sys.stderr.isatty()
        return validation_scores(trainer.model, trainer.processing_class, validation, num_beams, tokenize, progress)

    settings = {
        "model": command.model,
        "training": fixed_settings(command.training, (*FIXED_TRAINING_FIELDS, "label_smoothing_factor")),
        "start": {"init_from": command.run.init_from},
    }
    longest = num_positions(JMNatConfig(**command.model))
    limits = {"max_position_embeddings": longest, "max_target_length": longest - 1}
    return train_into_folder(
        Run(command.training, command.run.data, settings, limits, make_trainer, final_scores=final_scores)
    )


def validation_scores(
    model, tokenizer, validation, num_beams: int, bleu_tokenize: str | None = None, progress: bool = False
) -> dict[str, float]:
    """sacreBLEU on the whole validation set, with greedy and with beam search."""
    sources, references = list(validation["source"]), list(validation["target"])
    options, scores = {"progress": progress, "total": len(sources)}, {}
    for name, beams in (("validation_bleu_greedy", 1), (f"validation_bleu_beam{num_beams}", num_beams)):
        results = translate_lines(model.eval(), tokenizer, sources, **options, num_beams=beams)
        texts = [result.text for result in results]
        scores[name] = round(corpus_bleu(texts, references, chosen=bleu_tokenize), 2)
    return scores
