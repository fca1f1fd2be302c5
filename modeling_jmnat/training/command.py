"""The options of `train_jmnat.py`: a preset gives the defaults, the command line overrides any field."""

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from ..configuration_jmnat import JMNatConfig
from ..utils.hub_folders import fetch_folder
from .arguments import JMNatTrainingArguments, TranslationTrainingArguments
from .data_collator import DataCollatorForJMNat
from .halves import check_half
from .presets import FREE_MODEL_FIELDS, MASKING_FIELDS, MODEL_FIELDS, load_preset, preset_names

# Inherited training fields worth a newcomer's attention; the others work, too, but would bury ours in --help.
SHOWN_TRAINING_FIELDS = (
    {"output_dir", "max_steps", "num_train_epochs", "gradient_accumulation_steps", "max_grad_norm", "bf16", "seed"}
    | {"torch_compile", "logging_steps", "eval_strategy", "eval_steps", "save_steps", "report_to", "use_cpu"}
    | {"dataloader_num_workers"}
)


def hide_rare_options(parser: argparse.ArgumentParser, arguments: type[TrainingArguments]) -> None:
    """Leave out of --help the fields that `arguments` takes over from Transformers, but those in the list above."""
    shown = SHOWN_TRAINING_FIELDS.union(
        *(inspect.get_annotations(cls) for cls in arguments.__mro__ if issubclass(cls, TranslationTrainingArguments))
    )
    for action in parser._actions:
        if action.dest in arguments.__dataclass_fields__ and action.dest not in shown:
            action.help = argparse.SUPPRESS


@dataclass
class RunArguments:
    """What to train on and what to start from."""

    data: str = field(metadata={"help": "Folder that prepare_data.py wrote."})
    preset: str | None = field(
        default=None,
        metadata={
            "help": f"Recipe: {', '.join(preset_names())}, or a .yaml file of your own. Every field of it can be "
            "overridden by an option of its name."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "Start from the weights of this JM-NAT: a folder, or a name on the Hub (same tokenizer)."},
    )
    init_from_teacher: str | None = field(
        default=None,
        metadata={
            "help": "Copy what fits from this autoregressive model (train_teacher.py; same tokenizer): embeddings, "
            "encoder, decoder self- and cross-attention, feed-forward. Worth more than anything else in short runs."
        },
    )

    freeze: str | None = field(
        default=None,
        metadata={"help": "encoder or decoder: leave this half, and the embeddings that both share, as it begins."},
    )
    restart: str | None = field(
        default=None, metadata={"help": "encoder or decoder: with --init_from, begin this half from random weights."}
    )

    def __post_init__(self):
        if self.init_from is not None and self.init_from_teacher is not None:
            raise ValueError("init_from and init_from_teacher both name a start: give one of them")
        for name in ("freeze", "restart"):
            check_half(name, getattr(self, name))
        if self.restart is not None and self.init_from is None:
            raise ValueError(f"restart={self.restart} needs init_from: every other start has random weights there")


def _options(name: str, helps: dict[str, str], defaults: dict[str, Any], doc: str):
    """A dataclass with one field per entry of `helps`; its types are those of the defaults."""
    optional = {"init_std": float | None, "pad_to_multiple_of": int | None}
    made = make_dataclass(
        name,
        [
            (key, optional.get(key, type(defaults[key])), field(default=defaults[key], metadata={"help": text}))
            for key, text in helps.items()
        ],
    )
    made.__doc__ = doc
    return made


ModelArguments = _options(
    "ModelArguments", MODEL_FIELDS, {item.name: item.default for item in fields(JMNatConfig)}, "Architecture and loss."
)
MaskingArguments = _options(
    "MaskingArguments",
    MASKING_FIELDS,
    {name: item.default for name, item in inspect.signature(DataCollatorForJMNat).parameters.items()},
    "How training masks are drawn.",
)


@dataclass
class TrainingCommand:
    """Everything that was asked for. `model` and `masking` are plain dictionaries of fields."""

    run: RunArguments
    model: dict[str, Any]
    masking: dict[str, Any]
    training: JMNatTrainingArguments


def parse_command(argv: Sequence[str] | None, description: str) -> TrainingCommand:
    """Read the command line over the defaults of its `--preset`; with `--init_from`, sizes are those of that model.

    Raises:
        ValueError: an unknown preset, a value out of range, or no output folder.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset")
    first.add_argument("--init_from")
    first.add_argument("--eval_num_iterations", nargs="*")
    known, _ = first.parse_known_args(argv)
    parser = HfArgumentParser(
        (RunArguments, ModelArguments, MaskingArguments, JMNatTrainingArguments),
        description=description,
        usage="%(prog)s --preset NAME --data DIR --output_dir DIR [--FIELD VALUE ...]",
        epilog="Every other field of transformers.TrainingArguments is an option, too.",
        allow_abbrev=False,
    )
    hide_rare_options(parser, JMNatTrainingArguments)
    chosen = {}
    if known.preset is not None:
        preset = load_preset(known.preset)
        chosen = preset.model
        parser.set_defaults(**preset.model, **preset.masking, **preset.training)
    if known.init_from is not None:
        folder = fetch_folder(known.init_from, ("config.json",))
        if not (folder / "config.json").is_file():
            raise ValueError(f"init_from {known.init_from} is not the folder of a saved model")
        kind = JMNatConfig.get_config_dict(folder)[0].get("model_type")
        if kind != JMNatConfig.model_type:
            raise ValueError(
                f"init_from {known.init_from} is a model of the kind {kind}, it must be a JM-NAT: --init_from_teacher "
                "takes what fits from an autoregressive one"
            )
        config = JMNatConfig.from_pretrained(folder)
        # Weights come with their sizes, whatever the preset says; what is no size is the preset's to choose.
        kept = [name for name in MODEL_FIELDS if name not in FREE_MODEL_FIELDS or name not in chosen]
        parser.set_defaults(**{name: getattr(config, name) for name in kept})
    run, model, masking, training = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    if training.output_dir in (None, "trainer_output"):
        raise ValueError("output_dir is missing: give --output_dir DIR, the folder of this run")
    if model.decoder_input == "source_copy" and known.eval_num_iterations is None:
        training.eval_num_iterations = [1]
    if model.decoder_input == "source_copy" and max(training.eval_num_iterations, default=1) > 1:
        given = training.eval_num_iterations
        raise ValueError(f"eval_num_iterations={given} must be 1 with decoder_input=source_copy")
    return TrainingCommand(run, vars(model), vars(masking), training)
