"""Where a suite of experiments reads and writes, and what all of its trainings and evaluations share."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ..configuration_jmnat import JMNatConfig
from ..training.presets import load_preset


@dataclass
class SuiteSettings:
    """Where a suite reads and writes, and the options of all its trainings and evaluations. Paths become absolute.

    Args:
        preset: name or file for the training commands.
        data: folder that prepare_data.py wrote.
        output: folder of the whole run.
        teacher_steps, student_steps: updates; None takes the preset's.
        training_options: further options of all trainings, such as {"bf16": True}.
        teacher: folder or name on the Hub of the teacher that translates the training set; None trains one.
        teacher_preset: preset of the teacher, if one is trained; None takes `preset`.
        from_teacher: students start with the weights of a teacher of their own size.
        seeds: number of trainings of each student and autoregressive baseline; only their seeds differ.
        num_length_candidates: C.
        latency_sentences: number of validation sentences that are timed one by one.
        batch_tokens: batch size of evaluations; None takes the default of the commands.
        bleu_tokenize: sacreBLEU's tokenizer; None chooses it by the target language.
    """

    preset: str
    data: Path
    output: Path
    teacher_steps: int | None = None
    student_steps: int | None = None
    teacher: str | None = None
    training_options: dict = field(default_factory=dict)
    teacher_preset: str | None = None
    from_teacher: bool = True
    seeds: int = 2
    num_length_candidates: int = 4
    latency_sentences: int = 100
    batch_tokens: int | None = None
    bleu_tokenize: str | None = None

    def __post_init__(self):
        self.data, self.output = self.data.resolve(), self.output.resolve()
        if self.teacher is not None and Path(self.teacher).is_dir():
            self.teacher = os.path.realpath(self.teacher)
        for name in ("preset", "teacher_preset"):
            if str(getattr(self, name)).endswith((".yaml", ".yml")):
                setattr(self, name, os.path.realpath(getattr(self, name)))

    def teacher_updates(self, preset: str) -> int:
        return self.teacher_steps or self._updates(preset, load_preset(preset).teacher_training())

    def student_updates(self) -> int:
        return self.student_steps or self._updates(self.preset, load_preset(self.preset).training)

    @staticmethod
    def _updates(preset: str, training: dict) -> int:
        if training.get("max_steps", 0) < 1:
            raise ValueError(f"preset {preset} has no max_steps: give --teacher_steps and --student_steps")
        return int(training["max_steps"])


def layers_of(preset: str) -> dict[str, int]:
    """Number of layers of each half (encoder, decoder) of a preset's models."""
    model = load_preset(preset).model
    return {name: model.get(name, getattr(JMNatConfig(), name)) for name in ("encoder_layers", "decoder_layers")}
