"""Command line of a teacher's training, parsed over the defaults of a preset.

Importing this module loads neither PyTorch nor Transformers; parsing does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..training.command import PRESET_HELP, USAGE, parse_over_defaults, preset_for
from ..training.options import InheritedOptions, TeacherOptions
from ..utils.command_line import check_counts, print_help, read_ahead, wants_help

if TYPE_CHECKING:
    from ..training.arguments import TeacherTrainingArguments


@dataclass
class TeacherArguments:
    """What to train on, and what differs from the preset's model."""

    preset: str = field(metadata={"help": f"{PRESET_HELP} Its section teacher overrides its section training."})
    data: str = field(metadata={"help": "Folder that `jmnat prepare` wrote."})
    encoder_layers: int | None = field(
        default=None,
        metadata={"help": "Encoder layers. Default: the preset's. 10 with --decoder_layers 2 decodes fast."},
    )
    decoder_layers: int | None = field(default=None, metadata={"help": "Decoder layers. Default: the preset's."})
    dropout: float | None = field(default=None, metadata={"help": "Dropout after each block. Default: the preset's."})
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Start with the weights of this model of the same sizes and vocabulary: a teacher, to train it on "
            "other text, or a JM-NAT, which has a teacher's layers. Default: random weights."
        },
    )
    num_beams: int = field(
        default=5, metadata={"help": "Beam size of the final score, and default beam size of the saved model."}
    )

    def __post_init__(self):
        check_counts(self, ("encoder_layers", "decoder_layers", "num_beams"))
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")


@dataclass
class TeacherCommand:
    """A command to train a teacher. `model` holds fields of `ModelOptions`."""

    run: TeacherArguments
    model: dict[str, Any]
    training: "TeacherTrainingArguments"


def parse_teacher_command(argv: Sequence[str] | None, description: str) -> TeacherCommand:
    """Parse the command line over the defaults of its `--preset`, from the sections training and teacher.

    Raises:
        ValueError: an unknown preset, a value out of range, or no output folder.
    """
    preset = preset_for(argv, read_ahead(argv, "preset").preset)
    defaults = preset.teacher_training()
    if wants_help(argv):
        print_help((TeacherArguments, InheritedOptions, TeacherOptions), description, defaults, usage=USAGE)
    from ..training.arguments import TeacherTrainingArguments

    groups = (TeacherArguments, TeacherTrainingArguments)
    run, training = parse_over_defaults(groups, argv, description, defaults)
    changes = {name: getattr(run, name) for name in ("encoder_layers", "decoder_layers", "dropout")}
    model = {**preset.model, **{name: value for name, value in changes.items() if value is not None}}
    return TeacherCommand(run, model, training)
